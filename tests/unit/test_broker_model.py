"""The broker's rules under any order of events, checked against what clients saw.

Programs call each other, lose their connections in either direction, come back, are
replaced by newer incarnations and terminated, while the store fails and the exchange
is killed. Whatever happens: no call is lost or run twice, and everything ends.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from academy.exception import (
    AcademyError,
    ForbiddenError,
    MailboxFullError,
    MailboxTerminatedError,
    QuotaExceededError,
    StorageError,
    SupersededError,
)
from academy.exchange.broker import Broker
from academy.exchange.mailbox import Limits, Session
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.store import FROM_AGENT, RESPONSE, TO_AGENT, Envelope
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore
from academy.message import AcademyErrorResponse, decode_body
from tests.support.peers import (
    BrittleStore,
    Delivery,
    again,
    agent,
    check_usage,
    delivery,
)

LIMITS = Limits(
    max_mailbox_messages=12,
    max_mailbox_bytes=200,
    window_messages=3,
    window_bytes=40,
    max_namespace_messages=25,
    max_namespace_bytes=500,
)
MAILBOXES = 3
AGENTS = FROM_AGENT | TO_AGENT


@dataclass(eq=False)
class Client:
    """A program as the exchange knows it: it does what a link and its owner do.

    What is delivered is on the `wire` until it is read; then a call is `queue`d, and
    `running` once it was begun. `deaf` and `mute` are what a broken connection is
    before anybody notices that it is broken.
    """

    world: BrokerMachine
    uid: bytes
    incarnation: bytes = field(default_factory=lambda: os.urandom(16))
    session_uid: bytes = field(default_factory=lambda: os.urandom(16))
    session: Session | None = None
    epoch: int = 0
    gone: bool = False
    deaf: bool = False
    mute: bool = False
    last: int = 0
    last_in_connection: int = 0
    under_way: list[int] = field(default_factory=list)
    wire: list[Delivery] = field(default_factory=list)
    queue: list[Delivery] = field(default_factory=list)
    running: list[Delivery] = field(default_factory=list)
    calls: dict[bytes, bytes] = field(default_factory=dict)
    outbox: dict[int, Envelope] = field(default_factory=dict)
    seen: set[tuple[bytes, bool]] = field(default_factory=set)
    newest: dict[bytes, int] = field(default_factory=dict)
    sequences: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # --- the program

    def post(self, envelope: Envelope) -> None:
        sequence = next(self.sequences)
        self.outbox[sequence] = again(envelope)
        if self.session is not None and not self.mute:
            self.world.broker.post(self.session, sequence, envelope)

    def call(self, dest: bytes, size: int) -> None:
        tag = os.urandom(16)
        self.calls[tag] = dest
        count = self.world.count(self, dest)
        payload = b"%d" % count + b"." * size
        self.post(Envelope(dest, self.uid, tag, AGENTS, payload, len(payload)))

    def begin(self) -> None:
        if self.queue:
            call = self.queue.pop(0)
            if call.redelivered:
                self.answer(call, b"interrupted")
            else:
                self.world.run(call)
                self.running.append(call)

    def finish(self, which: int) -> None:
        if self.running:
            call = self.running.pop(which % len(self.running))
            self.answer(call, b"done")

    def answer(self, call: Delivery, payload: bytes) -> None:
        size, number = len(payload), call.number
        flags = AGENTS | RESPONSE
        self.post(Envelope(call.src, self.uid, call.tag, flags, payload, size, number))

    def read(self, count: int) -> None:
        """Take what is on the wire and acknowledge it."""
        read, self.wire = self.wire[:count], self.wire[count:]
        for message in read:
            self.take(message)
        if read and self.session is not None and not self.mute:
            del self.under_way[: len(read)]
            self.world.broker.acknowledge(self.session, len(read))

    def held(self) -> list[bytes]:
        held = [call.tag for call in (*self.queue, *self.running)]
        return held + [e.tag for e in self.outbox.values() if e.flags & RESPONSE]

    def take(self, message: Delivery) -> None:
        if message.number <= self.last:
            return  # it has been here before
        self.last = message.number
        key = (message.tag, message.response)
        assert key not in self.seen, "twice to one incarnation"
        self.seen.add(key)
        if not message.response:
            count = int(message.payload.rstrip(b"."))
            assert count > self.newest.get(message.src, -1), "in the order of posting"
            self.newest[message.src] = count
            self.queue.append(message)
        elif message.tag in self.calls:
            self.world.answered(self, message)

    # --- its link

    async def connect(self) -> None:
        broker = self.world.broker
        self.deaf = self.mute = False
        self.session = session = broker.connect(self.session_uid, self)
        self.under_way, self.wire = [], []
        self.last_in_connection = 0
        try:
            sequence, number = await broker.known(session)
        except StorageError:
            return  # it was reset, and tries again later
        if self.session is session:
            self.confirm(sequence)
            self.last = min(self.last, number)

    def break_link(self, deaf: bool) -> None:
        self.mute = True
        self.deaf = self.deaf or deaf

    def disconnect(self) -> None:
        if self.session is not None:
            self.world.broker.disconnect(self.session)
            self.session = None

    async def attach(self, *, resume: bool, late: bool = False) -> None:
        world = self.world
        await self.connect()
        if late:  # after what an older connection had posted was taken
            await world.broker.settle()
        session = self.session
        if session is None:
            return
        held = self.held() if resume else []
        world.attaching = None if resume else self
        try:
            await world.broker.attach(
                session, self.uid, self.incarnation, resume=resume, held=held
            )
        except SupersededError:
            assert resume
            assert world.owners[self.uid] is not self
            self.gone = True
            return
        except MailboxTerminatedError:
            assert self.uid in world.terminated
            self.gone = True
            return
        except StorageError:
            return  # it was reset, and tries again later
        except ForbiddenError:
            assert self.session is not session, "refused because it was reset"
            return
        finally:
            world.attaching = None
        world.attached(self)
        if self.session is not session:
            return  # reset meanwhile
        world.broker.start(session, [self.uid])
        for sequence, envelope in self.outbox.items():
            world.broker.post(session, sequence, again(envelope))

    async def close(self) -> None:
        """Give back what was not begun; what comes from now on is not looked at."""
        if self.session is None or self.mute or self.deaf or self.gone:
            return
        self.gone = self.deaf = True
        released = [call.number for call in self.queue]
        try:
            await self.world.broker.detach(self.session, self.uid, released)
        except StorageError:
            return
        for message in await self.world.brittle.pending(self.uid, 0, 1000):
            if not message.lease:
                self.world.leases[message.tag, bool(message.flags & RESPONSE)] = 0

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        world = self.world
        claim = world.claim
        claim(world.owners[self.uid] is self, "only the newest incarnation receives")
        claim(envelope.dest == self.uid, "to whom it was sent")
        claim(len(self.under_way) < LIMITS.window_messages, "within the window")
        claim(sum(self.under_way) < LIMITS.window_bytes, "within the window of bytes")
        self.under_way.append(envelope.size)
        claim(envelope.number > self.last_in_connection, "in order, once")
        self.last_in_connection = envelope.number
        message = delivery(envelope)
        key = (message.tag, message.response)
        before = world.leases.get(key, 0)
        was_out = 0 < before < self.epoch
        claim(message.redelivered or not was_out, "marked if it was out")
        # Where a lease takes time to record, its session may end before it leaves.
        unsent = message.redelivered and not was_out
        claim(world.brittle.waits or not unsent, "and not if it was not")
        world.leases[key] = before or self.epoch
        if not self.deaf:
            self.wire.append(message)

    def delivered(self) -> None:
        pass

    def confirm(self, sequence: int) -> None:
        if not self.deaf:
            for number in [n for n in self.outbox if n <= sequence]:
                del self.outbox[number]

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        world = self.world
        if self.deaf:
            return
        if not self.mute and self.session is not None:
            world.broker.heard(self.session, sequence)
        if isinstance(error, SupersededError):
            newest = world.attaching
            if newest is None or newest.uid != self.uid:
                newest = world.owners[self.uid]
            world.claim(newest is not self, "superseded by another")
        elif isinstance(error, MailboxTerminatedError):
            world.claim(error.uid.uid.bytes in world.terminated, "gone if it is gone")
        else:
            full = isinstance(error, MailboxFullError | QuotaExceededError)
            world.claim(full, "or there was no room")
        self.calls.pop(tag, None)

    def lost(self, uid: bytes, error: AcademyError) -> None:
        self.world.claim(uid == self.uid, "its own mailbox is lost")
        if not self.deaf:
            self.gone = True

    def reset(self, error: AcademyError) -> None:
        self.session = None


class BrokerMachine(RuleBasedStateMachine):
    """The world of the clients above."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.runner = asyncio.Runner()
        self.broken: list[str] = []
        self.steps: list[Callable[[], object]] = []
        self.clients: list[Client] = []
        self.owners: dict[bytes, Client | None] = {}
        self.attaching: Client | None = None
        self.terminated: set[bytes] = set()
        self.leases: dict[tuple[bytes, bool], int] = {}
        self.runs: set[bytes] = set()
        self.counts: dict[tuple[bytes, bytes], int] = {}

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        """Wait for something, in one turn with what was to happen before it."""

        async def run() -> None:
            try:
                while self.steps:
                    self.steps.pop(0)()
            except BaseException:
                work.close()
                raise
            await work

        self.runner.run(run())
        assert not self.broken, self.broken

    def claim(self, holds: bool, what: str) -> None:
        """Check what the broker does: it would take an exception for its own."""
        if not holds:
            self.broken.append(what)

    def later(self, step: Callable[[], object]) -> None:
        self.steps.append(step)

    def store(self) -> BrittleStore:
        raise NotImplementedError

    @initialize()
    def open(self) -> None:
        self.brittle = self.store()
        self.broker = Broker(self.brittle, LIMITS)
        self.do(self.broker.open())
        records = [agent() for _ in range(MAILBOXES)]
        self.do(self.broker.register(records))
        self.owners = {record.uid: None for record in records}
        for uid in self.owners:
            self.launch(uid)

    # --- what clients report

    def count(self, client: Client, dest: bytes) -> int:
        """Number the calls from one mailbox to another."""
        key = (client.uid, dest)
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def run(self, call: Delivery) -> None:
        assert call.tag not in self.runs, "a call is run once"
        self.runs.add(call.tag)

    def attached(self, client: Client) -> None:
        epoch = self.broker._boxes[client.uid].record.epoch
        older = self.owners[client.uid]
        if older is client:
            assert epoch == client.epoch
            return
        assert older is None or epoch > older.epoch
        client.epoch = epoch
        self.owners[client.uid] = client
        if older is not None and older.session is not None and not older.deaf:
            assert older.gone, "the older one was told"

    def answered(self, client: Client, message: Delivery) -> None:
        dest = client.calls.pop(message.tag)
        if message.payload == b"done":
            assert message.tag in self.runs
        elif message.payload != b"interrupted":
            body = decode_body(memoryview(message.payload))
            assert isinstance(body, AcademyErrorResponse)
            assert isinstance(body.get_exception(), MailboxTerminatedError)
            assert dest in self.terminated

    # --- events

    def alive(self) -> list[Client]:
        return [client for client in self.clients if not client.gone]

    def pick(self, which: int) -> Client | None:
        alive = self.alive()
        return alive[which % len(alive)] if alive else None

    def launch(self, uid: bytes) -> None:
        client = Client(self, uid)
        self.clients.append(client)
        self.do(client.attach(resume=False))
        if not client.epoch:
            client.gone = True  # it could not start
        self.do(self.broker.settle())

    @rule(which=st.integers(0, 9), dest=st.integers(0, 2), size=st.integers(0, 30))
    def call(self, which: int, dest: int, size: int) -> None:
        if client := self.pick(which):
            self.later(lambda: client.call(list(self.owners)[dest], size))

    @rule(which=st.integers(0, 9))
    def begin(self, which: int) -> None:
        if client := self.pick(which):
            self.later(client.begin)

    @rule(which=st.integers(0, 9), call=st.integers(0, 9))
    def finish(self, which: int, call: int) -> None:
        if client := self.pick(which):
            self.later(lambda: client.finish(call))

    @rule(which=st.integers(0, 9), count=st.integers(1, 4))
    def read(self, which: int, count: int) -> None:
        if client := self.pick(which):
            self.later(lambda: client.read(count))

    @rule(which=st.integers(0, 9))
    def serve(self, which: int) -> None:
        """What a program does most of the time."""
        if client := self.pick(which):
            self.later(lambda: client.read(4))
            self.later(client.begin)
            self.later(lambda: client.finish(0))

    @rule()
    def turn(self) -> None:
        self.do(self.broker.settle())

    @rule(which=st.integers(0, 9), deaf=st.booleans())
    def break_link(self, which: int, deaf: bool) -> None:
        """Nobody notices for now."""
        if client := self.pick(which):
            self.later(lambda: client.break_link(deaf))

    @rule(which=st.integers(0, 9))
    def disconnect(self, which: int) -> None:
        if client := self.pick(which):
            self.later(client.disconnect)

    @rule(which=st.integers(0, 9), late=st.booleans())
    def reconnect(self, which: int, late: bool) -> None:
        if client := self.pick(which):
            self.do(client.attach(resume=True, late=late))

    @rule(which=st.integers(0, 9))
    def detach(self, which: int) -> None:
        """A client closes: what it has not begun is for the next incarnation."""
        if client := self.pick(which):
            self.do(client.close())

    @rule(which=st.integers(0, 2))
    def new_incarnation(self, which: int) -> None:
        uid = list(self.owners)[which]
        if uid not in self.terminated:
            self.launch(uid)

    @rule(which=st.integers(0, 2), really=st.integers(0, 3))
    def terminate(self, which: int, really: int) -> None:
        uid = list(self.owners)[which]
        if really or uid in self.terminated or len(self.terminated) > 1:
            return
        self.terminated.add(uid)
        try:
            self.do(self.broker.terminate(uid))
        except StorageError:
            self.terminated.discard(uid)

    @rule(count=st.integers(1, 2))
    def fail_store(self, count: int) -> None:
        self.brittle.failures = count

    @rule()
    def kill_exchange(self) -> None:
        self.do(self.crash())
        for client in self.clients:
            client.session = None
        self.brittle.failures = 0
        self.broker = Broker(self.brittle, LIMITS)
        self.do(self.broker.open())

    async def crash(self) -> None:
        turning = self.broker._turns.turning
        if turning is not None:
            turning.cancel()
        if isinstance(turning, asyncio.Task):
            await asyncio.wait([turning])
        await self.brittle.close()

    # --- what always holds

    @invariant()
    def what_is_counted_is_what_is_stored(self) -> None:
        if not hasattr(self, "broker") or self.broker._turns.turning is not None:
            return
        if not self.broker._turns.opened:
            return  # what was not stored is forgotten when the store can be read again

        async def look() -> None:
            for uid, box in self.broker._boxes.items():
                stored = await self.brittle.pending(uid, 0, 1000)
                assert box.count == len(stored)
                assert box.bytes == sum(envelope.size for envelope in stored)
                assert set(box.leased) <= {envelope.number for envelope in stored}
            check_usage(self.broker)

        self.runner.run(look())

    def teardown(self) -> None:
        try:
            if hasattr(self, "broker"):
                self.end()
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    def end(self) -> None:
        """Let the world come to rest: every call then has had one outcome."""
        self.brittle.failures = 0
        self.turn()
        for client in self.alive():
            self.do(client.attach(resume=True))
        for uid, owner in self.owners.items():
            if uid not in self.terminated and (owner is None or owner.gone):
                self.launch(uid)
        for _ in range(500):
            self.turn()
            if not any(c.queue or c.running or c.wire for c in self.alive()):
                break
            for which in range(len(self.alive())):
                self.serve(which)
        for client in self.alive():
            assert not client.outbox
            assert not client.calls, "a call without an outcome"
        for uid in self.owners:
            stats = self.broker.stats(uid)
            assert (stats.in_progress, stats.queued) == (0, 0)
            gone = uid in self.terminated
            status = MailboxStatus.TERMINATED if gone else MailboxStatus.ACTIVE
            assert self.broker.status(uid) is status
        self.what_is_counted_is_what_is_stored()
        self.do(self.broker.close())


class OnMemory(BrokerMachine):
    def store(self) -> BrittleStore:
        return BrittleStore(MemoryStore())


class OnAStoreThatWaits(BrokerMachine):
    """As through Redis, or to a disk whose caches are flushed."""

    def store(self) -> BrittleStore:
        return BrittleStore(MemoryStore(), waits=True)


class OnSqlite(BrokerMachine):
    def store(self) -> BrittleStore:
        return BrittleStore(SqliteStore(Path(self.folder) / "exchange.db"))


def model(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = model(150)
TestOnAStoreThatWaits = OnAStoreThatWaits.TestCase
TestOnAStoreThatWaits.settings = model(150)
TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = model(20)
