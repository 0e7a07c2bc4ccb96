"""The rules of mailboxes, seen by clients that talk to a broker without any wire."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from academy.exception import (
    BadEntityIdError,
    ForbiddenError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageTooLargeError,
    ProtocolError,
    StorageError,
    SupersededError,
)
from academy.exchange.broker import Broker
from academy.exchange.mailbox import Limits
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.refusals import KEPT, PLACE
from academy.exchange.store import (
    FROM_AGENT,
    RESPONSE,
    TO_AGENT,
    Changes,
    Contents,
    Envelope,
    MailboxRecord,
)
from academy.exchange.store.memory import MemoryStore
from academy.message import AcademyErrorResponse, decode_body
from tests.support.peers import (
    BrittleStore,
    Delivery,
    GatedStore,
    Peer,
    again,
    agent,
    new_peer,
)

SMALL = Limits(
    max_message_bytes=100,
    max_mailbox_messages=5,
    max_mailbox_bytes=300,
    window_messages=3,
    window_bytes=250,
)


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture(params=["plain", "waits"])
def store(request: pytest.FixtureRequest) -> BrittleStore:
    return BrittleStore(MemoryStore(), waits=request.param == "waits")


@pytest.fixture
async def broker(store: BrittleStore, limits: Limits) -> AsyncIterator[Broker]:
    broker = Broker(store, limits)
    await broker.open()
    yield broker
    await broker.close()


@pytest.fixture
async def alice(broker: Broker) -> Peer:
    return await new_peer(broker)


@pytest.fixture
async def bob(broker: Broker) -> Peer:
    return await new_peer(broker)


async def reopened(store: BrittleStore) -> Broker:
    """Return what knows only what the broker before it has stored."""
    broker = Broker(store)
    await broker.open()
    return broker


async def stored(store: BrittleStore, of: Peer) -> list[bytes]:
    return [e.payload for e in await store.pending(of.uid, 0, 1000)]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


def flagged(inbox: list[Delivery]) -> list[bytes]:
    return [message.payload for message in inbox if message.redelivered]


# --- taking and delivering


async def test_messages_wait_in_order_until_their_owner_attaches(
    broker: Broker, alice: Peer
) -> None:
    bob = await new_peer(broker, attached=False)
    for payload in numbered(600):
        alice.request(bob.uid, payload)
    await broker.settle()

    await bob.attach()

    assert bob.payloads() == numbered(600)
    assert flagged(bob.inbox) == []


async def test_messages_reach_an_attached_owner_in_order(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for payload in numbered(100):
        alice.request(bob.uid, payload)
        if payload.endswith(b"7"):
            await asyncio.sleep(0)
    await broker.settle()

    assert bob.payloads() == numbered(100)
    assert alice.confirmed == 100


async def test_a_burst_is_one_transaction(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    before = store.commits
    for payload in numbered(100):
        alice.request(bob.uid, payload)
        bob.request(alice.uid, payload)
    await broker.settle()

    assert store.commits == before + 1


async def test_a_message_is_confirmed_and_delivered_after_it_was_stored(
    limits: Limits,
) -> None:
    store = GatedStore()
    broker = Broker(store, limits)
    await broker.open()
    alice, bob = await new_peer(broker), await new_peer(broker)
    store.gate.clear()

    alice.request(bob.uid)
    await store.waiting.wait()
    assert (alice.confirmed, bob.inbox) == (0, [])
    store.gate.set()
    await broker.close()

    assert (alice.confirmed, bob.payloads()) == (1, [b"?"])


async def test_a_request_stays_until_it_is_answered(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.settle()
    bob.acknowledge()
    await broker.settle()
    assert await stored(store, bob) == [b"?"]

    bob.respond(bob.inbox[0])
    await broker.settle()

    assert await stored(store, bob) == []


async def test_a_response_reaches_nobody_but_who_has_asked_and_under_that_tag(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    """Else who knows a tag, or guesses it, could answer in the place of others."""
    eve = await new_peer(broker)
    tag = alice.request(bob.uid)
    eve.request(eve.uid)
    await broker.settle()
    (request,) = bob.inbox
    (her_own,) = eve.inbox  # which she may answer

    eve.respond(replace(her_own, src=alice.uid, tag=tag))
    eve.respond(request)
    bob.respond(replace(request, src=eve.uid))
    bob.respond(replace(request, tag=her_own.tag))
    await broker.settle()
    assert (alice.payloads(), eve.payloads()) == ([], [b"?"])
    assert await stored(store, eve) == await stored(store, bob) == [b"?"]

    bob.respond(request)
    await broker.settle()
    assert alice.payloads() == [b"!"]


async def test_a_large_response_that_answers_nothing_takes_no_room(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    await broker.settle()
    number = bob.inbox[0].number
    flags = FROM_AGENT | TO_AGENT | RESPONSE

    def offer(source: Peer, transfer: int, answers: int) -> int | None:
        envelope = Envelope(alice.uid, source.uid, tag, flags, b"", 9, answers)
        return broker.large.offer(source.session, transfer, envelope)

    assert offer(await new_peer(broker), 1, number) is None
    assert offer(bob, 1, number + 1) is None
    assert len(broker.large.uploads) == 0
    assert offer(bob, 1, number) == 0


async def test_a_connection_that_was_replaced_takes_no_body_from_the_next(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    """Though what it had sent comes late: the client would send all of it again."""
    message = Envelope(bob.uid, alice.uid, bytes(16), FROM_AGENT | TO_AGENT, b"", 4)
    assert broker.large.offer(alice.session, 1, message) == 0
    await broker.large.uploads.write(alice.session_uid, 1, 0, b"body")
    old = alice.session
    await alice.reconnect()

    with pytest.raises(ProtocolError, match="the session is over"):
        broker.large.post(old, 1, 1, again(message))
    broker.large.post(alice.session, 1, 1, message)
    await broker.settle()

    assert [delivery.tag for delivery in bob.inbox] == [message.tag]


async def test_a_response_stays_until_it_was_received(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    await broker.settle()
    bob.respond(bob.inbox[0])
    await broker.settle()
    assert [(m.tag, m.payload, m.response) for m in alice.inbox] == [(tag, b"!", True)]
    assert await stored(store, alice) == [b"!"]

    alice.acknowledge()
    await broker.settle()

    assert await stored(store, alice) == []


async def test_a_one_way_message_settles_nothing_and_stays_until_it_was_received(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    await broker.settle()
    bob.one_way(alice.uid, tag, b"item")
    alice.one_way(bob.uid, tag, b"credit")
    await broker.settle()
    assert (alice.payloads(), bob.payloads()) == ([b"item"], [b"?", b"credit"])
    assert await stored(store, alice) == [b"item"]

    alice.acknowledge()
    bob.acknowledge(2)
    await broker.settle()
    assert await stored(store, alice) == []
    assert await stored(store, bob) == [b"?"]
    bob.respond(bob.inbox[0])
    await broker.settle()
    assert alice.payloads() == [b"item", b"!"]


async def test_a_full_or_ended_mailbox_refuses_one_way_messages(
    broker: Broker, alice: Peer
) -> None:
    broker._mailboxes.limits = SMALL
    bob = await new_peer(broker, attached=False)
    tag = os.urandom(16)
    for _ in range(5):
        alice.request(bob.uid)
    full = alice.one_way(bob.uid, tag)
    await broker.terminate(bob.uid)
    ended = alice.one_way(bob.uid, tag)
    await broker.settle()
    assert isinstance(alice.refused[full], MailboxFullError)
    assert isinstance(alice.refused[ended], MailboxTerminatedError)


async def test_a_second_answer_to_a_request_is_dropped(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.settle()

    bob.respond(bob.inbox[0], b"first")
    bob.respond(bob.inbox[0], b"second")
    await broker.settle()

    assert alice.payloads() == [b"first"]
    assert bob.refused == {}


async def test_what_is_sent_again_is_confirmed_again_and_not_stored_again(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid, b"once")
    sent = dict(alice.posted)
    await broker.settle()
    alice.confirmed = 0

    for sequence, envelope in sent.items():
        broker.post(alice.session, sequence, again(envelope))
    await broker.settle()

    assert (alice.confirmed, bob.payloads()) == (1, [b"once"])


async def test_what_one_consumer_is_owed_does_not_wait_for_another(
    broker: Broker, store: BrittleStore, alice: Peer
) -> None:
    """A mailbox fills its session's window, not those of other sessions."""
    broker._mailboxes.limits = SMALL
    slow, quick = await new_peer(broker), await new_peer(broker)
    for payload in numbered(5):
        alice.request(slow.uid, payload)
        alice.request(quick.uid, payload)
        await broker.settle()
        quick.acknowledge()

    assert quick.payloads() == numbered(5)
    assert slow.payloads() == numbered(3)


