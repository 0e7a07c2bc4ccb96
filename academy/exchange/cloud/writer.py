"""Coalesced sending: what is written in one turn of the loop leaves together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from academy.serialize import Part

CHUNK_BYTES = 1_000_000
"""A WebSocket message is closed when it has reached this size."""
LATE_SECONDS = 0.005
"""How long a record that can wait for company waits for it."""

Send = Callable[[bytes], "asyncio.Future[None] | None"]


class Writer:
    """Sends records over one WebSocket; a record is never cut in two.

    Invariants: `_parts` is what was queued since the last full chunk, `_size` its
    bytes, and `_chunks` the full ones before it. `_due` says that a callback will
    send them; `_room` is what it waits for if there is none. `_waiting` says that there
    is something `late` since it was last taken; `_accompanied` that it was, since the
    timer runs.

    Args:
        send: sends one WebSocket message, and returns what is done when there is room
            for the next one, if there is none. A lost connection ends the writer: the
            reader of the WebSocket learns of it as well.
        late: returns the record that can wait for company (see `later`), or nothing.

    Attributes:
        sent: bytes of the WebSocket messages so far.
    """

    def __init__(self, send: Send, late: Callable[[], bytes]) -> None:
        self._send = send
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = self._accompanied = False
        self._parts: list[Part] = []
        self._size = 0
        self._chunks: deque[list[Part]] = deque()
        self._due = False
        self._room: asyncio.Future[None] | None = None
        self._closed = False
        self.sent = 0

    def put(self, record: Part) -> None:
        """Queue one record."""
        self._parts.append(record)
        self._size += len(record)
        if self._size >= CHUNK_BYTES:
            self._close_chunk()
        self.expect()

    def put_parts(self, size: int, *parts: Part) -> None:
        """Queue one record of `size` bytes, in several buffers, until `flush`."""
        self._parts += parts
        self._size += size
        if self._size >= CHUNK_BYTES:
            self._close_chunk()

    def expect(self) -> None:
        """Send what this turn of the loop leads to in the next one, at its end."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self.flush)

    @property
    def queued(self) -> bool:
        """Whether there is something to send."""
        return bool(self._parts or self._chunks)

    def later(self) -> None:
        """Ask for `late` with the next WebSocket message, or soon if there is none.

        What only says that something has arrived need not wake the far side.
        """
        self._waiting = True
        if self._timer is None:
            self._accompanied = False
            self._timer = self._loop.call_later(LATE_SECONDS, self._late_is_due)

    def put_late(self) -> None:
        """Queue what could wait for company, if there is any."""
        self._waiting, self._accompanied = False, True
        if record := self._late():
            self.put(record)

    def _late_is_due(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._accompanied:  # it came after the last message, and one may follow soon
            self.later()
        else:
            self.put_late()

    def _close_chunk(self) -> None:
        self._chunks.append(self._parts)
        self._parts = []
        self._size = 0

    def put_first(self, *parts: Part) -> None:
        """Queue one record ahead of all others, until `flush`."""
        self._chunks.appendleft(list(parts))

    async def turn(self) -> None:
        """Wait for room, or until the others have sent a message in it."""
        self.flush()
        if self._room is not None:
            await asyncio.wait([self._room])

    async def flushed(self) -> None:
        """Wait until everything queued has been handed to the WebSocket."""
        self.flush()
        while self._room is not None:
            await asyncio.wait([self._room])

    async def close(self) -> None:
        """Send nothing more. May be called twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._room is not None:
            self._room.cancel()
            await asyncio.wait([self._room])

    def flush(self) -> None:
        """Send what is queued now, as far as there is room."""
        self._due = True  # what is put meanwhile needs no callback
        try:
            while self._parts or self._chunks:
                if self._closed or self._room is not None:
                    break
                data = self._next()
                self.sent += len(data)
                self._room = self._send(data)
                if self._room is not None:
                    self._room.add_done_callback(self._has_room)
        except ConnectionError:
            self._closed = True
        finally:
            self._due = False

    def _has_room(self, room: asyncio.Future[None]) -> None:
        self._room = None
        if room.cancelled() or room.exception() is not None:
            self._closed = True
        else:
            self.flush()

    def _next(self) -> bytes:
        """Return the next WebSocket message."""
        if self._chunks:
            return b"".join(self._chunks.popleft())
        parts, self._parts = self._parts, []
        self._size = 0
        if self._waiting:
            self._waiting = False
            parts.append(self._late())
        self._accompanied = True
        return b"".join(parts)
