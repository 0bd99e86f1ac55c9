"""Each status that TorchServe's frontend can give, with the bodies that it writes, as the contract's failure."""

import json
import re

import pytest

from proxy.frontend_failures import READY, TorchServeDied, failure_of
from tests.support.paths import HOME

# status, type and message as TorchServe 0.12 gives them; what a client is told
BUSY = "Model has no worker to serve"
TABLE = [
    (400, "BadRequestException", "Parameter model_name is required.", READY, 500, "status 400"),
    (403, "IllegalArgumentException", "unexpected", READY, 500, "status 403"),
    (404, "ModelNotFoundException", "Model not found: txt2img", READY, 503, "not registered"),
    (405, "MethodNotAllowedException", "Requested method is not allowed", READY, 500, "status 405"),
    (408, "RequestTimeoutException", "timeout", READY, 500, "status 408"),
    (409, "ConflictStatusException", "conflict", READY, 500, "status 409"),
    (413, "", "", READY, 413, "max_request_size"),
    (500, "InternalServerException", "Worker died.", "the model is loading", 503, "worker stopped before"),
    (500, "InternalServerException", "Worker scaled down.", READY, 503, "worker stopped before"),
    (500, "NullPointerException", "null", READY, 503, "worker stopped before"),
    (503, "ServiceUnavailableException", BUSY, READY, 503, "too many requests are waiting"),
    (
        503,
        "ServiceUnavailableException",
        "Model has no worker to serve",
        "the model is loading",
        503,
        "cannot serve yet",
    ),
    (
        503,
        "InternalServerException",
        "Prediction failed",
        READY,
        500,
        "(Prediction failed): this is a fault",
    ),
    (503, "InternalServerException", "Invalid model predict output", READY, 500, "a fault of the server"),
    (503, "InternalServerException", "number of batch response mismatched", "no worker", 500, "a fault of the server"),
    (507, "InternalServerException", "Out of resources", READY, 500, "a fault of the server"),
    (507, "InternalServerException", "Worker died.", READY, 503, "worker stopped before"),
    (507, "OutOfMemoryError", "Java heap space", READY, 503, "frontend is out of memory"),
]


@pytest.mark.parametrize(("status", "kind", "message", "state", "told", "sentence"), TABLE)
def test_each_status_means_what_it_means(
    status: int, kind: str, message: str, state: str, told: int, sentence: str
) -> None:
    body = json.dumps({"code": status, "type": kind, "message": message}).encode() if kind else b""
    failure = failure_of(status, body, "txt2img", state)
    assert (failure.status, sentence in failure.message) == (told, True), failure.message
    assert (failure.retry_after is not None) is (told == 503)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"no JSON", b'{"message": null}'])
def test_a_body_of_any_kind_is_survived(body: bytes) -> None:
    for status in (400, 404, 413, 500, 503, 507, 599):
        assert failure_of(status, body, "txt2img", READY).message


def test_a_model_that_torchserve_has_forgotten_is_asked_for_again() -> None:
    assert isinstance(failure_of(404, b"", "custom-dream", READY), TorchServeDied)


def test_the_device_is_never_blamed_by_torchserve() -> None:
    """507 is the handler's word for a full device: TorchServe says it of a worker that was killed."""
    assert all(failure_of(row[0], b"", "txt2img", row[3]).status != 507 and row[4] != 507 for row in TABLE)


def test_the_documents_have_every_status() -> None:
    text = (HOME / "docs" / "torchserve.md").read_text(encoding="utf-8")
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) ", text, re.M)}
    assert documented == {row[0] for row in TABLE}
