"""A network that fails: a TCP proxy that cuts, stalls and delays connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Self

CHUNK = 65_536


class TcpProxy:
    """Forwards connections to a port of this machine, for as long as it likes.

    Args:
        target: the port, or who says for each connection which one.

    Attributes:
        port: where it listens.
        delay: seconds that each piece of data takes in either direction.
        budget: says how many bytes a new connection lives for, both directions taken
            together; None is for ever.
        accepted: connections so far.
        held: set when something waits for `resume`; `mute` and `deafen` clear it.
        forwarded: bytes so far, in both directions.
    """

    def __init__(self, target: int | Callable[[], int]) -> None:
        self.port = 0
        self.delay = 0.0
        self.budget: Callable[[], int] | None = None
        self.accepted = 0
        self.forwarded = 0
        self._target = target if callable(target) else lambda: target
        self._arrival = asyncio.Condition()
        self.held = asyncio.Event()
        self._inward, self._outward = asyncio.Event(), asyncio.Event()
        self.resume()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        ending = list(self._connections)
        self.cut()
        for connection in ending:
            await connection.ended.wait()
        await self._server.wait_closed()

    def cut(self) -> int:
        """Break every connection, what is under way included; return how many."""
        connections, self._connections = self._connections, set()
        for connection in connections:
            connection.abort()
        return len(connections)

    def stall(self) -> None:
        """Forward nothing any more, as a dead switch would do."""
        self._inward.clear()
        self._outward.clear()

    def mute(self) -> None:
        """Forward nothing of what the target says."""
        self._set(self._inward, self._outward)

    def deafen(self) -> None:
        """Forward nothing of what the target is told."""
        self._set(self._outward, self._inward)

    def _set(self, open_: asyncio.Event, closed: asyncio.Event) -> None:
        self.held.clear()
        closed.clear()
        open_.set()

    def resume(self) -> None:
        """Forward again what has been kept meanwhile."""
        self._inward.set()
        self._outward.set()

    def heal(self) -> None:
        """Let connections live that come from now on."""
        self.budget = None

    async def has_accepted(self, count: int) -> None:
        """Wait for so many connections, counted from the beginning."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: self.accepted >= count)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with self._arrival:
            self.accepted += 1
            self._arrival.notify_all()
        connection = _Connection(writer, self.budget and self.budget())
        self._connections.add(connection)
        try:
            await self._serve(connection, reader, writer)
        finally:
            connection.abort()
            self._connections.discard(connection)
            connection.ended.set()

    async def _serve(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        try:
            far = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            return
        connection.writers.append(far[1])
        if connection.aborted:
            return
        ways = [
            asyncio.create_task(
                self._forward(connection, reader, far[1], self._inward)
            ),
            asyncio.create_task(
                self._forward(connection, far[0], writer, self._outward)
            ),
            connection.abortion,
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways[:2]:
            way.cancel()
        await asyncio.wait(ways[:2])

    async def _forward(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        open_: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if not open_.is_set():
                    self.held.set()
                    await open_.wait()
                if connection.budget is not None:
                    data = data[: connection.budget]
                    connection.budget -= len(data)
                self.forwarded += len(data)
                writer.write(data)
                await writer.drain()
                if connection.budget == 0:
                    return


class _Connection:
    """One connection that is forwarded."""

    def __init__(self, writer: asyncio.StreamWriter, budget: int | None) -> None:
        self.writers = [writer]
        self.budget = budget
        self.aborted = False
        self.abortion: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    def abort(self) -> None:
        self.aborted = True
        for writer in self.writers:
            writer.transport.abort()
        if not self.abortion.done():
            self.abortion.set_result(None)
