"""The mailboxes of one broker, and what they take."""

from __future__ import annotations

from collections.abc import Collection

from academy.exception import (
    AcademyError,
    BadEntityIdError,
    ForbiddenError,
    MailboxFullError,
    MessageTooLargeError,
    QuotaExceededError,
    SupersededError,
)
from academy.exchange.mailbox import Limits, Mailbox
from academy.exchange.store import (
    FROM_AGENT,
    TO_AGENT,
    Changes,
    Contents,
    Envelope,
    MailboxRecord,
)
from academy.identifier import entity_id

SPARE = 16
"""Mailboxes of users beyond the quota: who has used it up has to get in to tidy up."""


class Usage:
    """How many messages, and bytes of them, all mailboxes of a broker have."""

    __slots__ = ("bytes", "messages")

    def __init__(self) -> None:
        self.messages = self.bytes = 0


class Mailboxes:
    """All mailboxes of one broker, and why they do not take a message.

    Attributes:
        by_uid: the mailboxes, terminated ones among them.
        live: how many of them are not terminated.
        limits: what is refused.
        usage: the sum over all of them. None where no quota asks for it, since each
            message would pay for that.
    """

    def __init__(self, limits: Limits) -> None:
        self.by_uid: dict[bytes, Mailbox] = {}
        self.live = 0
        self.limits = limits
        has_quota = limits.max_namespace_messages or limits.max_namespace_bytes
        self.usage = Usage() if has_quota else None

    def load(self, contents: Contents) -> None:
        """Begin with what a store holds."""
        waiting = contents.waiting
        self.by_uid.clear()
        self.live = 0
        if self.usage is not None:
            self.usage.messages = self.usage.bytes = 0
        for record in contents.mailboxes:
            box = self.by_uid[record.uid] = Mailbox(record)
            self.live += not record.terminated
            self.fill(box, *waiting.get(record.uid, (0, 0)))

    def fill(self, box: Mailbox, messages: int, size: int) -> None:
        """Count messages that come into a mailbox; below 0, those that leave it."""
        box.count += messages
        box.bytes += size
        if (usage := self.usage) is not None:
            usage.messages += messages
            usage.bytes += size

    def register(
        self, changes: Changes, records: Collection[MailboxRecord]
    ) -> list[Mailbox]:
        """Make mailboxes, all or none, and return those that are new.

        Raises:
            ForbiddenError: one exists and was registered by somebody else.
            QuotaExceededError: there are too many.
        """
        new: dict[bytes, MailboxRecord] = {}
        for record in records:
            box = self.by_uid.get(record.uid)
            if box is None:
                new[record.uid] = record
            elif box.record.creator != record.creator:
                raise ForbiddenError(f"{box.id} was registered by somebody else")
        most = self.limits.max_namespace_mailboxes
        spare = 0 if any(record.agent for record in new.values()) else SPARE
        if most and new and self.live + len(new) > most + spare:
            raise QuotaExceededError(
                "max_namespace_mailboxes", most, self.live, len(new)
            )
        self.live += len(new)
        changes.mailboxes.update(new)
        boxes = {uid: Mailbox(record) for uid, record in new.items()}
        self.by_uid.update(boxes)
        return list(boxes.values())

    def bury(self, changes: Changes, box: Mailbox, reason: str) -> None:
        """Terminate a mailbox; what is in it is not looked at here."""
        box.record.terminated = True
        box.record.reason = reason
        changes.mailboxes[box.record.uid] = box.record
        self.live -= 1

    def get_live(self, uid: bytes) -> Mailbox:
        """Return a mailbox that is not terminated.

        Raises:
            BadEntityIdError: there is no such mailbox.
            MailboxTerminatedError: it is terminated.
        """
        box = self.by_uid.get(uid)
        if box is None:
            raise BadEntityIdError(entity_id(True, uid))
        if box.record.terminated:
            raise box.terminated_error()
        return box

    def not_attached(self, envelope: Envelope) -> AcademyError:
        """Say why somebody may not send as the source of a message."""
        source = entity_id(bool(envelope.flags & FROM_AGENT), envelope.src)
        box = self.by_uid.get(envelope.src)
        if box is None:
            return BadEntityIdError(source)
        if box.record.terminated:
            return box.terminated_error()
        return SupersededError(source)

    def obstacle(self, box: Mailbox | None, envelope: Envelope) -> AcademyError | None:
        """Say why a mailbox does not take a message that is no response; or None."""
        limits = self.limits
        if box is None:
            dest = entity_id(bool(envelope.flags & TO_AGENT), envelope.dest)
            return BadEntityIdError(dest)
        if box.record.terminated:
            return box.terminated_error()
        if envelope.size > limits.max_message_bytes:
            return MessageTooLargeError(envelope.size, limits.max_message_bytes)
        if box.count >= limits.max_mailbox_messages:
            return MailboxFullError(box.id, f"{box.count} unsettled messages")
        if box.bytes + envelope.size > limits.max_mailbox_bytes:
            return MailboxFullError(box.id, f"{box.bytes} unsettled bytes")
        if self.usage is not None:
            return self._beyond_quota(self.usage, envelope.size)
        return None

    def _beyond_quota(self, usage: Usage, size: int) -> AcademyError | None:
        most = self.limits.max_namespace_messages
        if most and usage.messages >= most:
            return QuotaExceededError("max_namespace_messages", most, usage.messages)
        most = self.limits.max_namespace_bytes
        if most and usage.bytes + size > most:
            return QuotaExceededError("max_namespace_bytes", most, usage.bytes, size)
        return None
