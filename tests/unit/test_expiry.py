"""What expires, when, and who is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from academy.exception import BadEntityIdError, MessageExpiredError
from academy.exchange import ExchangeClientConfig, HttpExchangeFactory
from academy.exchange.broker import Broker
from academy.exchange.mailbox import Limits
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.store import (
    FROM_AGENT,
    ONE_WAY,
    RESPONSE,
    TO_AGENT,
    Envelope,
    Store,
)
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore
from academy.handle import Handle
from academy.message import AcademyErrorResponse, decode_body
from tests.support.agents import Adder
from tests.support.clock import Clock
from tests.support.peers import BrittleStore, Delivery, Peer, new_peer
from tests.support.server import ExchangeServer

SHORT = 0.05
"""Seconds; the broker looks a little later."""


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BrittleStore:
    inner: Store = MemoryStore()
    if request.param == "sqlite":
        inner = SqliteStore(tmp_path / "exchange.db")
    return BrittleStore(inner)


@pytest.fixture
async def broker(store: BrittleStore) -> AsyncIterator[Broker]:
    broker = Broker(store)
    await broker.open()
    yield broker
    await broker.close()


def request(peer: Peer, dest: bytes, lifetime: float = 0.0) -> bytes:
    """Post a request that may wait so many seconds."""
    tag, flags = os.urandom(16), FROM_AGENT | TO_AGENT
    peer.post(Envelope(dest, peer.uid, tag, flags, b"?", 1, int(lifetime * 1000)))
    return tag


def expired(peer: Peer) -> list[bytes]:
    """Tags of the requests of which it was told that they have expired."""
    tags = []
    for message in peer.inbox:
        body = decode_body(memoryview(message.payload))
        if isinstance(body, AcademyErrorResponse):
            assert isinstance(body.get_exception(), MessageExpiredError)
            tags.append(message.tag)
    return tags


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_request_that_nobody_takes_in_time_is_answered(
    broker: Broker, store: BrittleStore
) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker, attached=False)
    late = [request(alice, bob.uid, SHORT) for _ in range(600)]
    patient = [request(alice, bob.uid, 1000), request(alice, bob.uid)]
    await until(lambda: len(alice.inbox) == len(late))

    assert sorted(expired(alice)) == sorted(late)
    assert [e.tag for e in await store.pending(bob.uid, 0, 9)] == patient
    assert broker.stats(bob.uid).queued == 2
    await bob.attach()
    assert [message.tag for message in bob.inbox] == patient


async def test_a_request_that_was_delivered_does_not_expire(
    broker: Broker, store: BrittleStore
) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker)
    tag = request(alice, bob.uid, SHORT)
    (served,) = await delivered(bob)
    nobody = await new_peer(broker, attached=False)
    await has_looked(alice, nobody)

    bob.disconnect()  # it may still work on what it had
    await has_looked(alice, nobody)
    await bob.reconnect(held=[tag])
    bob.respond(served)
    await broker.settle()
    assert alice.inbox[-1].tag == tag
    assert alice.inbox[-1].payload == b"!"


async def delivered(peer: Peer) -> list[Delivery]:
    await until(lambda: peer.inbox)
    return list(peer.inbox)


def heard_of(peer: Peer, tag: bytes) -> bool:
    return any(message.tag == tag for message in peer.inbox)


async def has_looked(alice: Peer, nobody: Peer) -> None:
    """Wait until the broker has looked for what has expired, twice."""
    for _ in range(2):
        tag = request(alice, nobody.uid, SHORT)
        await until(partial(heard_of, alice, tag))


async def test_any_message_expires_where_the_exchange_says_so(
    store: BrittleStore,
) -> None:
    broker = Broker(store, Limits(message_lifetime=SHORT))
    await broker.open()
    alice, bob = await new_peer(broker), await new_peer(broker)
    tags = [request(alice, bob.uid), request(alice, bob.uid)]
    await delivered(bob)
    alice.disconnect()
    await broker.settle()
    bob.respond(bob.inbox[0])
    bob.post(Envelope(alice.uid, bob.uid, tags[1], RESPONSE | ONE_WAY | 6, b".", 1))
    await broker.settle()
    assert len(await store.pending(alice.uid, 0, 9)) == 2
    await until(lambda: not broker._boxes[alice.uid].count)
    assert await store.pending(alice.uid, 0, 9) == []

    nobody = await new_peer(broker, attached=False)
    await alice.reconnect()
    late = request(alice, nobody.uid, 1000)
    await until(lambda: late in expired(alice))
    await broker.close()


async def test_what_is_received_in_the_turn_in_which_it_expires_counts_once(
    broker: Broker,
) -> None:
    broker._mailboxes.limits = Limits(message_lifetime=1e-6)
    alice, old = await new_peer(broker), await new_peer(broker, attached=False)
    old.session = broker.connect(old.session_uid, old, pops=True)
    await old.attach()
    alice.one_way(old.uid, bytes(16))
    alice.one_way(old.uid, bytes(16))
    await broker.settle()
    old.acknowledge()
    broker._look_for_expired()
    await broker.settle()
    box = broker._boxes[old.uid]
    assert (box.count, box.bytes) == (1, 1)


async def test_what_expires_is_known_after_a_restart_and_when_the_store_has_failed(
    broker: Broker, store: BrittleStore
) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker, attached=False)
    late = request(alice, bob.uid, 3 * SHORT)
    await broker.settle()
    store.failures = 1
    request(alice, bob.uid)
    await broker.settle()
    await broker.close()

    second = Broker(store)
    await second.open()
    alice.broker = second
    await alice.reconnect()
    await until(lambda: expired(alice) == [late])
    await second.close()


async def test_a_store_that_fails_when_something_expires_is_tried_again(
    broker: Broker, store: BrittleStore
) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker, attached=False)
    late = request(alice, bob.uid, 3 * SHORT)
    await broker.settle()
    store.failures = 1
    await until(lambda: alice.resets)
    await alice.reconnect()
    await until(lambda: expired(alice) == [late])


async def test_without_anything_that_expires_there_is_no_timer(broker: Broker) -> None:
    alice, bob = await new_peer(broker), await new_peer(broker)
    request(alice, bob.uid)
    await delivered(bob)
    bob.respond(bob.inbox[0])
    await broker.settle()
    assert broker._expiry._timer is None
    request(alice, bob.uid, 1000)
    await broker.settle()
    assert broker._expiry._timer is not None


async def test_tombstones_go_where_the_exchange_says_so(store: BrittleStore) -> None:
    broker = Broker(store, Limits(tombstone_lifetime=SHORT))
    await broker.open()
    alice, bob = await new_peer(broker), await new_peer(broker)
    await broker.terminate(bob.uid)
    assert broker.status(bob.uid) is MailboxStatus.TERMINATED
    await until(lambda: broker.status(bob.uid) is MailboxStatus.MISSING)
    sequence = alice.post(Envelope(bob.uid, alice.uid, bytes(16), TO_AGENT, b"?", 1))
    await broker.settle()
    assert isinstance(alice.refused[sequence], BadEntityIdError)

    broker._mailboxes.limits = replace(broker.limits, tombstone_lifetime=0)
    await broker.terminate(alice.uid)
    await broker.close()
    kept = Broker(store, Limits())
    await kept.open()
    assert kept.status(alice.uid) is MailboxStatus.TERMINATED
    await kept.close()
    other = Broker(store, Limits(tombstone_lifetime=SHORT))
    await other.open()
    await until(lambda: other.status(alice.uid) is MailboxStatus.MISSING)
    await other.settle()
    assert (await store.open()).mailboxes == []
    await other.close()


async def test_callers_learn_of_it_through_a_real_exchange(tmp_path: Path) -> None:
    limits = {"message_lifetime": 0.1}
    with ExchangeServer(tmp_path / "exchange", limits=limits) as exchange:
        factory = exchange.factory()
        async with await factory.create_user_client() as client:
            agent_id = (await client.register_agent(Adder, name="adder")).agent_id
            with pytest.raises(MessageExpiredError, match=r"<adder>.*message_lifetime"):
                await Handle(agent_id).add(1, 2)


async def test_a_clock_that_is_set_ahead_makes_nothing_expire(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    exchange = ExchangeServer(tmp_path / "exchange")
    exchange.environment |= clock.environment()
    with exchange:
        async with await exchange.factory().create_user_client() as client:
            agent_id = (await client.register_agent(Adder)).agent_id
            patient = Handle(agent_id, timeout=600)
            waiting = asyncio.ensure_future(patient.add(1, 2))
            await asyncio.sleep(0)
            clock.set(86_400)
            for _ in range(8):  # it is read once a second
                with pytest.raises(TimeoutError):
                    await Handle(agent_id, timeout=0.3).add(3, 4)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])


async def test_a_calls_timeout_travels_with_its_request(tmp_path: Path) -> None:
    """So an agent that comes late does not work for callers who have gone."""
    with ExchangeServer(tmp_path / "exchange") as exchange:
        config = ExchangeClientConfig(call_timeout=0.1)
        factory: HttpExchangeFactory = exchange.factory(config=config)
        async with await factory.create_user_client() as client:
            agent_id = (await client.register_agent(Adder)).agent_id
            with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
                await Handle(agent_id).add(1, 2)
            async with asyncio.timeout(30):
                # Only what the caller has sent to cancel it is left.
                while (await client.agent_stats(agent_id)).queued > 1:
                    await asyncio.sleep(0.01)