# --- the credit window


@pytest.mark.parametrize("limits", [replace(SMALL, max_mailbox_messages=1000)])
async def test_no_more_messages_are_under_way_than_the_window_lets_through(
    broker: Broker, alice: Peer
) -> None:
    bob = await new_peer(broker, attached=False)
    for payload in numbered(40):
        alice.request(bob.uid, payload)
    await bob.attach()
    received = 0
    while received < 40:
        assert len(bob.inbox) - received <= 3
        assert len(bob.inbox) > received, "the window is open and nothing comes"
        bob.acknowledge()
        received += 1
        await broker.settle()

    assert bob.payloads() == numbered(40)


@pytest.mark.parametrize(
    "limits", [replace(SMALL, max_mailbox_bytes=100_000, window_messages=1000)]
)
async def test_no_more_bytes_are_under_way_than_the_window_and_one_message(
    broker: Broker, alice: Peer
) -> None:
    broker._mailboxes.limits = replace(broker.limits, max_mailbox_messages=1000)
    bob = await new_peer(broker)
    payloads = [b"%03d" % n + b"." * 97 for n in range(20)]
    for payload in payloads:
        alice.request(bob.uid, payload)
    await broker.settle()
    received = 0
    while received < 20:
        assert received < len(bob.inbox) <= received + 3
        bob.acknowledge()
        received += 1
        await broker.settle()

    assert bob.payloads() == payloads


