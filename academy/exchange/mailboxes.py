"""The mailboxes of one broker, and what they take."""

from __future__ import annotations

from academy.exception import (
    AcademyError,
    BadEntityIdError,
    MailboxFullError,
    MessageTooLargeError,
    SupersededError,
)
from academy.exchange.mailbox import Limits, Mailbox
from academy.exchange.store import FROM_AGENT, TO_AGENT, Contents, Envelope
from academy.identifier import entity_id


class Mailboxes:
    """All mailboxes of one broker, and why they do not take a message.

    Attributes:
        by_uid: the mailboxes, terminated ones among them.
        limits: what is refused.
    """

    def __init__(self, limits: Limits) -> None:
        self.by_uid: dict[bytes, Mailbox] = {}
        self.limits = limits

    def load(self, contents: Contents) -> None:
        """Begin with what a store holds."""
        waiting = contents.waiting
        self.by_uid.clear()
        for record in contents.mailboxes:
            count, size = waiting.get(record.uid, (0, 0))
            self.by_uid[record.uid] = Mailbox(record, count, size)

    def live(self, uid: bytes) -> Mailbox:
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
        return None
