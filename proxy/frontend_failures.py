"""TorchServe's own failures as the contract's: each status that its frontend can give, and what it really means.

A handler's failure comes as a line with status 200 (handlers/wire.py) and never passes here. The causes were read in
the source of TorchServe 0.12; docs/torchserve.md has them as a table.
"""

import json
from http import HTTPStatus

from handlers.wire import CUSTOM
from proxy.errors import Failure

STARTING = "TorchServe is starting or has stopped: try again shortly."
READY = "ready"  # the state of an archive that can serve; any other state says why it cannot
START_RETRY_S = 5
BUSY_RETRY_S = 10
REGISTER_RETRY_S = 30
LOAD_RETRY_S = 30
# what ts/service.py says where the handler itself failed, with 503, and with 507 for the last
SERVICE_FAULTS = {
    "Prediction failed",
    "Invalid model predict output",
    "number of batch response mismatched",
    "Out of resources",
}


def failure_of(status: int, body: bytes, archive: str, state: str) -> Failure:
    """The contract's failure for an answer of TorchServe's frontend.

    Args:
        body: `{"code": …, "type": …, "message": …}`, or empty where Netty answered.
        state: of the archive by now: READY, or why it cannot serve.
    """
    kind, message = _reason(body)
    if status == HTTPStatus.NOT_FOUND and archive.startswith(CUSTOM):  # it starts without those, and they are loaded
        return TorchServeDied()
    if status == HTTPStatus.NOT_FOUND:
        return Failure(
            503, f"The archive {archive} is not registered in TorchServe: register it, or wait.", REGISTER_RETRY_S
        )
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:  # Netty's: the body is over max_request_size
        return Failure(413, "The request is larger than TorchServe takes: send less, or raise max_request_size.")
    if kind == "OutOfMemoryError":  # of Java's heap; the device has nothing to do with it
        return Failure(
            503, "TorchServe's frontend is out of memory, for too many large requests at once: try again.", BUSY_RETRY_S
        )
    if message.startswith("Worker"):  # "Worker died.", with 507 where it was killed; "Worker scaled down."
        return WorkerDied()
    if message in SERVICE_FAULTS:
        return Failure(500, f"The archive {archive} failed ({message}): this is a fault of the server.")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        # "has no worker" is TorchServe's text for a full queue as well
        if state == READY:
            return busy(BUSY_RETRY_S)
        return Failure(503, cannot_serve(archive, state), START_RETRY_S)
    if status in (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.INSUFFICIENT_STORAGE):
        return WorkerDied()
    return Failure(500, f"TorchServe refused the request with status {status}: this is a fault of the server.")


def busy(retry_after: int) -> Failure:
    return Failure(503, "The server is busy: too many requests are waiting. Try again later.", retry_after)


def cannot_serve(archive: str, state: str) -> str:
    """The sentence about an archive that cannot serve; `state` says why."""
    return f"{archive} cannot serve yet: {state}. Try again shortly."


class WaitedInVain(Failure):
    """For a request that nobody could serve for as long as it may wait; `message` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, START_RETRY_S)


def not_in_memory(archive: str) -> Failure:
    return Failure(503, f"{archive} is not in memory: a request for an image loads it.", START_RETRY_S)


def not_prepared() -> Failure:
    return Failure(503, "This model is still being prepared: try again shortly.", START_RETRY_S)


class NotLoaded(Failure):
    """For a model whose worker did not start; `reason` is a sentence, or empty if nobody has said it."""

    def __init__(self, reason: str = "") -> None:
        reason = reason or "its worker ended and said nothing. The server's logs may say more."
        super().__init__(503, f"This model cannot be loaded: {reason}", LOAD_RETRY_S)


class WorkerDied(Failure):
    """For a request whose worker, or TorchServe, ended before its answer was complete, for whatever reason."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The worker stopped before this image was finished. It is being restarted: try again shortly.",
            BUSY_RETRY_S,
        )


class TorchServeDied(WorkerDied):
    """For a request whose TorchServe itself ended or has forgotten its model; no request is to blame for that."""

    def __init__(self) -> None:
        Failure.__init__(self, 503, STARTING, BUSY_RETRY_S)


def died_twice() -> Failure:
    """For a request that was with a worker at two deaths. No Retry-After: it may well be the cause."""
    return Failure(
        500,
        "The worker stopped twice while it had this request, so it is not sent again: change it, for example to a "
        "smaller size. The server's logs may say why.",
    )


def unreachable() -> WaitedInVain:
    return WaitedInVain(STARTING)


def _reason(body: bytes) -> tuple[str, str]:
    """The exception's class and its message."""
    try:
        reason = json.loads(body)
        return str(reason.get("type", "")), str(reason.get("message", ""))
    except (ValueError, AttributeError):
        return "", ""
