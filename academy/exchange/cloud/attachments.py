"""The mailboxes that an exchange has attached to a link."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from academy.exception import SupersededError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.calls import batched
from academy.exchange.cloud.downloads import Downloads
from academy.exchange.errors import unpack_error
from academy.exchange.presence import pack_place
from academy.exchange.store import FROM_AGENT, LARGE
from academy.identifier import EntityId, entity_id
from academy.message import Message
from academy.scheduler.here import place

if TYPE_CHECKING:
    from academy.exception import AcademyError
    from academy.exchange.cloud.calls import Calls
    from academy.exchange.cloud.writer import Writer
    from academy.exchange.inbox import Inbox

_HEAD = protocol.MESSAGE.size
_unpack = protocol.MESSAGE.unpack_from


class Attachment(Protocol):
    """A mailbox that a link serves."""

    mailbox_id: EntityId
    inbox: Inbox
    incarnation: bytes
    token: str | None


class Attachments:
    """The mailboxes that are attached here, and what comes for them.

    Attributes:
        downloads: large messages that are coming, and what waits behind them.
    """

    __slots__ = ("_attached", "downloads")

    def __init__(self) -> None:
        self._attached: dict[bytes, Attachment] = {}
        self.downloads = Downloads()

    def get(self, uid: bytes) -> Attachment | None:
        """Return what is attached under an id."""
        return self._attached.get(uid)

    def add(self, box: Attachment) -> None:
        """Learn that a mailbox is attached, to the latest of those who asked."""
        uid = box.mailbox_id.uid.bytes
        older = self._attached.get(uid)
        self._attached[uid] = box
        if older is not None:
            older.inbox.lost(SupersededError(box.mailbox_id))

    def remove(self, uid: bytes) -> list[int]:
        """Let go of a mailbox; return the numbers of what its owner has not got."""
        self._attached.pop(uid, None)
        return self.downloads.forget(uid)

    def lost(self, uid: bytes, error: Exception) -> None:
        """Learn that a mailbox is not attached any more."""
        box = self._attached.get(uid)
        if box is not None:
            self.remove(uid)
            box.inbox.lost(error)

    def fail(self, error: AcademyError) -> None:
        """Tell all owners that nothing will come any more."""
        attached, self._attached = self._attached, {}
        for box in attached.values():
            box.inbox.lost(error)

    def again(
        self,
        calls: Calls,
        writer: Writer,
        last_number: int,
        tokens: Mapping[bytes, str],
        posted: Iterable[Message],
    ) -> None:
        """Attach everything through a new connection.

        Args:
            calls: to ask with.
            writer: of the connection.
            last_number: the largest under which the exchange has delivered a message.
            tokens: that the exchange has issued, by mailbox.
            posted: what the exchange may not have stored.
        """
        boxes = list(self._attached.values())
        if not boxes:
            return
        for box in boxes:
            box.inbox.rewind(last_number)
        for batch in _in_calls(self._holdings(tokens, posted)):
            attached, mailboxes = zip(*batch, strict=True)
            done = calls.ask(writer, method="attach", mailboxes=mailboxes)
            done.add_done_callback(functools.partial(self._attached_again, attached))
        for coming in batched(self.downloads.coming().items()):
            # What is still there is offered again, and goes on where it was.
            mailboxes = dict(coming)
            calls.ask(writer, self._missing, method="missing", mailboxes=mailboxes)

    def _missing(self, numbers: list[int]) -> None:
        for number in numbers:
            self.downloads.drop(number)

    def _attached_again(
        self, boxes: Sequence[Attachment], done: asyncio.Future[Any]
    ) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        for box, problem in zip(boxes, done.result(), strict=True):
            if problem is not None:
                uid = box.mailbox_id.uid.bytes
                if self._attached.get(uid) is box:
                    self.remove(uid)
                box.inbox.lost(unpack_error(problem))

    def _holdings(
        self, tokens: Mapping[bytes, str], posted: Iterable[Message]
    ) -> Iterator[tuple[Attachment, dict[str, Any]]]:
        """Yield what to say of each mailbox, in steps where that is a lot."""
        held = {uid: list(box.inbox.held()) for uid, box in self._attached.items()}
        for uid in held if self.downloads.lanes else ():
            held[uid] += self.downloads.held(uid)
        for message in posted:
            uid = message.src.uid.bytes
            if uid in held and message.is_response():
                held[uid].append(message.tag)
        for uid, box in self._attached.items():
            token = tokens.get(uid, box.token)
            *steps, last = batched(held[uid], protocol.HELD_AT_ONCE) or [[]]
            for tags in steps:
                yield box, attach_arguments(box, token, tags, resume=True, more=True)
            yield box, attach_arguments(box, token, last, resume=True)

    def deliver(self, record: memoryview) -> bool:
        """Take a message; return whether it is here, and not only begun."""
        _, _, flags, number, _, dest, src, tag = _unpack(record)
        large = bool(flags & LARGE)
        box = self._attached.get(dest)
        if box is None:
            return not large
        message = Message(
            entity_id(bool(flags & FROM_AGENT), src),
            box.mailbox_id,
            tag,
            None,
            record[_HEAD:],
            None,
            number,
            bool(flags & protocol.REDELIVERED),
        )
        if large or self.downloads.lanes:
            reference = bytes(record[_HEAD:]) if large else None
            self.downloads.take(message, box.inbox, reference)
        else:
            box.inbox.deliver(message)
        return not large


def attach_arguments(
    box: Attachment,
    token: str | None,
    held: Iterable[bytes] = (),
    *,
    resume: bool = False,
    more: bool = False,
) -> dict[str, Any]:
    """Describe a mailbox to attach, in the words of the call."""
    return {
        "uid": box.mailbox_id.uid.hex,
        "token": token,
        "incarnation": box.incarnation.hex(),
        "resume": resume,
        "held": [tag.hex() for tag in held],
        "more": more,
        "place": pack_place(place()),
    }


def _in_calls(
    items: Iterable[tuple[Attachment, dict[str, Any]]],
) -> Iterator[list[tuple[Attachment, dict[str, Any]]]]:
    """Cut what there is to attach into calls that are not too large."""
    batch: list[tuple[Attachment, dict[str, Any]]] = []
    tags = 0
    for box, item in items:
        tags += len(item["held"])
        is_full = len(batch) == protocol.MAILBOXES_AT_ONCE
        if batch and (is_full or tags > protocol.HELD_AT_ONCE):
            yield batch
            batch, tags = [], len(item["held"])
        batch.append((box, item))
    if batch:
        yield batch
