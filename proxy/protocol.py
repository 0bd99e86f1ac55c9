"""uvicorn's HTTP/1.1 with an end to what clients may hold open, and the contract's body for what is no HTTP."""

import asyncio
import http
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from proxy.errors import Failure

HEAD_S = 30  # from a connection, or the first byte of a request, to the end of the request's head
READ_S = 60  # for which a client may leave an answer lying
MAX_CONNECTIONS = 1000
RETRY_S = 5


class Protocol(H11Protocol):
    """A connection."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(Failure(503, "The server has as many connections as it can: try again.", RETRY_S))
            return
        self._start(HEAD_S, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._start(HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_BODY:  # an answer is under way: nothing can be said any more
            self.transport.close()
            return
        self._refuse(Failure(400, "This is not a request that HTTP/1.1 allows, or its head is too long."))

    def _head_is_late(self) -> None:
        self._refuse(Failure(408, f"The head of a request took longer than {HEAD_S} seconds."))

    def _refuse(self, failure: Failure) -> None:
        """Answers and closes, whatever state the connection is in."""
        body = json.dumps(failure.body).encode()
        headers = {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close",
            **failure.headers,
        }  # fmt: skip
        lines = [f"HTTP/1.1 {failure.status} {http.HTTPStatus(failure.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _start(self, seconds: float, work: Any) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, work)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