@pytest.mark.parametrize("limits", [replace(SMALL, max_mailbox_messages=1000)])
async def test_a_mailbox_that_has_caught_up_gets_new_messages_behind_the_old(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for batch in range(20):
        for payload in numbered(batch % 7, start=batch * 10):
            alice.request(bob.uid, payload)
        await broker.settle()
        bob.acknowledge(4)
    for _ in range(60):
        bob.acknowledge(4)
        await broker.settle()

    expected = [p for b in range(20) for p in numbered(b % 7, start=b * 10)]
    assert bob.payloads() == expected


async def test_more_receipts_than_deliveries_open_no_larger_window(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.settle()

    bob.acknowledge(2**32 - 1)
    await broker.settle()

    assert bob.session.room_messages == broker.limits.window_messages


# --- refusals


@pytest.mark.parametrize("limits", [SMALL])
async def test_a_full_mailbox_refuses_its_sender_only_and_until_there_is_room(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    carol = await new_peer(broker)
    for payload in numbered(7):
        alice.request(bob.uid, payload)
    carol.request(alice.uid, b"other")
    await broker.settle()
    assert sorted(alice.refused) == [6, 7]
    assert str(alice.refused[6]).endswith(
        "is full (5 unsettled messages): try again later."
    )
    assert (alice.confirmed, carol.refused) == (7, {})
    assert alice.payloads() == [b"other"]

    bob.respond(bob.inbox[0])
    await broker.settle()
    alice.request(bob.uid, b"room")
    await broker.settle()

    assert sorted(alice.refused) == [6, 7]


@pytest.mark.parametrize("limits", [SMALL])
async def test_a_mailbox_with_too_many_bytes_refuses(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for _ in range(4):
        alice.request(bob.uid, b"." * 90)
    await broker.settle()

    assert list(alice.refused) == [4]
    assert isinstance(alice.refused[4], MailboxFullError)
    assert "270 unsettled bytes" in str(alice.refused[4])


@pytest.mark.parametrize("limits", [SMALL])
async def test_answers_are_taken_by_a_full_mailbox(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    for payload in numbered(5):
        bob.request(alice.uid, payload)
    await broker.settle()

    bob.respond(bob.inbox[0])
    await broker.settle()
    alice.acknowledge(3)
    await broker.settle()
    alice.acknowledge(3)
    await broker.settle()

    assert bob.refused == {}
    assert alice.inbox[-1].tag == tag


@pytest.mark.parametrize("limits", [SMALL])
async def test_a_message_above_the_limit_is_refused(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid, b"." * 101)
    alice.request(bob.uid, b"." * 100)
    await broker.settle()

    assert isinstance(alice.refused[1], MessageTooLargeError)
    assert (alice.refused[1].size, alice.refused[1].limit) == (101, 100)
    assert [len(p) for p in bob.payloads()] == [100]


async def test_a_message_to_nobody_is_refused(broker: Broker, alice: Peer) -> None:
    nobody = uuid4()
    alice.request(nobody.bytes)
    await broker.settle()

    assert isinstance(alice.refused[1], BadEntityIdError)
    assert alice.refused[1].uid.uid == nobody


async def test_a_message_in_the_name_of_another_mailbox_is_refused(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    forged = Envelope(alice.uid, bob.uid, os.urandom(16), 6, b"?", 1)
    alice.post(forged)
    await broker.settle()

    assert isinstance(alice.refused[1], SupersededError)
    assert alice.inbox == []


async def test_a_refusal_that_was_lost_on_the_way_is_told_again(
    broker: Broker, alice: Peer
) -> None:
    alice.request(uuid4().bytes)
    alice.disconnect()  # before the turn, so that nobody hears of its outcome
    await broker.settle()
    assert alice.refused == {}

    await alice.reconnect()

    assert list(alice.refused) == [1]
    assert isinstance(alice.refused[1], BadEntityIdError)


async def test_a_refusal_is_told_through_the_connection_that_is_there_now(
    broker: Broker, alice: Peer
) -> None:
    """Else it would be forgotten with the next one, which the client confirms."""
    alice.request(uuid4().bytes)
    alice.connect()  # before the turn
    await broker.settle()

    assert list(alice.refused) == [1]


@pytest.mark.parametrize("limits", [SMALL])
async def test_a_refusal_that_nobody_has_heard_outlives_the_broker(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    for payload in numbered(6):
        alice.request(bob.uid, payload)
    alice.request(uuid4().bytes)
    alice.disconnect()  # before the turn, so that nobody hears of its outcome
    await broker.settle()

    alice.broker = await reopened(store)
    await alice.reconnect()

    assert {n: type(error) for n, error in alice.refused.items()} == {
        6: MailboxFullError,
        7: BadEntityIdError,
    }
    assert str(alice.refused[6]).endswith(
        "is full (5 unsettled messages): try again later."
    )
    assert alice.confirmed == 0


@pytest.mark.parametrize("hears", [True, False])
async def test_a_refusal_is_kept_until_it_was_heard(
    broker: Broker, store: BrittleStore, alice: Peer, hears: bool
) -> None:
    alice.hears = hears
    alice.request(uuid4().bytes)
    await broker.settle()
    assert list(alice.refused) == [1]
    alice.request(alice.uid)
    await broker.settle()
    alice.refused.clear()

    alice.broker = await reopened(store)
    await alice.reconnect()

    assert list(alice.refused) == ([] if hears else [1])
    assert len(await store.pending(PLACE, 0, 10)) == (0 if hears else 1)


async def test_who_never_confirms_a_refusal_has_the_latest_ones_kept(
    broker: Broker, alice: Peer
) -> None:
    alice.hears = False
    for _ in range(KEPT + 5):
        alice.request(uuid4().bytes)
    await broker.settle()
    alice.refused.clear()

    await alice.reconnect()

    assert list(alice.refused) == list(range(6, KEPT + 6))


async def test_refusals_of_a_turn_that_failed_are_forgotten(
    broker: Broker, store: BrittleStore, alice: Peer
) -> None:
    store.failures = 1
    alice.request(uuid4().bytes)
    await broker.settle()

    await alice.reconnect()

    assert list(alice.refused) == [1]
    assert len(await store.pending(PLACE, 0, 10)) == 1


async def test_what_a_failed_turn_took_is_not_known_to_who_connects_before_it_is_over(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    """Else it would forget what it has sent, or take new messages for old ones."""
    alice.request(bob.uid, b"stored")
    await broker.settle()
    store.failures = 2  # the transaction, and reading what there is after it
    alice.request(bob.uid, b"not stored")
    await broker.settle()

    alice.connect()

    assert await broker.known(alice.session) == (1, 1)


# --- incarnations


async def test_a_newer_incarnation_takes_the_mailbox_over(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    newer = await Peer(broker, bob.uid).attach()
    assert [type(error) for error in bob.losses] == [SupersededError]

    alice.request(bob.uid, b"for the newer")
    bob.request(alice.uid, b"from the older")
    newer.request(alice.uid, b"from the newer")
    await broker.settle()

    assert (bob.payloads(), newer.payloads()) == ([], [b"for the newer"])
    assert alice.payloads() == [b"from the newer"]
    assert isinstance(bob.refused[1], SupersededError)
    assert newer.losses == []


async def test_a_newer_incarnation_gets_what_the_older_left_marked_and_in_order(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for payload in numbered(4):
        alice.request(bob.uid, payload)
    await broker.settle()
    bob.respond(bob.inbox[1])
    bob.disconnect()
    for payload in numbered(2, start=4):
        alice.request(bob.uid, payload)
    await broker.settle()

    newer = await Peer(broker, bob.uid).attach()

    assert newer.payloads() == [b"0", b"2", b"3", b"4", b"5"]
    assert flagged(newer.inbox) == [b"0", b"2", b"3"]


async def test_what_the_older_left_stays_marked_when_the_newer_gets_it_again(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid, b"begun")
    await broker.settle()
    bob.disconnect()
    newer = await Peer(broker, bob.uid).attach()
    newer.inbox.clear()  # it was lost on its way

    await newer.reconnect()

    assert flagged(newer.inbox) == [b"begun"]


@pytest.mark.parametrize("held", [True, False])
async def test_what_the_older_left_stays_marked_when_the_newer_gives_it_back(
    broker: Broker, alice: Peer, bob: Peer, held: bool
) -> None:
    tag = alice.request(bob.uid, b"begun")
    await broker.settle()
    bob.disconnect()
    newer = await Peer(broker, bob.uid).attach()
    await newer.reconnect([tag] if held else [])
    number = newer.inbox[0].number
    await broker.detach(newer.session, newer.uid, released=[number])

    newest = await Peer(broker, bob.uid).attach()

    assert flagged(newest.inbox) == [b"begun"]


async def test_each_attachment_of_a_new_incarnation_has_a_larger_epoch(
    broker: Broker, store: BrittleStore, bob: Peer
) -> None:
    await bob.reconnect()
    await Peer(broker, bob.uid).attach()
    await Peer(broker, bob.uid).attach()

    (record,) = (await store.open()).mailboxes
    assert record.epoch == 3


async def test_an_older_incarnation_that_comes_back_is_told_so(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    bob.disconnect()
    newer = await Peer(broker, bob.uid).attach()

    with pytest.raises(SupersededError):
        await bob.reconnect()

    alice.request(bob.uid)
    await broker.settle()
    assert (len(bob.inbox), len(newer.inbox), newer.losses) == (0, 1, [])


async def test_a_resumed_incarnation_gets_only_what_it_does_not_hold(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    tags = [alice.request(bob.uid, payload) for payload in numbered(4)]
    await broker.settle()
    bob.disconnect()
    alice.request(bob.uid, b"4")
    await broker.settle()
    bob.inbox.clear()

    await bob.reconnect(held=[tags[0], tags[2]])

    assert bob.payloads() == [b"1", b"3", b"4"]
    assert flagged(bob.inbox) == []


async def test_a_resumed_incarnation_can_still_answer_what_it_holds(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    await broker.settle()
    held = list(bob.inbox)
    bob.disconnect()
    bob.respond(held[0])  # kept by the client while it was away

    await bob.reconnect(held=[tag])

    assert alice.payloads() == [b"!"]
    assert broker.stats(bob.uid).queued == 0


async def test_a_response_whose_receipt_was_lost_comes_again(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.settle()
    bob.respond(bob.inbox[0])
    await broker.settle()

    await alice.reconnect()
    alice.acknowledge()
    await broker.settle()

    assert alice.payloads() == [b"!", b"!"]
    assert await stored(store, alice) == []


async def test_nothing_comes_before_a_client_knows_that_it_is_attached(
    broker: Broker, alice: Peer
) -> None:
    bob = await new_peer(broker, attached=False)
    alice.request(bob.uid, b"before")
    bob.connect()
    await broker.attach(bob.session, bob.uid, bob.incarnation)
    alice.request(bob.uid, b"meanwhile")
    bob.acknowledge(0)
    await broker.settle()
    assert bob.inbox == []

    broker.start(bob.session, [bob.uid])
    alice.request(bob.uid, b"after")
    await broker.settle()
    broker.start(bob.session, [bob.uid, alice.uid])
    await broker.settle()

    assert bob.payloads() == [b"before", b"meanwhile", b"after"]


async def test_only_registered_and_live_mailboxes_can_be_attached(
    broker: Broker, bob: Peer
) -> None:
    await broker.terminate(bob.uid)

    with pytest.raises(MailboxTerminatedError):
        await Peer(broker, bob.uid).attach()
    with pytest.raises(BadEntityIdError):
        await Peer(broker, uuid4().bytes).attach()


# --- sessions


async def test_what_was_posted_before_a_connection_was_lost_is_taken(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for payload in numbered(3):
        alice.request(bob.uid, payload)
    alice.disconnect()
    await broker.settle()
    assert bob.payloads() == numbered(3)

    await alice.reconnect()

    assert bob.payloads() == numbered(3)


async def test_what_is_posted_through_a_lost_connection_waits_for_the_next(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.disconnect()
    await broker.settle()
    alice.request(bob.uid, b"late")
    await broker.settle()
    assert bob.inbox == []

    await alice.reconnect()

    assert bob.payloads() == [b"late"]


async def test_a_session_that_connects_anew_closes_its_older_connection(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    newer = Peer(broker, alice.uid, alice.incarnation, alice.session_uid)
    await newer.attach(resume=True)
    bob.request(alice.uid)
    await broker.settle()

    assert [type(error) for error in alice.resets] == [ForbiddenError]
    assert (alice.inbox, newer.payloads(), newer.losses) == ([], [b"?"], [])


async def test_a_late_attachment_of_an_older_connection_changes_nothing(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    newer = Peer(broker, alice.uid, alice.incarnation, alice.session_uid)
    await newer.attach(resume=True)

    with pytest.raises(ForbiddenError):
        await alice.attach(resume=True)
    bob.request(alice.uid)
    await broker.settle()

    assert (alice.inbox, newer.payloads(), newer.losses) == ([], [b"?"], [])


async def test_a_late_message_of_an_older_connection_hides_none_before_it(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    older = alice.session
    first = again_of(alice, bob, b"first")
    second = again_of(alice, bob, b"second")
    alice.disconnect()
    await broker.settle()

    alice.connect()
    broker.post(older, 2, again(second))
    await alice.attach(resume=True)
    broker.post(alice.session, 1, first)
    broker.post(alice.session, 2, second)
    await broker.settle()

    assert bob.payloads() == [b"first", b"second"]


def again_of(source: Peer, dest: Peer, payload: bytes) -> Envelope:
    return Envelope(dest.uid, source.uid, os.urandom(16), 6, payload, len(payload))


async def test_a_detached_mailbox_keeps_its_messages_for_the_next(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    await broker.detach(bob.session, bob.uid)
    await broker.detach(bob.session, bob.uid)
    alice.request(bob.uid)
    await broker.settle()
    assert bob.inbox == []

    newer = await Peer(broker, bob.uid).attach()

    assert newer.payloads() == [b"?"]
    assert bob.losses == []


async def test_what_was_given_back_or_not_read_is_as_if_it_had_never_been_out(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for payload in numbered(4):
        alice.request(bob.uid, payload)
    await broker.settle()
    bob.acknowledge(3)
    alice.request(bob.uid, b"4")  # in the turn of the detachment

    await broker.detach(bob.session, bob.uid, released=[bob.inbox[1].number, 99])
    newer = await Peer(broker, bob.uid).attach()

    assert (bob.payloads(), newer.payloads()) == (numbered(4), numbered(5))
    assert flagged(newer.inbox) == [b"0", b"2"]


async def test_what_was_posted_before_a_detachment_is_taken(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.detach(alice.session, alice.uid)
    await broker.settle()

    assert bob.payloads() == [b"?"]
    assert alice.refused == {}


# --- termination


def terminated_by(message: Delivery) -> BaseException:
    body = decode_body(memoryview(message.payload))
    assert isinstance(body, AcademyErrorResponse)
    return body.get_exception()


async def test_termination_answers_every_unsettled_request(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    """Those that were delivered, and those that wait."""
    delivered = alice.request(bob.uid)
    await broker.settle()
    bob.disconnect()
    await broker.settle()
    waiting = alice.request(bob.uid)
    await broker.settle()

    await broker.terminate(bob.uid)
    await broker.settle()

    assert [message.tag for message in alice.inbox] == [delivered, waiting]
    for message in alice.inbox:
        error = terminated_by(message)
        assert isinstance(error, MailboxTerminatedError)
        assert error.uid.uid.bytes == bob.uid
    assert await stored(store, bob) == []
    assert broker.status(bob.uid) is MailboxStatus.TERMINATED


async def test_what_was_posted_before_a_termination_comes_before_it(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    """An agent that answers and ends at once has answered."""
    tag = alice.request(bob.uid)
    late = alice.request(bob.uid)
    await broker.settle()

    bob.respond(bob.inbox[0], b"the result")
    await broker.terminate(bob.uid, bob.uid)
    await broker.settle()

    assert [message.tag for message in alice.inbox] == [tag, late]
    assert alice.inbox[0].payload == b"the result"
    assert isinstance(terminated_by(alice.inbox[1]), MailboxTerminatedError)


async def test_a_request_that_meets_a_termination_is_answered(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    tag = alice.request(bob.uid)
    await broker.terminate(bob.uid)
    await broker.settle()

    assert [message.tag for message in alice.inbox] == [tag]
    assert isinstance(terminated_by(alice.inbox[0]), MailboxTerminatedError)
    assert await stored(store, bob) == []


async def test_a_terminated_mailbox_refuses_requests_and_drops_answers(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid)
    await broker.settle()
    await broker.terminate(alice.uid)

    bob.request(alice.uid)
    bob.respond(bob.inbox[0])
    await broker.settle()

    assert list(bob.refused) == [1]
    assert isinstance(bob.refused[1], MailboxTerminatedError)
    assert broker.stats(bob.uid).in_progress == 0


async def test_the_owner_is_told_of_a_termination_unless_it_asked_for_it(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    await broker.terminate(alice.uid, alice.uid)
    await broker.terminate(bob.uid, alice.uid)

    assert alice.losses == []
    assert [type(e).__name__ for e in bob.losses] == ["AgentTerminatedError"]


async def test_terminating_nobody_or_twice_does_nothing(
    broker: Broker, store: BrittleStore, bob: Peer
) -> None:
    await broker.terminate(bob.uid)
    before = store.commits
    await broker.terminate(bob.uid)
    await broker.terminate(uuid4().bytes)

    assert (len(bob.losses), store.commits) == (1, before)


async def test_an_id_of_a_terminated_mailbox_is_never_used_again(
    broker: Broker, bob: Peer
) -> None:
    await broker.terminate(bob.uid)
    await broker.register([MailboxRecord(bob.uid, True)])

    assert broker.status(bob.uid) is MailboxStatus.TERMINATED


# --- storage that fails


async def test_nothing_is_lost_or_doubled_when_the_store_fails(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    alice.request(bob.uid, b"0")
    await broker.settle()
    store.failures = 1
    tag = alice.request(bob.uid, b"1")
    await broker.settle()
    assert (alice.confirmed, bob.payloads()) == (1, [b"0"])
    assert [type(e) for e in alice.resets + bob.resets] == [StorageError] * 2

    held = [message.tag for message in bob.inbox]
    await bob.reconnect(held=held)
    await alice.reconnect()

    assert bob.payloads() == [b"0", b"1"]
    assert bob.inbox[1].tag == tag
    assert (alice.confirmed, flagged(bob.inbox)) == (2, [])


@pytest.mark.parametrize("leaves", ["never", "before", "after"])
async def test_what_comes_while_the_store_fails_hides_nothing_before_it(
    limits: Limits, leaves: str
) -> None:
    store = GatedStore()
    broker = Broker(store, limits)
    await broker.open()
    alice, bob = await new_peer(broker), await new_peer(broker)
    store.gate.clear()
    store.failing = True
    alice.request(bob.uid, b"first")
    if leaves == "before":
        alice.disconnect()
    await store.waiting.wait()

    alice.request(bob.uid, b"second")  # in the same session, for the next turn
    if leaves == "after":
        alice.disconnect()
    store.gate.set()
    await broker.settle()
    await bob.reconnect()
    await alice.reconnect()
    await broker.close()

    assert bob.payloads() == [b"first", b"second"]


async def test_who_asks_while_the_store_fails_is_told(
    broker: Broker, store: BrittleStore, alice: Peer
) -> None:
    store.failures = 1
    record = agent()
    with pytest.raises(StorageError, match="no space left"):
        await broker.register([record])
    assert broker.status(record.uid) is MailboxStatus.MISSING

    await broker.register([record])
    assert broker.status(record.uid) is MailboxStatus.ACTIVE


async def test_a_store_that_cannot_be_opened_again_is_tried_with_the_next_message(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    inner = store.inner
    store.inner, store.failures = NoStore(), 1
    with pytest.raises(StorageError):
        await broker.register([agent()])
    with pytest.raises(StorageError):
        await broker.register([agent()])
    # Not for ever, whatever has come of those who were sent away.
    alice.request(bob.uid, b"late")
    bob.acknowledge()
    async with asyncio.timeout(10):
        await broker.settle()

    store.inner = inner
    await bob.reconnect()
    await alice.reconnect()
    alice.request(bob.uid)
    await broker.settle()

    assert bob.payloads() == [b"late", b"?"]


class NoStore(MemoryStore):
    """A disk that is gone."""

    commit_now = None

    async def open(self) -> Contents:
        await asyncio.sleep(0)
        raise StorageError("input/output error")

    async def commit(self, changes: Changes) -> None:
        raise StorageError("input/output error")


async def test_an_error_in_the_broker_itself_leaves_nobody_waiting(
    broker: Broker, alice: Peer, bob: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MailboxRecord):
        @property
        def uid(self) -> bytes:  # type: ignore[override]  # it fails
            raise RuntimeError("a defect")

    broken = object.__new__(Broken)
    with pytest.raises(StorageError, match="a defect"):
        await broker.register([broken])

    await bob.reconnect()
    await alice.reconnect()
    alice.request(bob.uid)
    await broker.settle()
    assert bob.payloads() == [b"?"]
    assert "a defect" in caplog.text


# --- what is kept


async def test_a_broker_goes_on_where_the_last_one_on_its_store_has_stopped(
    broker: Broker, store: BrittleStore, alice: Peer, bob: Peer
) -> None:
    answered = alice.request(bob.uid, b"answered")
    held = alice.request(bob.uid, b"held")
    alice.request(bob.uid, b"on its way")
    await broker.settle()
    bob.respond(bob.inbox[0])
    sent = dict(alice.posted)
    await broker.settle()
    del bob.inbox[2]

    successor = Broker(store)
    await successor.open()
    for client in (alice, bob):
        client.broker = successor
    alice.posted = sent  # as if it had never heard that they were stored
    await alice.reconnect()
    await bob.reconnect(held=[held])

    assert bob.payloads() == [b"answered", b"held", b"on its way"]
    assert flagged(bob.inbox) == []
    assert {message.tag for message in alice.inbox} == {answered}
    bob.respond(bob.inbox[1])
    bob.respond(bob.inbox[2])
    alice.acknowledge(9)
    await successor.settle()
    assert successor.stats(bob.uid).queued == successor.stats(bob.uid).in_progress == 0


@pytest.mark.parametrize("limits", [replace(SMALL, max_mailbox_messages=1000)])
async def test_a_mailbox_that_was_emptied_is_empty_to_the_byte(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    """Messages that waited in the store count as they did when they came."""
    for _ in range(10):
        for _ in range(3):
            alice.request(bob.uid, b"." * 90)
        await broker.settle()
        while bob.inbox:
            bob.acknowledge()
            bob.respond(bob.inbox.pop(0))
            await broker.settle()
            alice.acknowledge()
    await broker.settle()

    assert alice.refused == {}


# --- the directory


async def test_registering_an_id_again_changes_nothing(
    broker: Broker, store: BrittleStore
) -> None:
    record = agent("Ada", "m.A", creator="ada")
    await broker.register([record])
    before = store.commits
    await broker.register([MailboxRecord(record.uid, True, "Eve", creator="ada")])

    assert [found.name for found in broker.discover("m.A", True)] == ["Ada"]
    assert store.commits == before


async def test_nobody_registers_an_id_of_somebody_else(broker: Broker) -> None:
    """Whoever registers a mailbox gets the token that opens it."""
    record = agent("Ada", "m.A", creator="ada")
    new = agent("new", "m.A", creator="eve")
    await broker.register([record])

    with pytest.raises(ForbiddenError, match="registered by somebody else"):
        await broker.register([new, MailboxRecord(record.uid, True, creator="eve")])

    assert broker.creator(record.uid) == "ada"
    assert broker.status(new.uid) is MailboxStatus.MISSING


async def test_agents_are_found_by_their_class_and_its_bases(broker: Broker) -> None:
    base = agent("base", "m.Base")
    derived = agent("derived", "m.Derived", "m.Base")
    gone = agent("gone", "m.Base")
    user = MailboxRecord(uuid4().bytes, False, "user", ("m.Base",))
    await broker.register([base, derived, gone, user])
    await broker.terminate(gone.uid)

    def found(name: str, allow_subclasses: bool) -> list[str | None]:
        return [r.name for r in broker.discover(name, allow_subclasses)]

    assert found("m.Base", True) == ["base", "derived"]
    assert found("m.Base", False) == ["base"]
    assert found("m.Derived", False) == ["derived"]
    assert found("m.Nothing", True) == []


async def test_counts_of_an_agent_follow_its_messages(
    broker: Broker, alice: Peer, bob: Peer
) -> None:
    for _ in range(3):
        alice.request(bob.uid)
    bob.request(alice.uid)
    await broker.settle()
    bob.respond(bob.inbox[0])
    bob.disconnect()
    await broker.settle()
    alice.request(bob.uid)
    await broker.settle()

    stats = broker.stats(bob.uid)
    assert (stats.incoming, stats.outgoing, stats.completed) == (4, 2, 1)
    assert stats.in_progress + stats.queued == 3
    with pytest.raises(BadEntityIdError):
        broker.stats(uuid4().bytes)


async def test_an_owner_is_silent_from_when_it_was_detached(
    broker: Broker, bob: Peer
) -> None:
    assert broker.silence(uuid4().bytes) is None
    never = await new_peer(broker, attached=False)
    assert broker.silence(never.uid) is None
    assert broker.silence(bob.uid) == 0.0

    bob.disconnect()
    await broker.settle()
    silence = broker.silence(bob.uid)
    assert silence is not None
    assert silence > 0

    broker.touch(never.uid)
    assert broker.silence(never.uid) is not None


async def test_closing_twice_is_fine(broker: Broker) -> None:
    await broker.close()
    await broker.close()
