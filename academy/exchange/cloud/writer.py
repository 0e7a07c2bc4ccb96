"""Coalesced sending: what is written in one turn of the loop leaves together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from academy.serialize import Part

CHUNK_BYTES = 1_000_000
"""A WebSocket message is closed when it has reached this size."""
LATE_SECONDS = 0.005
"""How long a record that can wait for company waits for it."""


class Writer:
    """Sends records over one WebSocket; a record is never cut in two.

    Invariant: `_parts` is what was queued since the last full chunk, `_size` its
    bytes, and `_chunks` the full ones before it.

    Args:
        send: sends one WebSocket message; an error of it ends the writer.
        late: returns the record that can wait for company (see `later`), or nothing.
    """

    def __init__(
        self, send: Callable[[bytes], Awaitable[None]], late: Callable[[], bytes]
    ) -> None:
        self._send = send
        self._late = late
        self._timer: asyncio.TimerHandle | None = None
        self._parts: list[Part] = []
        self._size = 0
        self._chunks: list[list[Part]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, record: Part) -> None:
        """Queue one record."""
        self._parts.append(record)
        self._queued(len(record))

    def put_parts(self, size: int, *parts: Part) -> None:
        """Queue one record of `size` bytes that comes in several buffers."""
        self._parts.extend(parts)
        self._queued(size)

    def later(self) -> None:
        """Ask for `late` with the next WebSocket message, or soon if there is none.

        What only says that something has arrived need not wake the far side.
        """
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LATE_SECONDS, self._late_is_due)

    def put_late(self) -> None:
        """Queue what could wait for company, if there is any."""
        if record := self._late():
            self.put(record)

    def _late_is_due(self) -> None:
        self._timer = None
        self.put_late()

    def _queued(self, size: int) -> None:
        self._size += size
        if self._size >= CHUNK_BYTES:
            self._chunks.append(self._parts)
            self._parts = []
            self._size = 0
        if not self._wake.is_set():
            self._wake.set()
            self._idle.clear()

    async def flushed(self) -> None:
        """Wait until everything queued has been handed to the WebSocket."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send what is queued until cancelled."""
        while True:
            await self._wake.wait()
            self.put_late()
            chunks, self._chunks = self._chunks, []
            if self._parts:
                chunks.append(self._parts)
                self._parts = []
                self._size = 0
            for chunk in chunks:
                await self._send(b"".join(chunk))
            if not self._parts and not self._chunks:
                self._wake.clear()
                self._idle.set()
