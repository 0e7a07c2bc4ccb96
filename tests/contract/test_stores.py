"""The contract of stores: what is committed is there, whole, and comes back."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import pytest

from academy.exception import StorageError
from academy.exchange.broker import Broker
from academy.exchange.mailbox import Limits
from academy.exchange.store import (
    FROM_AGENT,
    LARGE,
    RESPONSE,
    TO_AGENT,
    Changes,
    Envelope,
    MailboxRecord,
    Store,
)
from academy.exchange.store.bodies import Body
from academy.exchange.store.measured import MeasuredStore
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import CHECK_EVERY, CHECKPOINT_BYTES, SqliteStore
from tests.support.peers import Peer, agent, check_usage
from tests.support.redis import Redis, redis_store

Make: TypeAlias = Callable[[Path], Store]

IMPLEMENTATIONS: dict[str, Make] = {
    "memory": lambda path: MemoryStore(),
    "measured": lambda path: MeasuredStore(MemoryStore()),
    "sqlite-process": lambda path: SqliteStore(path),
    "sqlite-power": lambda path: SqliteStore(path, "power"),
}
DURABLE = {name: make for name, make in IMPLEMENTATIONS.items() if "sqlite" in name}

DEST, OTHER, SRC = (uuid4().bytes for _ in range(3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "exchange.db"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(params=[*IMPLEMENTATIONS, "redis"])
async def store(
    request: pytest.FixtureRequest, path: Path, redis: Redis
) -> AsyncIterator[Store]:
    if request.param == "redis":
        async with redis_store(redis.url, uuid4().hex) as opened:
            yield opened
        return
    store = IMPLEMENTATIONS[request.param](path)
    await store.open()
    yield store
    await store.close()


@pytest.fixture(params=list(DURABLE.values()), ids=list(DURABLE))
def make(request: pytest.FixtureRequest, path: Path) -> Callable[[], SqliteStore]:
    return lambda: request.param(path)


def message(
    number: int, payload: bytes = b"", dest: bytes = DEST, **options: int
) -> Envelope:
    payload = payload or b"payload %d" % number
    tag = number.to_bytes(16, "big")
    flags, lease = options.get("flags", 0), options.get("lease", 0)
    return Envelope(
        dest, SRC, tag, flags, payload, len(payload), number=number, lease=lease
    )


def fields(envelope: Envelope) -> tuple[object, ...]:
    e = envelope
    return e.dest, e.src, e.tag, e.flags, e.payload, e.size, e.number, e.lease


def add(*envelopes: Envelope) -> Changes:
    return Changes(added=list(envelopes))


def registered(*uids: bytes) -> Changes:
    return Changes(mailboxes={uid: MailboxRecord(uid, True) for uid in uids})


async def numbers(store: Store, dest: bytes = DEST, after: int = 0) -> list[int]:
    return [e.number for e in await store.pending(dest, after, 1000)]


# --- every store


async def test_a_new_store_is_empty(store: Store) -> None:
    contents = await store.open()

    assert (contents.mailboxes, contents.sessions, contents.waiting) == ([], {}, {})
    assert contents.last_number == 0
    assert await store.pending(DEST, 0, 10) == []


async def test_messages_come_back_as_they_were_in_the_order_of_their_numbers(
    store: Store,
) -> None:
    payload = bytes(range(256)) * 4
    sent = [
        message(1, flags=RESPONSE),
        message(2, payload, flags=FROM_AGENT, lease=3),
        message(5, b"\0"),
    ]
    expected = [fields(envelope) for envelope in sent]
    await store.commit(add(*sent))

    assert [fields(e) for e in await store.pending(DEST, 0, 10)] == expected


async def test_messages_are_read_page_by_page(store: Store) -> None:
    await store.commit(add(*(message(n) for n in range(1, 11))))

    first = await store.pending(DEST, 0, 4)
    second = await store.pending(DEST, first[-1].number, 4)
    third = await store.pending(DEST, second[-1].number, 4)

    pages = [[e.number for e in page] for page in (first, second, third)]
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


async def test_mailboxes_do_not_mix(store: Store) -> None:
    await store.commit(add(message(1), message(2, dest=OTHER), message(3)))

    assert await numbers(store) == [1, 3]
    assert await numbers(store, OTHER) == [2]


async def test_messages_may_wait_where_no_mailbox_can_be(store: Store) -> None:
    await store.commit(add(message(1, dest=b"a place"), message(2)))

    contents = await store.open()

    assert contents.waiting[b"a place"] == (1, len(b"payload 1"))
    assert await numbers(store, b"a place") == [1]
    await store.commit(Changes(settled=[(b"a place", 1)]))
    assert await numbers(store, b"a place") == []


async def test_settled_messages_are_gone_and_the_others_stay(store: Store) -> None:
    await store.commit(add(*(message(n) for n in range(1, 5))))
    await store.commit(Changes(settled=[(DEST, 1), (DEST, 3), (DEST, 9), (OTHER, 2)]))

    assert await numbers(store) == [2, 4]
    assert await numbers(store, after=2) == [4]


async def test_a_lease_is_kept_with_its_message(store: Store) -> None:
    await store.commit(add(message(1), message(2)))
    await store.commit(Changes(leased=[message(2, lease=7)]))

    found = [(e.lease, e.payload) for e in await store.pending(DEST, 0, 10)]
    assert found == [(0, b"payload 1"), (7, b"payload 2")]


async def test_clearing_a_mailbox_takes_what_came_in_the_same_transaction(
    store: Store,
) -> None:
    await store.commit(add(message(1), message(2, dest=OTHER)))
    await store.commit(Changes(added=[message(3)], cleared=[DEST]))

    assert await numbers(store) == []
    assert await numbers(store, OTHER) == [2]


async def test_what_waits_is_counted_when_a_store_is_opened(store: Store) -> None:
    await store.commit(registered(DEST, OTHER))
    await store.commit(
        add(message(1, b"12345"), message(2, b"123"), message(3, b"1", OTHER))
    )
    await store.commit(Changes(settled=[(DEST, 2)]))

    contents = await store.open()

    assert contents.waiting == {DEST: (1, 5), OTHER: (1, 1)}
    assert contents.last_number >= 3


async def test_an_empty_payload_counts_as_a_message(store: Store) -> None:
    await store.commit(registered(DEST))
    empty = Envelope(DEST, SRC, bytes(16), 0, b"", 0, number=1)
    await store.commit(add(empty))

    assert (await store.open()).waiting == {DEST: (1, 0)}
    assert [e.payload for e in await store.pending(DEST, 0, 1)] == [b""]


async def test_mailboxes_and_sessions_come_back_as_they_were_last(
    store: Store,
) -> None:
    session = uuid4().bytes
    ada = MailboxRecord(DEST, True, "Ada Ünïcode", ("m.Derived", "m.Base"), creator="u")
    user = MailboxRecord(OTHER, False)
    await store.commit(
        Changes(mailboxes={DEST: ada, OTHER: user}, sessions={session: 5})
    )
    ada.epoch, ada.incarnation, ada.terminated = 3, b"incarnation", True
    ada.groups = ("group", "other")
    await store.commit(Changes(mailboxes={DEST: ada}, sessions={session: 9}))

    contents = await store.open()

    assert sorted(contents.mailboxes, key=lambda r: r.agent) == [user, ada]
    assert contents.sessions == {session: 9}


def expiring(*items: tuple[int, float], dest: bytes = DEST) -> Changes:
    added = [message(number, dest=dest) for number, _ in items]
    return Changes(added=added, expiries=[(dest, n, due) for n, due in items])


async def expired(
    store: Store, now: float, limit: int = 100
) -> tuple[list[int], float | None]:
    found, due = await store.expired(now, limit)
    return sorted(e.number for e in found), due


async def test_messages_come_back_when_they_have_expired(store: Store) -> None:
    assert await expired(store, 1e12) == ([], None)
    await store.commit(add(message(1, lease=2, flags=FROM_AGENT), message(2)))
    await store.commit(expiring((3, 1000.25), (4, 2000.5), (5, 1500.0)))
    await store.commit(expiring((6, 900.0), dest=OTHER))
    await store.commit(Changes(expiries=[(DEST, 1, 1200.0)]))

    assert await expired(store, 0, 0) == ([], 900.0)
    assert await expired(store, 899.0) == ([], 900.0)
    assert (await expired(store, 1200.0))[0] == [1, 3, 6]
    assert (await store.open()).last_number >= 6
    found, _ = await store.expired(1e12, 100)
    by_number = {envelope.number: envelope for envelope in found}
    assert set(by_number) == {1, 3, 4, 5, 6}
    assert fields(by_number[1]) == fields(message(1, lease=2, flags=FROM_AGENT))
    assert by_number[6].dest == OTHER


async def test_what_is_settled_or_expires_later_has_not_expired(store: Store) -> None:
    await store.commit(expiring((1, 10.0), (2, 20.0), (3, 30.0), (4, 15.0)))
    await store.commit(
        Changes(settled=[(DEST, 1)], cleared=[OTHER], expiries=[(DEST, 4, 500.0)])
    )

    assert (await expired(store, 100.0))[0] == [2, 3]
    await store.commit(Changes(settled=[(DEST, 2), (DEST, 3)]))
    assert (await expired(store, 100.0))[0] == []
    assert await expired(store, 100.0) == ([], 500.0)
    await store.commit(Changes(cleared=[DEST]))
    await expired(store, 1000.0)
    assert await expired(store, 1000.0) == ([], None)


async def test_what_has_expired_is_read_bit_by_bit(store: Store) -> None:
    await store.commit(expiring(*((n, float(n)) for n in range(1, 10))))
    seen: list[int] = []
    due: float | None = 0.0
    while due is not None:
        found, due = await expired(store, 100.0, 4)
        assert len(found) <= 4
        seen += found
        await store.commit(Changes(settled=[(DEST, n) for n in found]))
    assert seen == list(range(1, 10))


async def test_a_removed_mailbox_is_unknown(store: Store) -> None:
    await store.commit(registered(DEST, OTHER))
    await store.commit(Changes(removed=[DEST, SRC]))
    assert [r.uid for r in (await store.open()).mailboxes] == [OTHER]


@pytest.mark.parametrize(
    "end", [Changes(settled=[(DEST, 1)]), Changes(cleared=[DEST])], ids=["1", "all"]
)
async def test_the_body_of_a_large_message_lives_as_long_as_that(
    store: Store, end: Changes
) -> None:
    data = random.Random(1).randbytes(2_500_000)
    body = Body.new(len(data))
    for at in range(0, len(data), 700_000):
        await store.bodies.write(body.key, at, data[at : at + 700_000])
    tag, size = bytes(16), len(data)
    large = Envelope(DEST, SRC, tag, LARGE, body.packed(), size, number=1)
    added = Changes(registered(DEST).mailboxes, [large, message(2)], [large])
    await store.commit(added)

    contents = await store.open()

    assert contents.waiting == {DEST: (2, size + len(b"payload 2"))}
    found, _ = await store.pending(DEST, 0, 9)
    assert (Body.unpacked(found.payload), found.size) == (body, size)
    assert await store.bodies.read(body.key, 999_990, 20) == data[999_990:1_000_010]
    assert await store.bodies.read(body.key, 0, size) == data
    await store.commit(end)
    await body_is_gone(store, body)


async def test_a_body_that_no_message_has_goes_when_a_store_is_opened(
    store: Store,
) -> None:
    body = Body.new(10)
    await store.bodies.write(body.key, 0, b"0123456789")

    await store.open()

    await body_is_gone(store, body)


async def test_a_broker_knows_what_a_namespace_uses_after_a_restart(
    store: Store,
) -> None:
    limits = Limits(max_namespace_messages=9, max_namespace_bytes=9_000_000)
    broker = Broker(store, limits)
    await broker.open()
    alice, bob, gone = agent(), agent(), agent()
    await broker.register([alice, bob, gone])
    sender = await Peer(broker, alice.uid).attach()
    receiver = await Peer(broker, bob.uid).attach()
    for dest in (bob, gone, bob):
        sender.request(dest.uid, bytes(100))
    large = Envelope(bob.uid, alice.uid, bytes(16), FROM_AGENT | TO_AGENT, b"", 600_000)
    broker.large.offer(sender.session, 1, large)
    await broker.large.uploads.write(sender.session_uid, 1, 0, bytes(600_000))
    broker.large.post(sender.session, 4, 1, large)
    broker.large.offer(sender.session, 2, large)  # its body never comes
    await broker.settle()
    receiver.respond(receiver.inbox[0], bytes(10))
    await broker.terminate(gone.uid)  # which answers its request
    await broker.settle()
    check_usage(broker)
    before = broker._mailboxes.usage
    broker.large.uploads.drop(sender.session_uid, 2)

    again = Broker(store, limits)
    await again.open()
    check_usage(again)
    after = again._mailboxes.usage
    assert before is not None
    assert after is not None
    assert (after.messages, after.bytes) == (before.messages, before.bytes)
    assert after.messages == 4
    assert 600_110 < after.bytes < 601_500
    assert again._mailboxes.live == 2
    broker._expiry.stop()
    again._expiry.stop()


async def body_is_gone(store: Store, body: Body) -> None:
    async def until_it_fails() -> None:
        while True:
            await store.bodies.read(body.key, 0, 1)

    with pytest.raises(StorageError):
        await asyncio.wait_for(until_it_fails(), 30)


async def test_nothing_to_write_is_fine(store: Store) -> None:
    changes = Changes()
    assert not changes
    await store.commit(changes)
    assert (await store.open()).last_number == 0


async def test_closing_twice_is_fine(store: Store) -> None:
    await store.close()
    await store.close()


# --- those that outlive their process


def size_of_log(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def in_new_folder(path: Path) -> Path:
    path.parent.mkdir()
    return path


async def test_everything_is_there_when_a_file_is_opened_again(
    make: Callable[[], SqliteStore],
) -> None:
    record = MailboxRecord(DEST, True, "Ada", ("m.A",), 2, b"i" * 16, False, "u")
    first = make()
    await first.open()
    await first.commit(
        Changes({DEST: record}, [message(1), message(4, lease=2)], sessions={SRC: 12})
    )
    await first.close()

    second = make()
    contents = await second.open()

    assert contents.mailboxes == [record]
    assert contents.sessions == {SRC: 12}
    assert contents.waiting == {DEST: (2, 18)}
    assert contents.last_number == 4
    assert [e.lease for e in await second.pending(DEST, 0, 9)] == [0, 2]
    await second.close()


async def test_a_transaction_that_fails_leaves_nothing_behind(
    make: Callable[[], SqliteStore],
) -> None:
    store = make()
    await store.open()
    await store.commit(add(message(1)))

    with pytest.raises(StorageError, match=r"cannot write .*exchange\.db.*UNIQUE"):
        await store.commit(Changes(added=[message(2), message(1)], sessions={SRC: 3}))
    with pytest.raises(StorageError, match="cannot write"):
        await store.commit(Changes(added=[message(3)], sessions={SRC: 1 << 64}))

    await store.commit(add(message(4)))
    assert await numbers(store) == [1, 4]
    assert (await store.open()).sessions == {}
    await store.close()


async def test_a_file_that_is_in_use_is_refused_by_name(
    make: Callable[[], SqliteStore], path: Path
) -> None:
    store, second = make(), make()
    await store.open()

    with pytest.raises(StorageError) as refused:
        await second.open()
    assert str(refused.value) == (
        f"{path} is in use by another exchange: stop that one first, or configure "
        "another path."
    )
    await second.close()

    await store.commit(add(message(1)))
    await store.close()
    await second.open()
    assert await numbers(second) == [1]
    await second.close()


async def test_a_store_is_opened_again_while_it_is_open(
    make: Callable[[], SqliteStore],
) -> None:
    store = make()
    await store.open()
    await store.commit(add(message(1)))

    assert (await store.open()).last_number == 1
    await store.close()


async def test_a_closed_store_takes_nothing(make: Callable[[], SqliteStore]) -> None:
    store = make()
    await store.open()
    await store.close()

    with pytest.raises(StorageError, match="is closed"):
        await store.commit(add(message(1)))
    with pytest.raises(StorageError, match="is closed"):
        await store.pending(DEST, 0, 1)


async def test_only_the_owner_can_read_the_files(
    make: Callable[[], SqliteStore], path: Path
) -> None:
    store = make()
    await store.open()
    await store.commit(add(message(1)))

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    await store.close()

    assert {"exchange.db", "exchange.db-wal", "exchange.db.lock"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_file_from_before_mailboxes_were_shared_is_brought_up_to_date(
    make: Callable[[], SqliteStore], path: Path
) -> None:
    record = MailboxRecord(DEST, True, "Ada")
    store = make()
    await store.open()
    await store.commit(Changes({DEST: record}))
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("alter table mailbox drop column groups")
        db.execute("pragma user_version=2")
    db.close()

    assert (await store.open()).mailboxes == [record]
    await store.close()


async def test_a_file_of_another_version_is_refused_by_name(
    make: Callable[[], SqliteStore], path: Path
) -> None:
    with sqlite3.connect(in_new_folder(path)) as db:
        db.execute("pragma user_version=99")
    db.close()

    store = make()
    with pytest.raises(StorageError, match=r"exchange\.db was written by another .*99"):
        await store.open()
    await store.close()


async def test_a_file_that_is_no_database_is_refused_by_name(
    make: Callable[[], SqliteStore], path: Path
) -> None:
    in_new_folder(path).write_bytes(b"This is a text file, not a database. " * 100)

    store = make()
    with pytest.raises(StorageError, match=r"cannot open .*exchange\.db: .*database"):
        await store.open()
    await store.close()


@pytest.mark.parametrize(("size", "count"), [(20_000, 4096), (1_000_000, 200)])
async def test_the_log_is_written_over_when_it_has_been_copied(
    make: Callable[[], SqliteStore], path: Path, size: int, count: int
) -> None:
    """Otherwise it would grow for ever."""
    store = make()
    await store.open()
    payload = bytes(size)
    largest = 0
    for number in range(1, count):
        settled = [(DEST, number - 1)]
        await store.commit(Changes(added=[message(number, payload)], settled=settled))
        largest = max(largest, size_of_log(path))
        if store._checkpoint is not None:
            await asyncio.wait([store._checkpoint])

    assert [e.payload for e in await store.pending(DEST, 0, 2)] == [payload]
    await store.close()
    assert CHECKPOINT_BYTES < largest < 3 * CHECKPOINT_BYTES


async def test_what_was_copied_is_not_copied_again_and_again(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    payload = bytes(CHECKPOINT_BYTES // 10)
    copies = 0
    for number in range(1, 10 * CHECK_EVERY):
        await store.commit(add(message(number, payload if number < 15 else b"")))
        if store._checkpoint is not None:
            await asyncio.wait([store._checkpoint])
            copies += 1

    assert await numbers(store) == list(range(1, 10 * CHECK_EVERY))
    await store.close()
    assert copies == 1


async def test_a_log_that_was_left_behind_is_shortened(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    payload = bytes(CHECKPOINT_BYTES // 10)
    await store.commit(add(*(message(n, payload) for n in range(1, 15))))
    # Closing leaves the log to whoever else is there, as it is left after a kill.
    other = sqlite3.connect(path)
    other.execute("select * from mailbox").fetchall()
    await store.close()
    assert size_of_log(path) > CHECKPOINT_BYTES

    await store.open()

    assert size_of_log(path) < 100_000
    assert await numbers(store) == list(range(1, 15))
    other.close()
    await store.close()
