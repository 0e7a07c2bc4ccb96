"""The broker and consumers that cannot say what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from academy.exchange.broker import Broker
from academy.exchange.store import Store
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore
from tests.support.peers import Peer, agent


async def popping(broker: Broker, uid: bytes) -> Peer:
    peer = Peer(broker, uid)
    peer.session = broker.connect(peer.session_uid, peer, pops=True)
    await broker.attach(peer.session, uid, os.urandom(16))
    broker.start(peer.session, [uid])
    await broker.settle()
    return peer


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return SqliteStore(tmp_path / "exchange.db", "process")


async def test_only_what_was_received_comes_marked_to_the_next(store: Store) -> None:
    broker = Broker(store)
    await broker.open()
    caller, served = agent(), agent()
    await broker.register([caller, served])
    source = await Peer(broker, caller.uid).attach()
    first = await popping(broker, served.uid)
    for payload in (b"answered", b"received", b"unread"):
        source.request(served.uid, payload)
    await broker.settle()
    first.acknowledge(2)
    first.respond(first.inbox[0])
    await broker.settle()
    await broker.close()

    broker = Broker(store)  # as after kill -9: nobody has let go of anything
    await broker.open()
    second = await popping(broker, served.uid)
    marks = [(m.payload, m.redelivered) for m in second.inbox]
    await broker.close()

    assert marks == [(b"received", True), (b"unread", False)]


async def test_a_request_that_was_received_is_still_answered_at_the_end() -> None:
    broker = Broker(MemoryStore())
    await broker.open()
    caller, served = agent(), agent()
    await broker.register([caller, served])
    source = await Peer(broker, caller.uid).attach()
    first = await popping(broker, served.uid)
    tag = source.request(served.uid)
    await broker.settle()
    first.acknowledge()
    await broker.detach(first.session, served.uid)
    await broker.terminate(served.uid)
    await broker.settle()
    await broker.close()

    assert [(m.tag, m.response) for m in source.inbox] == [(tag, True)]
