"""uvicorn's HTTP/1.1 with limits on what clients may hold open, and JSON errors for requests that are no HTTP."""

import asyncio
import http
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from proxy.errors import Failure

HEAD_S = 30  # from a connection, or the first byte of a request, to the end of the request's head
READ_S = 60  # within which a client must read MIN_READ of an answer
MIN_READ = 65_536  # bytes
MAX_CONNECTIONS = 1000
KEEP_ALIVE_S = 75  # for an idle connection; longer than the 60 s after which most load balancers close theirs
RETRY_S = 5


class Protocol(H11Protocol):
    """One connection."""

    _waiting: asyncio.TimerHandle | None = None  # for a head, or for the rest of a body that is not needed any more
    _writing: asyncio.TimerHandle | None = None  # for the client to read
    _unread = 0  # bytes

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(Failure(503, "The server has as many connections as it can hold: try again later.", RETRY_S))
            return
        self._waiting = self.loop.call_later(HEAD_S, self._is_late)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        is_answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        if self.conn.their_state is not h11.IDLE and not (self.conn.their_state is h11.SEND_BODY and is_answered):
            self._stop("_waiting")
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_S, self._is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop("_waiting")
        self._stop("_writing")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._writing = self.loop.call_later(READ_S, self._check_reading)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("_writing")

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_BODY:  # an answer is already being sent
            self.transport.close()
            return
        self._refuse(Failure(400, "This is not a valid HTTP/1.1 request, or its head is too long."))

    def _is_late(self) -> None:
        if self.conn.our_state is h11.IDLE:
            self._refuse(Failure(408, f"The head of a request took longer than {HEAD_S} seconds."))
        else:
            self.transport.abort()

    def _check_reading(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left > self._unread - MIN_READ:
            self.transport.abort()
            return
        self._unread = left
        self._writing = self.loop.call_later(READ_S, self._check_reading)

    def _refuse(self, failure: Failure) -> None:
        """Answers and closes, in whatever state the connection is."""
        body = json.dumps(failure.body).encode()
        headers = {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close",
            **failure.headers,
        }  # fmt: skip
        lines = [f"HTTP/1.1 {failure.status} {http.HTTPStatus(failure.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)
