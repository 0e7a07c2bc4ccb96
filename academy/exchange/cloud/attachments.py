"""The mailboxes that an exchange has attached to a link."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from academy.exception import SupersededError
from academy.exchange.cloud import protocol
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
        mailboxes = self._holdings(tokens, posted)
        done = calls.ask(writer, method="attach", mailboxes=mailboxes)
        done.add_done_callback(functools.partial(self._attached_again, boxes))
        if coming := self.downloads.coming():
            # What is still there is offered again, and goes on where it was.
            calls.ask(writer, self._missing, method="missing", mailboxes=coming)

    def _missing(self, numbers: list[int]) -> None:
        for number in numbers:
            self.downloads.drop(number)

    def _attached_again(
        self, boxes: list[Attachment], done: asyncio.Future[Any]
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
    ) -> list[dict[str, Any]]:
        held = {uid: list(box.inbox.held()) for uid, box in self._attached.items()}
        for uid in held if self.downloads.lanes else ():
            held[uid] += self.downloads.held(uid)
        for message in posted:
            uid = message.src.uid.bytes
            if uid in held and message.is_response():
                held[uid].append(message.tag)
        return [
            attach_arguments(
                box, tokens.get(uid, box.token), resume=True, held=held[uid]
            )
            for uid, box in self._attached.items()
        ]

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
    *,
    resume: bool = False,
    held: list[bytes] | None = None,
) -> dict[str, Any]:
    """Describe a mailbox to attach, in the words of the call."""
    return {
        "uid": box.mailbox_id.uid.hex,
        "token": token,
        "incarnation": box.incarnation.hex(),
        "resume": resume,
        "held": [tag.hex() for tag in held or ()],
        "place": pack_place(place()),
    }
