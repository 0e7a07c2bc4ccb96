"""How messages leave: small ones at once, large ones by way of postings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from academy.exchange.cloud import protocol
from academy.exchange.cloud.postings import Posting, Postings
from academy.exchange.directory import address_flags
from academy.exchange.outbox import Outbox
from academy.exchange.store import LARGE
from academy.message import Message, encode_body

if TYPE_CHECKING:
    from academy.exception import AcademyError
    from academy.exchange.cloud.writer import Writer
    from academy.exchange.inbox import Inbox
    from academy.serialize import Part


class MessageSender:
    """Sends the messages of a link, each until it is confirmed.

    Args:
        call: asks the exchange, through this connection or a later one.

    Attributes:
        outbox: what the exchange may not have stored; it is sent again through each
            new connection, in order.
        postings: large messages, and what waits behind them.
        writer: of the connection that is in use, if there is one.
    """

    __slots__ = ("_error", "call", "outbox", "postings", "writer")

    def __init__(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.call = call
        self.outbox = Outbox()
        self.postings = Postings(self)
        self.writer: Writer | None = None
        self._error: AcademyError | None = None

    def post(
        self,
        message: Message,
        inbox: Inbox,
        stored: asyncio.Future[None] | None = None,
    ) -> None:
        """Send a message, now or through the next connection.

        Raises:
            MessageTooLargeError: it is above the exchange's limit.
            AcademyError: the link has given up.
            Exception: the body does not serialize.
        """
        if self._error is not None:
            raise self._error
        parts = encode_body(message)
        size = sum(map(len, parts))
        postings = self.postings
        if (size > postings.inline or postings.lanes) and postings.take(
            message, inbox, parts, size, stored
        ):
            return
        self._put(message, inbox, parts, size, stored)

    def _put(
        self,
        message: Message,
        inbox: Inbox,
        parts: list[Part],
        size: int,
        stored: asyncio.Future[None] | None,
    ) -> None:
        flags = protocol.AWAITED if stored else 0
        outbox = self.outbox
        record = _send_record(message, outbox.last_sequence + 1, flags, parts, size)
        outbox.add(message, inbox, record, stored)
        if self.writer is not None:
            self.writer.put(record)

    def fail(self, error: AcademyError) -> None:
        """Give everything up that was not confirmed, and what will be posted."""
        self._error = error
        self.postings.fail(error)
        self.outbox.fail(error)

    def withdraw(self, message: Message) -> None:
        """Learn that nobody waits for the answer to a request."""
        if self.postings.lanes:
            self.postings.withdraw(message)

    def unconfirmed(self) -> Iterator[Message]:
        """Return what the exchange may not have."""
        for sent in self.outbox:
            yield sent.message
        yield from self.postings.waiting()

    # --- what postings do (Sender)

    def put(self, posting: Posting) -> None:
        self._put(
            *(posting.message, posting.inbox, posting.parts),
            *(posting.size, posting.stored),
        )

    def put_large(self, posting: Posting) -> None:
        flags = LARGE | (protocol.AWAITED if posting.stored else 0)
        reference = protocol.TRANSFER.pack(posting.number)
        sequence = self.outbox.last_sequence + 1
        record = _send_record(
            posting.message, sequence, flags, [reference], len(reference)
        )
        self.outbox.add(posting.message, posting.inbox, record, posting.stored, posting)
        if self.writer is not None:
            self.writer.put(record)

    def put_hollow(self, posting: Posting) -> None:
        entry = self.outbox.entry_of(posting)
        if entry is None:
            self._put(posting.message, posting.inbox, [], 0, posting.stored)
            return
        entry.record = _send_record(posting.message, entry.sequence, 0, [], 0)
        entry.posting = None

    def give_up(self, posting: Posting, error: Exception) -> None:
        entry = self.outbox.entry_of(posting)
        if entry is not None:
            self.outbox.give_up(entry, error)


def _send_record(
    message: Message, sequence: int, flags: int, parts: list[Part], size: int
) -> bytes:
    head = protocol.message_head(
        protocol.SEND,
        address_flags(message) | flags,
        sequence,
        message.lease or message.lifetime,
        message.dest.uid.bytes,
        message.src.uid.bytes,
        message.tag,
        size,
    )
    return b"".join((head, *parts))
