"""A bad line between two programs: it passes TCP connections on, late, slowly, in pieces, in part, or not at all."""

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """What one direction of a line does to the bytes of each connection.

    Attributes:
        late_s: seconds that each piece takes longer.
        bytes_per_s: at most.
        piece: bytes that arrive at a time, at most.
        resets_after: bytes after which both ends see a reset.
        stalls_after: bytes after which nothing passes any more, not even the end.
        closes_late_s: seconds after which the end of the one side is told to the other.
    """

    late_s: float = 0.0
    bytes_per_s: float = math.inf
    piece: int = 65_536
    resets_after: float = math.inf
    stalls_after: float = math.inf
    closes_late_s: float = 0.0


FINE = Fault()


@dataclass
class Line:
    """A line to a port of this machine. Its faults are those of connections that begin from now on.

    Attributes:
        sent: what the clients of all connections have sent, as it was passed on.
    """

    target: int
    sending: Fault = FINE
    receiving: Fault = FINE
    port: int = 0
    sent: bytearray = field(default_factory=bytearray)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.CancelledError):  # by `close`; asyncio logs a task of a connection that ends so
            await self._connect(reader, writer)
        self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, far_writer, self.sending, self.sent))
                both.create_task(self._pass(far_reader, writer, self.receiving))
        except* OSError:  # either end has gone, or was reset: so is the other one
            for one in writers:
                linger = struct.pack("ii", 1, 0)  # a close is a reset
                with suppress(OSError):
                    one.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        finally:
            for one in writers:
                one.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault, copy: bytearray | None = None
    ) -> None:
        passed = 0
        while piece := await reader.read(fault.piece):
            await asyncio.sleep(fault.late_s + len(piece) / fault.bytes_per_s)
            piece = piece[: int(min(len(piece), max(0, min(fault.resets_after, fault.stalls_after) - passed)))]
            passed += len(piece)
            writer.write(piece)
            if copy is not None:
                copy += piece
            await writer.drain()
            if passed >= fault.stalls_after:
                await asyncio.Event().wait()
            if passed >= fault.resets_after:
                raise ConnectionResetError
        await asyncio.sleep(fault.closes_late_s)
        if writer.can_write_eof():
            writer.write_eof()

    async def close(self) -> None:
        """Ends all connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def line_to(target: int, sending: Fault = FINE, receiving: Fault = FINE) -> AsyncIterator[Line]:
    """A line to a port; `sending` is what happens to the clients' bytes, `receiving` to those that come back."""
    line = Line(target, sending, receiving)
    server = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        await line.close()
