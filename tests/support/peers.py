"""Clients of a broker without any wire: they record what the broker tells them."""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import uuid4

from academy.exception import AcademyError, StorageError
from academy.exchange.broker import Broker
from academy.exchange.mailbox import Session
from academy.exchange.store import (
    FROM_AGENT,
    ONE_WAY,
    RESPONSE,
    TO_AGENT,
    Changes,
    Contents,
    Envelope,
    MailboxRecord,
    Store,
)
from academy.exchange.store.memory import MemoryStore


@dataclass(frozen=True)
class Delivery:
    """A message as it came: envelopes change afterwards."""

    src: bytes
    tag: bytes
    payload: bytes
    number: int
    response: bool
    redelivered: bool


def delivery(envelope: Envelope) -> Delivery:
    return Delivery(
        envelope.src,
        envelope.tag,
        envelope.payload,
        envelope.number,
        bool(envelope.flags & RESPONSE),
        envelope.redelivered,
    )


def agent(name: str | None = None, *classes: str, creator: str = "") -> MailboxRecord:
    return MailboxRecord(uuid4().bytes, True, name, classes, creator=creator)


@dataclass
class Peer:
    """A program with one mailbox and one session, which it may lose and take up.

    `posted` is what it would keep in its outbox: sequence number -> envelope. `hears`
    says whether it confirms refusals.
    """

    broker: Broker
    uid: bytes
    incarnation: bytes = field(default_factory=lambda: os.urandom(16))
    session_uid: bytes = field(default_factory=lambda: os.urandom(16))
    inbox: list[Delivery] = field(default_factory=list)
    confirmed: int = 0
    refused: dict[int, AcademyError] = field(default_factory=dict)
    losses: list[AcademyError] = field(default_factory=list)
    resets: list[AcademyError] = field(default_factory=list)
    hears: bool = True
    posted: dict[int, Envelope] = field(default_factory=dict)
    session: Session = field(init=False)
    _sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def connect(self) -> None:
        """Connect, anew if it was connected."""
        self.session = self.broker.connect(self.session_uid, self)

    async def attach(self, *, resume: bool = False, held: list[bytes] = []) -> Peer:  # noqa: B006
        if not hasattr(self, "session"):
            self.connect()
        await self.broker.attach(
            self.session, self.uid, self.incarnation, resume=resume, held=held
        )
        self.broker.start(self.session, [self.uid])
        await self.broker.settle()
        return self

    async def reconnect(self, held: list[bytes] = []) -> None:  # noqa: B006
        """Do what a client does after its connection was lost."""
        self.connect()
        known, _ = await self.broker.known(self.session)
        await self.attach(resume=True, held=held)
        for sequence, envelope in self.posted.items():
            if sequence > known:
                self.broker.post(self.session, sequence, again(envelope))
        await self.broker.settle()

    def disconnect(self) -> None:
        self.broker.disconnect(self.session)

    def post(self, envelope: Envelope) -> int:
        sequence = next(self._sequence)
        self.posted[sequence] = again(envelope)
        self.broker.post(self.session, sequence, envelope)
        return sequence

    def request(self, dest: bytes, payload: bytes = b"?") -> bytes:
        """Post a request and return its tag."""
        tag = os.urandom(16)
        flags = FROM_AGENT | TO_AGENT
        self.post(Envelope(dest, self.uid, tag, flags, payload, len(payload)))
        return tag

    def one_way(self, dest: bytes, tag: bytes, payload: bytes = b".") -> int:
        flags = FROM_AGENT | TO_AGENT | RESPONSE | ONE_WAY
        return self.post(Envelope(dest, self.uid, tag, flags, payload, len(payload)))

    def respond(self, request: Delivery, payload: bytes = b"!") -> int:
        flags = FROM_AGENT | TO_AGENT | RESPONSE
        size, number = len(payload), request.number
        return self.post(
            Envelope(request.src, self.uid, request.tag, flags, payload, size, number)
        )

    def acknowledge(self, count: int = 1) -> None:
        self.broker.acknowledge(self.session, count)

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.inbox]

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        assert envelope.dest == self.uid
        self.inbox.append(delivery(envelope))

    def delivered(self) -> None:
        pass

    def confirm(self, sequence: int) -> None:
        assert sequence >= self.confirmed
        self.confirmed = sequence
        for number in [n for n in self.posted if n <= sequence]:
            del self.posted[number]

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        self.refused[sequence] = error
        if self.hears:
            self.broker.heard(self.session, sequence)

    def lost(self, uid: bytes, error: AcademyError) -> None:
        assert uid == self.uid
        self.losses.append(error)

    def reset(self, error: AcademyError) -> None:
        self.resets.append(error)


