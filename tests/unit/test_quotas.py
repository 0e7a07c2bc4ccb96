"""What a namespace as a whole may have: counted at once, right at any time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings, strategies as st

from academy.exception import QuotaExceededError
from academy.exchange.broker import Broker
from academy.exchange.errors import pack_error, unpack_error
from academy.exchange.mailbox import Limits
from academy.exchange.mailboxes import SPARE
from academy.exchange.store import (
    FROM_AGENT,
    RESPONSE,
    TO_AGENT,
    Envelope,
    MailboxRecord,
)
from academy.exchange.store.memory import MemoryStore
from tests.support.peers import (
    BrittleStore,
    Delivery,
    Peer,
    agent,
    check_usage,
    new_peer,
)

LIMITS = Limits(
    max_namespace_mailboxes=4, max_namespace_messages=5, max_namespace_bytes=100
)
AGENTS = FROM_AGENT | TO_AGENT


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    broker = Broker(MemoryStore(), LIMITS)
    await broker.open()
    yield broker
    await broker.close()


def user() -> MailboxRecord:
    return MailboxRecord(uuid4().bytes, False)


def only(refused: dict[int, Any]) -> QuotaExceededError:
    (error,) = refused.values()
    assert isinstance(error, QuotaExceededError)
    return error


def envelope(dest: Peer, source: Peer, size: int) -> Envelope:
    return Envelope(dest.uid, source.uid, uuid4().bytes, AGENTS, b"", size)


def answer_to(request: Delivery, source: Peer, size: int) -> Envelope:
    uids, flags = (request.src, source.uid), AGENTS | RESPONSE
    return Envelope(*uids, request.tag, flags, b"", size, request.number)


# --- messages and bytes


async def test_messages_beyond_the_quota_are_refused_whatever_mailbox_they_are_for(
    broker: Broker,
) -> None:
    alice, bob, carol = [await new_peer(broker) for _ in range(3)]
    for dest in (bob, carol, bob, carol, bob):
        alice.request(dest.uid)
    alice.request(carol.uid)
    await broker.settle()
    error = only(alice.refused)
    assert (error.quota, error.limit, error.used) == ("max_namespace_messages", 5, 5)
    assert str(error) == (
        "This namespace has used 5 of its 5 unsettled messages "
        "(max_namespace_messages), and 1 more would be above that. Wait until agents "
        "have answered what they have, or ask whoever runs the exchange for more."
    )

    carol.respond(carol.inbox[0])
    await broker.settle()
    alice.acknowledge()  # of the answer, which took the place of the request
    alice.request(carol.uid)
    await broker.settle()
    assert len(alice.refused) == 1
    check_usage(broker)


async def test_bytes_beyond_the_quota_are_refused_and_fewer_are_not(
    broker: Broker,
) -> None:
    alice, bob, carol = [await new_peer(broker) for _ in range(3)]
    alice.request(bob.uid, bytes(60))
    alice.request(carol.uid, bytes(41))
    alice.request(carol.uid, bytes(40))
    await broker.settle()
    error = only(alice.refused)
    assert (error.quota, error.used, error.asked) == ("max_namespace_bytes", 60, 41)
    assert "41 more" in str(error)
    check_usage(broker)


async def test_answers_are_taken_beyond_the_quotas_so_that_work_ends(
    broker: Broker,
) -> None:
    alice, bob = [await new_peer(broker) for _ in range(2)]
    for _ in range(5):
        alice.request(bob.uid)
    await broker.settle()
    for request in bob.inbox:
        bob.respond(request, bytes(1000))
    await broker.settle()
    assert not bob.refused
    assert len(alice.inbox) == 5
    alice.acknowledge(5)
    await broker.settle()
    check_usage(broker)
    assert broker._mailboxes.usage is not None
    assert broker._mailboxes.usage.bytes == 0


async def test_what_has_expired_uses_nothing(broker: Broker) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker, attached=False)
    late = envelope(bob, alice, 60)
    late.answers = 1
    alice.post(late)
    async with asyncio.timeout(30):
        while not alice.inbox:
            await asyncio.sleep(0.01)
    check_usage(broker)
    assert broker._mailboxes.usage is not None
    assert broker._mailboxes.usage.messages == 1  # which says that it has expired


async def test_without_a_quota_no_message_is_counted() -> None:
    broker = Broker(MemoryStore(), Limits(max_namespace_mailboxes=9))
    assert broker._mailboxes.usage is None


# --- large messages


async def test_a_large_message_counts_when_it_is_offered_and_not_twice(
    broker: Broker,
) -> None:
    alice, bob, carol = [await new_peer(broker) for _ in range(3)]
    large = envelope(bob, alice, 70)
    assert broker.large.offer(alice.session, 1, large) == 0
    check_usage(broker)
    alice.request(carol.uid, bytes(40))
    await broker.settle()
    assert only(alice.refused).used == 70

    await broker.large.uploads.write(alice.session.uid, 1, 0, bytes(70))
    broker.large.post(alice.session, 2, 1, large)
    await broker.settle()
    assert len(alice.refused) == 1
    check_usage(broker)


async def test_an_offer_beyond_the_quota_is_refused_before_there_is_a_body(
    broker: Broker,
) -> None:
    alice, bob = [await new_peer(broker) for _ in range(2)]
    bob.request(alice.uid, b"")
    await broker.settle()
    with pytest.raises(QuotaExceededError, match="max_namespace_bytes"):
        broker.large.offer(alice.session, 1, envelope(bob, alice, 101))
    assert len(broker.large.uploads) == 0

    broker.large.offer(alice.session, 2, envelope(bob, alice, 100))
    answer = answer_to(alice.inbox[0], alice, 101)
    assert broker.large.offer(alice.session, 3, answer) == 0
    for number in (2, 3):
        broker.large.uploads.drop(alice.session.uid, number)
    check_usage(broker)
    assert broker.large.offer(alice.session, 4, envelope(bob, alice, 100)) == 0


async def test_an_upload_to_a_mailbox_that_is_terminated_gives_its_room_back_once(
    broker: Broker,
) -> None:
    alice, bob = [await new_peer(broker) for _ in range(2)]
    broker.large.offer(alice.session, 1, envelope(bob, alice, 60))
    await broker.terminate(bob.uid)
    check_usage(broker)
    broker.large.uploads.drop(alice.session_uid, 1)
    check_usage(broker)
    assert broker._mailboxes.usage is not None
    assert broker._mailboxes.usage.messages == 0


# --- mailboxes and connections


async def test_mailboxes_beyond_the_quota_are_refused_all_of_a_call(
    broker: Broker,
) -> None:
    await broker.register([agent(), agent()])
    with pytest.raises(QuotaExceededError, match="used 2 of its 4 mailboxes"):
        await broker.register([agent() for _ in range(3)])
    last = [agent(), agent()]
    await broker.register(last)
    await broker.register(last)  # they are known
    check_usage(broker)

    await broker.terminate(last[0].uid)
    await broker.terminate(last[0].uid)
    check_usage(broker)
    await broker.register([agent()])
    with pytest.raises(QuotaExceededError, match="Terminate agents"):
        await broker.register([agent()])


async def test_users_can_get_in_where_agents_have_used_the_quota_up(
    broker: Broker,
) -> None:
    await broker.register([agent() for _ in range(4)])
    for _ in range(SPARE):
        await broker.register([user()])
    with pytest.raises(QuotaExceededError):
        await broker.register([user()])
    check_usage(broker)


async def test_one_connection_too_many_is_refused_and_one_that_comes_back_is_not() -> (
    None
):
    broker = Broker(MemoryStore(), Limits(max_namespace_connections=2))
    await broker.open()
    alice, bob, carol = [await new_peer(broker, attached=False) for _ in range(3)]
    alice.connect()
    bob.connect()
    with pytest.raises(QuotaExceededError, match="2 of its 2 connections"):
        carol.connect()
    alice.connect()
    bob.disconnect()
    carol.connect()
    with pytest.raises(QuotaExceededError):
        broker.check_room(bob.session_uid)
    await broker.close()


# --- always


def test_the_error_crosses_the_wire_whole() -> None:
    error = QuotaExceededError("max_namespace_bytes", 100, 60, 41)
    again = unpack_error(pack_error(error))
    assert isinstance(again, QuotaExceededError)
    assert (str(again), vars(again)) == (str(error), vars(error))


KINDS = """
    request one_way expiring respond read offer offer_answer finish drop cut terminate
    register fail restart expire
