"""Mailboxes and sessions while a broker runs: state without rules."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from academy.exception import AcademyError, MailboxTerminatedError
from academy.exchange.presence import Presence
from academy.exchange.store import Envelope, MailboxRecord
from academy.identifier import EntityId, entity_id


@dataclass(frozen=True)
class Limits:
    """What a broker refuses, and how far it runs ahead of a consumer.

    Attributes:
        max_message_bytes: largest message.
        spill_bytes: largest message that is held in memory and stored with the others;
            the bodies of larger ones come in parts, which go to files.
        max_mailbox_messages: unsettled messages one mailbox may hold.
        max_mailbox_bytes: their bytes.
        window_messages: messages on their way to one consumer, not yet received.
        window_bytes: their bytes.
        message_lifetime: seconds that a message may wait until it is delivered; 0 is
            for ever.
        tombstone_lifetime: seconds that a terminated mailbox is remembered; 0 is for
            ever.
        max_namespace_mailboxes: mailboxes that are not terminated; this and the next
            ones are of all mailboxes of the broker, and 0 is no limit.
        max_namespace_messages: unsettled messages.
        max_namespace_bytes: their bytes.
        max_namespace_connections: sessions that are connected.
        messages_per_second: what its clients may send, all together; 0 is no limit.
        bytes_per_second: the same.
        burst_seconds: what they may send in so long may come at once.
    """

    max_message_bytes: int = 10_000_000_000
    max_mailbox_messages: int = 1_000_000
    max_mailbox_bytes: int = 10_000_000_000
    spill_bytes: int = 524_288
    window_messages: int = 4096
    window_bytes: int = 64_000_000
    message_lifetime: float = 0.0
    tombstone_lifetime: float = 0.0
    max_namespace_mailboxes: int = 0
    max_namespace_messages: int = 0
    max_namespace_bytes: int = 0
    max_namespace_connections: int = 0
    messages_per_second: float = 0.0
    bytes_per_second: float = 0.0
    burst_seconds: float = 5.0

    @property
    def quotas(self) -> dict[str, float]:
        """What the namespace as a whole may have and send, as far as it is limited."""
        return {
            key: most
            for key, most in vars(self).items()
            if most and (key.startswith("max_namespace") or key.endswith("per_second"))
        }


class Consumer(Protocol):
    """The far end of a session. No call may block or raise."""

    def deliver(self, envelope: Envelope) -> None:
        """Take a message for one of the attached mailboxes; `delivered` follows."""

    def delivered(self) -> None:
        """Learn that no more messages follow for now."""

    def confirm(self, sequence: int) -> None:
        """Everything up to this sequence number is stored or was refused."""

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        """A message was not stored, and why. `Broker.heard` once that is known."""

    def lost(self, uid: bytes, error: AcademyError) -> None:
        """A mailbox is no longer this consumer's."""

    def notice(self, changes: Mapping[bytes, Presence]) -> None:
        """Learn what is new of the mailboxes that this session watches."""

    def reset(self, error: AcademyError) -> None:
        """The session is over; it may connect again."""


Lease = tuple[int, bytes, bytes]
"""Of a message: its size << 1 | whether it is a response, its source, and its tag."""


class Mailbox:
    """A mailbox while the broker runs: what is stored of it, and who consumes it.

    Invariant: `leased` names exactly the messages delivered to the attached
    incarnation and not settled, by number; `repeated` names those of them that an
    earlier incarnation has had; `behind` is true when the store has more.
    """

    __slots__ = (
        "behind",
        "bytes",
        "completed",
        "count",
        "cursor",
        "incoming",
        "leased",
        "outgoing",
        "record",
        "repeated",
        "seen",
        "session",
    )

    def __init__(self, record: MailboxRecord, count: int = 0, size: int = 0) -> None:
        self.record = record
        self.count = count
        self.bytes = size
        self.session: Session | None = None
        self.seen: float | None = None
        self.leased: dict[int, Lease] = {}
        self.repeated: set[int] = set()
        self.cursor = 0
        self.behind = False
        self.incoming = self.outgoing = self.completed = 0

    @property
    def id(self) -> EntityId:
        """The owner's id."""
        record = self.record
        return entity_id(record.agent, record.uid, record.name)

    def is_answer(self, response: Envelope) -> bool:
        """Whether a response is to a request that the owner holds.

        Whom it answers, and what, is not for its sender to say.
        """
        lease = self.leased.get(response.answers)
        return (
            lease is not None and lease[1] == response.dest and lease[2] == response.tag
        )

    def terminated_error(self) -> MailboxTerminatedError:
        """Return the error for whoever still wants something of the owner."""
        return MailboxTerminatedError(self.id, self.record.reason)


class Session:
    """One consumer's link; it may be attached to many mailboxes.

    `in_flight` are the deliveries whose receipt was not acknowledged, oldest first;
    `large` are those whose body comes in parts, by number: they are received singly.
    `pops`: see `Broker.connect`.
    """

    __slots__ = (
        "attached",
        "behind",
        "consumer",
        "in_flight",
        "large",
        "open",
        "pops",
        "room_bytes",
        "room_messages",
        "uid",
        "watched",
    )

    def __init__(
        self, uid: bytes, consumer: Consumer, limits: Limits, pops: bool = False
    ) -> None:
        self.uid = uid
        self.consumer = consumer
        self.attached: dict[bytes, Mailbox] = {}
        self.in_flight: deque[tuple[Mailbox, Envelope]] = deque()
        self.large: dict[int, tuple[Mailbox, Envelope]] = {}
        self.behind: set[Mailbox] = set()
        self.room_messages = limits.window_messages
        self.room_bytes = limits.window_bytes
        self.watched: set[bytes] = set()
        self.pops = pops
        self.open = True

    def has_room(self) -> bool:
        """Whether the credit window lets another message through."""
        return self.room_messages > 0 and self.room_bytes > 0
