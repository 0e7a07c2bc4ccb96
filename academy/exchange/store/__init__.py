"""What a broker remembers: storage only, a few atomic operations, no rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from academy.exchange.store.bodies import Bodies

RESPONSE = 1
"""Flag of an envelope that nobody answers: it is settled when it was received."""
FROM_AGENT = 2
"""Flag of an envelope whose source is an agent."""
TO_AGENT = 4
"""Flag of an envelope whose destination is an agent."""
ONE_WAY = 8
"""Flag, beside `RESPONSE`, of an envelope that does not settle a request either."""
LARGE = 16
"""Flag of an envelope whose payload is a reference to a body (see `store.bodies`)."""
ADDRESS_FLAGS = RESPONSE | FROM_AGENT | TO_AGENT | ONE_WAY
"""Flags that are for a sender to say."""


class Envelope:
    """A message as the broker sees it: addresses, and a payload it never opens.

    Attributes:
        dest: uid of the destination, 16 bytes (refusals have a place of their own).
        src: uid of the source, 16 bytes.
        tag: 16 bytes that a request and its response share.
        flags: `RESPONSE`, `FROM_AGENT`, `TO_AGENT`, `ONE_WAY`, `LARGE`.
        payload: bytes of a body (or, in the local exchange, the message itself).
        size: bytes that count against limits; of a large message, its body's.
        number: place in the exchange's order, given when the message is stored.
        answers: of a response, the number of the request that it settles; of a
            request, how many milliseconds it may wait until it is delivered (0: for
            ever).
        lease: epoch of the first incarnation it was delivered to; 0 before that.
    """

    __slots__ = (
        "answers",
        "dest",
        "flags",
        "lease",
        "number",
        "payload",
        "redelivered",
        "size",
        "src",
        "tag",
    )

    def __init__(
        self,
        dest: bytes,
        src: bytes,
        tag: bytes,
        flags: int,
        payload: Any,
        size: int,
        answers: int = 0,
        number: int = 0,
        lease: int = 0,
    ) -> None:
        self.dest = dest
        self.src = src
        self.tag = tag
        self.flags = flags
        self.payload = payload
        self.size = size
        self.answers = answers
        self.number = number
        self.lease = lease
        self.redelivered = False


@dataclass(slots=True)
class MailboxRecord:
    """What is stored of a mailbox.

    Attributes:
        uid: 16 bytes of the owner's uid.
        agent: whether the owner is an agent (else a user).
        name: for people.
        classes: qualified class names of an agent, most derived first.
        epoch: how many incarnations have attached.
        incarnation: who attached last (random bytes of its own), so that it may resume.
        terminated: whether the owner is gone for good.
        creator: who registered it.
        reason: why it was terminated, if anybody said so.
        groups: ids of those whose members may use it, wherever they are.
    """

    uid: bytes
    agent: bool
    name: str | None = None
    classes: tuple[str, ...] = ()
    epoch: int = 0
    incarnation: bytes = b""
    terminated: bool = False
    creator: str = ""
    reason: str = ""
    groups: tuple[str, ...] = ()


@dataclass(slots=True)
class Changes:
    """What one transaction writes, all or nothing."""

    mailboxes: dict[bytes, MailboxRecord] = field(default_factory=dict)
    added: list[Envelope] = field(default_factory=list)
    large: list[Envelope] = field(default_factory=list)
    """Those of `added` that have a body."""
    leased: list[Envelope] = field(default_factory=list)
    """Messages that were stored before and whose lease has changed."""
    settled: list[tuple[bytes, int]] = field(default_factory=list)
    """(mailbox, number) of messages to remove."""
    cleared: list[bytes] = field(default_factory=list)
    """Mailboxes whose messages go, all of them."""
    sessions: dict[bytes, int] = field(default_factory=dict)
    """Last message taken from each session."""
    expiries: list[tuple[bytes, int, float]] = field(default_factory=list)
    """(mailbox, number, when) of messages that expire, in seconds since 1970."""
    removed: list[bytes] = field(default_factory=list)
    """Mailboxes that are forgotten."""

    def __bool__(self) -> bool:
        return bool(
            self.added
            or self.settled
            or self.sessions
            or self.mailboxes
            or self.leased
            or self.cleared
            or self.expiries
            or self.removed
        )


@dataclass(slots=True)
class Contents:
    """What a store holds when it is opened.

    Attributes:
        waiting: per mailbox, count and bytes of the messages in it.
        last_number: largest number of a message in it, or a larger one.
    """

    mailboxes: list[MailboxRecord] = field(default_factory=list)
    sessions: dict[bytes, int] = field(default_factory=dict)
    waiting: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    last_number: int = 0


class Store(Protocol):
    """Storage of one broker.

    Each operation is atomic and in force when it returns. A store that cannot do it
    raises `StorageError` and has changed nothing.

    Attributes:
        bodies: of large messages. They are written before their message is stored,
            and the store deletes them when it removes that.
    """

    bodies: Bodies

    async def open(self) -> Contents:
        """Get ready and tell what is there. May be called again after an error."""

    async def commit(self, changes: Changes) -> None:
        """Write all changes, or none."""

    @property
    def commit_now(self) -> Callable[[Changes], None] | None:
        """`commit` as a plain function; None where it waits for a disk or a network.

        Most turns of a broker have nothing else to wait for, and cost less then.
        """

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        """Return up to `limit` messages of a mailbox numbered above `after`."""

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        """Return messages that have expired by `now`, and when the next one will.

        Args:
            now: in seconds since 1970.
            limit: how many messages to look at; those that are stored no more do not
                come back.

        Returns:
            Some of those that have expired, and a time before which no other message
            expires, or None if none will. Messages come back each time, until they
            are settled or expire later.
        """

    async def close(self) -> None:
        """Release files and connections. May be called twice."""
