"""Messages that an exchange has not confirmed yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from academy.exchange.cloud.postings import Posting
    from academy.exchange.inbox import Inbox
    from academy.message import Message


@dataclass(slots=True)
class Unconfirmed:
    """A message under its sequence number.

    Attributes:
        inbox: of the sender, to learn of a refusal when nobody waits for `stored`.
        record: what was sent, to be sent again; empty once it was refused.
        stored: done when the exchange has the message.
        posting: of a large message, its body and how to send that again, until it was
            refused.
        void: whether it was given up, so that nothing will be confirmed of it.
    """

    sequence: int
    message: Message
    inbox: Inbox
    record: bytes = b""
    stored: asyncio.Future[None] | None = None
    posting: Posting | None = None
    void: bool = False


class Outbox:
    """Everything posted and not confirmed, oldest first, numbered without gaps."""

    __slots__ = ("_entries", "_sequence")

    def __init__(self) -> None:
        self._entries: deque[Unconfirmed] = deque()
        self._sequence = 0

    def __iter__(self) -> Iterator[Unconfirmed]:
        return iter(self._entries)

    @property
    def last_sequence(self) -> int:
        """The number that the latest entry has got."""
        return self._sequence

    def add(
        self,
        message: Message,
        inbox: Inbox,
        record: bytes = b"",
        stored: asyncio.Future[None] | None = None,
        posting: Posting | None = None,
    ) -> int:
        """Keep a message and return its sequence number."""
        sequence = self._sequence = self._sequence + 1
        entry = Unconfirmed(sequence, message, inbox, record, stored, posting)
        self._entries.append(entry)
        return sequence

    def confirm(self, sequence: int) -> None:
        """Forget everything up to a sequence number: it is stored."""
        entries = self._entries
        while entries and (entries[0].sequence <= sequence or entries[0].void):
            stored = entries.popleft().stored
            if stored is not None and not stored.done():
                stored.set_result(None)

    def refuse(self, sequence: int, error: Exception) -> None:
        """Tell the sender of a message that it was not stored."""
        entries = self._entries
        at = sequence - entries[0].sequence if entries else -1
        if not 0 <= at < len(entries):
            return
        entry = entries[at]
        entry.record, entry.posting = b"", None
        if entry.stored is None:
            entry.inbox.refused(entry.message, error)
        elif not entry.stored.done():
            entry.stored.set_exception(error)

    def entry_of(self, posting: Posting) -> Unconfirmed | None:
        """Return what was posted of a large message, unless it was confirmed."""
        return next((e for e in self._entries if e.posting is posting), None)

    def give_up(self, entry: Unconfirmed, error: Exception) -> None:
        """Send a message not again, since the exchange would not take it any more."""
        self.refuse(entry.sequence, error)
        entry.void = True
        self.confirm(0)

    async def drained(self) -> None:
        """Wait until everything that is here now is confirmed or refused."""
        if self._entries:
            last = self._entries[-1]
            if last.stored is None:
                last.stored = asyncio.get_running_loop().create_future()
            await asyncio.wait([last.stored])

    def fail(self, error: Exception) -> None:
        """Forget everything; whoever waits gets the error."""
        entries, self._entries = self._entries, deque()
        for entry in entries:
            stored = entry.stored
            if stored is not None and not stored.done():
                stored.set_exception(error)
                stored.exception()  # who waited may be gone: no complaint about it
