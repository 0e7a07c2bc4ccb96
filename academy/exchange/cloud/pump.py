"""The sending end of transfers, of clients and servers alike: bodies, part by part."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from academy.exception import StorageError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.writer import Writer
from academy.serialize import Part

Read = Callable[[int, int], Awaitable[list[Part]]]


class Outgoing:
    """A body on its way.

    Attributes:
        number: of the transfer.
        size: of the body.
        sent: bytes that were sent, or are on the far side from before.
        taken: bytes that the far side has taken.
        read: returns bytes at an offset, so many.
        failed: told why `read` has failed.
        moving: whether the next part is to be sent, or the window is full.
    """

    __slots__ = ("failed", "moving", "number", "read", "sent", "size", "taken")

    def __init__(
        self,
        number: int,
        size: int,
        offset: int,
        read: Read,
        failed: Callable[[StorageError], None],
    ) -> None:
        self.number = number
        self.size = size
        self.sent = self.taken = offset
        self.read = read
        self.failed = failed
        self.moving = True

    def next_part(self) -> int:
        """Return how many bytes may be sent now."""
        end = min(self.size, self.taken + protocol.WINDOW)
        return min(protocol.PART_BYTES, end - self.sent)


class Pump:
    """Sends bodies over one connection: of each a part in turn, one part at a time.

    What else there is to send goes first, but never for ever: where it fills the
    connection, a part leaves between any two messages of the WebSocket.

    Invariant: `_queue` holds those of `_bodies` that are `moving`, but the one at work.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._bodies: dict[int, Outgoing] = {}
        self._queue: deque[Outgoing] = deque()
        self._wake = asyncio.Event()

    def start(self, body: Outgoing) -> None:
        """Begin to send a body."""
        self._bodies[body.number] = body
        self._queue.append(body)
        self._wake.set()

    def taken(self, number: int, offset: int) -> bool:
        """Learn how much the far side has taken; return whether it is being sent."""
        body = self._bodies.get(number)
        if body is None:
            return False
        body.taken = max(body.taken, min(offset, body.sent))
        if not body.moving and body.next_part():
            body.moving = True
            self._queue.append(body)
            self._wake.set()
        return True

    def stop(self, number: int) -> None:
        """Send no more of a body."""
        self._bodies.pop(number, None)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            while self._queue:
                body = self._queue.popleft()
                if self._bodies.get(body.number) is body:
                    await self._send_part(body)
            self._wake.clear()
            await self._wake.wait()

    async def _send_part(self, body: Outgoing) -> None:
        size = body.next_part()
        try:
            parts = await body.read(body.sent, size)
        except StorageError as error:
            self.stop(body.number)
            body.failed(error)
            return
        await self._writer.turn()
        if self._bodies.get(body.number) is not body:
            return
        head = protocol.part_head(body.number, body.sent, size)
        self._writer.put_first(head, *parts)
        self._writer.flush()
        body.sent += size
        body.moving = body.next_part() > 0
        if body.moving:
            self._queue.append(body)