def again(envelope: Envelope) -> Envelope:
    """Return what a client sends again: the same message, never seen by a broker."""
    return Envelope(
        envelope.dest,
        envelope.src,
        envelope.tag,
        envelope.flags,
        envelope.payload,
        envelope.size,
        envelope.answers,
    )


def check_usage(broker: Broker) -> None:
    """Compare what a broker knows of all mailboxes with what is in them."""
    mailboxes = broker._mailboxes
    boxes, usage = mailboxes.by_uid.values(), mailboxes.usage
    assert usage is not None, "no quota asks for it"
    assert usage.messages == sum(box.count for box in boxes)
    assert usage.bytes == sum(box.bytes for box in boxes)
    assert mailboxes.live == sum(not box.record.terminated for box in boxes)


class BrittleStore:
    """A store around another one that counts commits and fails when it is told to.

    Nothing is shared with who commits or reads, as if there were a file in between.

    Attributes:
        waits: whether a commit takes a turn of the event loop, as one through a
            network does.
        failures: how often it fails when it is next to commit or to open.
        commits: transactions that were written.
    """

    def __init__(self, inner: Store, waits: bool = False) -> None:
        self.inner = inner
        self.bodies = inner.bodies
        self.waits = waits
        self.failures = 0
        self.commits = 0

    async def open(self) -> Contents:
        self._fail()
        contents = await self.inner.open()
        contents.mailboxes = [replace(record) for record in contents.mailboxes]
        return contents

    async def commit(self, changes: Changes) -> None:
        if self.waits:
            await asyncio.sleep(0)
        await self.inner.commit(self._taken(changes))
        self.commits += 1

    @property
    def commit_now(self) -> Callable[[Changes], None] | None:
        inner = self.inner.commit_now
        if self.waits or inner is None:
            return None

        def commit(changes: Changes) -> None:
            inner(self._taken(changes))
            self.commits += 1

        return commit

    def _taken(self, changes: Changes) -> Changes:
        self._fail()
        records = changes.mailboxes
        return replace(
            changes,
            mailboxes={uid: replace(record) for uid, record in records.items()},
            added=[copy.copy(envelope) for envelope in changes.added],
        )

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageError("no space left on device")

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        found = await self.inner.pending(dest, after, limit)
        return [copy.copy(envelope) for envelope in found]

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        found, due = await self.inner.expired(now, limit)
        return [copy.copy(envelope) for envelope in found], due

    async def close(self) -> None:
        await self.inner.close()


class GatedStore(MemoryStore):
    """Its commits wait for a gate."""

    commit_now = None

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()
        self.failing = False

    async def commit(self, changes: Changes) -> None:
        self.waiting.set()
        await self.gate.wait()
        self.waiting.clear()
        if self.failing:
            self.failing = False
            raise StorageError("no space left on device")
        MemoryStore.commit_now(self, changes)


async def new_peer(broker: Broker, *, attached: bool = True) -> Peer:
    """Register a mailbox, and attach its owner."""
    record = agent()
    await broker.register([record])
    made = Peer(broker, record.uid)
    return await made.attach() if attached else made
