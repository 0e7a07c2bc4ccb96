"""Where a transport puts what arrives for one mailbox: an owner, or a queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from academy.exchange.transport import MailboxOwner
    from academy.message import Message


class Inbox:
    """Hands messages to an owner once there is one, or to `listen` until then.

    Invariants: the queue is empty once there is an owner. `_last` is the largest
    number under which a message came: a mailbox is delivered in the order of numbers,
    so that what comes under a smaller one has been here before.
    """

    __slots__ = ("_error", "_last", "_owner", "_queue", "_wake")

    def __init__(self) -> None:
        self._owner: MailboxOwner | None = None
        self._queue: deque[Message] = deque()
        self._error: Exception | None = None
        self._last = 0
        self._wake: asyncio.Event | None = None

    def start(self, owner: MailboxOwner) -> None:
        """Push what is here and what will come to an owner."""
        self._owner = owner
        while self._queue:
            owner.deliver(self._queue.popleft())
        if self._error is not None:
            owner.lost(self._error)

    def admit(self, number: int) -> bool:
        """Whether what comes under a number is new; it is to be delivered later."""
        if number <= self._last:
            return False
        self._last = number
        return True

    def deliver(self, message: Message, admitted: bool = False) -> None:
        """Take a message, once however often it comes."""
        if not admitted:
            if message.lease <= self._last:
                return
            self._last = message.lease
        if self._owner is not None:
            self._owner.deliver(message)
            return
        self._queue.append(message)
        if self._wake is not None:
            self._wake.set()

    def rewind(self, last: int) -> None:
        """Learn the largest number that the exchange has given away.

        One that has lost its latest messages (to a power cut, say) starts again below.
        """
        self._last = min(self._last, last)

    def held(self) -> Iterable[bytes]:
        """Name the requests that were taken and are not answered."""
        if self._owner is not None:
            return self._owner.held()
        return [message.tag for message in self._queue]

    def refused(self, message: Message, error: Exception) -> None:
        """Learn that a posted message was not taken."""
        if self._owner is not None:
            self._owner.refused(message, error)

    def lost(self, error: Exception) -> None:
        """Learn that the mailbox is gone."""
        self._error = error
        if self._owner is not None:
            self._owner.lost(error)
        elif self._wake is not None:
            self._wake.set()

    async def listen(self, timeout: float | None) -> AsyncGenerator[Message, None]:
        """Yield messages; end after `timeout` seconds without one."""
        self._wake = wake = asyncio.Event()
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._error is not None:
                raise self._error
            wake.clear()
            try:
                await asyncio.wait_for(wake.wait(), timeout)
            except TimeoutError:
                return