"""
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS.split()),
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(1, 50),
    ),
    max_size=40,
)


class History:
    """Does to a broker what programs, operators and disks do."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.store = BrittleStore(MemoryStore())
        self.broker = Broker(self.store, limits)
        self.peers: list[Peer] = []
        self.uploads: list[tuple[Peer, int, Envelope]] = []
        self.numbers = itertools.count(1)

    async def open(self) -> None:
        await self.broker.open()
        self.peers = [await new_peer(self.broker) for _ in range(3)]

    async def step(self, what: str, one: int, two: int, size: int) -> None:
        source, dest = self.peers[one], self.peers[two]
        if what == "request":
            source.request(dest.uid, bytes(size))
        elif what == "one_way":
            source.one_way(dest.uid, uuid4().bytes, bytes(size))
        elif what == "expiring":
            late = envelope(dest, source, size)
            late.answers = 1
            source.post(late)
        elif what == "respond" and source.inbox:
            message = source.inbox.pop(0)
            if not message.response:
                source.respond(message, bytes(size))
        elif what == "read":
            source.acknowledge(size % 4)
        elif what == "offer":
            self.offer(source, envelope(dest, source, size))
        elif what == "offer_answer" and source.inbox:
            message = source.inbox.pop(0)
            if not message.response:
                self.offer(source, answer_to(message, source, size))
        elif what in ("finish", "drop") and self.uploads:
            await self.end(*self.uploads.pop(0), finish=what == "finish")
        elif what == "cut":
            source.disconnect()
            await source.reconnect()
        elif what == "terminate":
            await self.broker.terminate(source.uid)
            self.peers[one] = await new_peer(self.broker)
        elif what == "register":
            await self.broker.register([agent(), agent()])
        elif what == "fail":
            await self.fail()
        elif what == "restart":
            await self.restart()
        elif what == "expire":
            await asyncio.sleep(0.002)
            self.broker._look_for_expired()

    def offer(self, source: Peer, large: Envelope) -> None:
        number = next(self.numbers)
        if self.broker.large.offer(source.session, number, large) is not None:
            self.uploads.append((source, number, large))

    async def end(
        self, source: Peer, number: int, large: Envelope, *, finish: bool
    ) -> None:
        uploads = self.broker.large.uploads
        if finish and uploads.received(source.session_uid, number) is not None:
            await uploads.write(source.session_uid, number, 0, bytes(large.size))
            sequence = next(source._sequence)
            self.broker.large.post(source.session, sequence, number, large)
        else:
            uploads.drop(source.session_uid, number)

    async def fail(self) -> None:
        self.store.failures = 1
        self.peers[0].one_way(self.peers[1].uid, uuid4().bytes)
        await self.broker.settle()
        await self.come_back()

    async def restart(self) -> None:
        await self.broker.close()
        self.broker = Broker(self.store, self.limits)
        await self.broker.open()
        await self.come_back()

    async def come_back(self) -> None:
        self.uploads.clear()
        for each in self.peers:
            each.broker = self.broker
            each.posted.clear()
            each.connect()
            await each.attach(resume=True)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_what_is_counted_is_what_is_there_after_any_history(
    steps: list[tuple[str, int, int, int]],
) -> None:
    async def run() -> None:
        limits = Limits(
            max_namespace_mailboxes=12,
            max_namespace_messages=15,
            max_namespace_bytes=300,
            tombstone_lifetime=1e-6,
            window_messages=3,
        )
        history = History(limits)
        await history.open()
        for step in steps:
            with suppress(QuotaExceededError):
                await history.step(*step)
            if len(step[0]) % 2:  # else several of them share a turn
                await history.broker.settle()
                check_usage(history.broker)
        await history.broker.settle()
        check_usage(history.broker)
        usage = history.broker._mailboxes.usage
        assert usage is not None
        stored = [
            message
            for uid in history.broker._boxes
            for message in await history.store.pending(uid, 0, 1000)
        ]
        reserved = [large.size for *_, large in history.uploads]
        assert usage.messages >= len(stored)
        assert usage.messages <= len(stored) + len(reserved)
        assert usage.bytes <= sum(m.size for m in stored) + sum(reserved)
        assert usage.bytes >= sum(m.size for m in stored)
        await history.broker.close()

    asyncio.run(run())
