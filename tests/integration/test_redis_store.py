"""The Redis store when Redis, or whoever wrote to it before, does not do its part."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from academy.exception import StorageError
from academy.exchange.store import Changes, Envelope, MailboxRecord
from academy.exchange.store.redis import STEP_BYTES, STEP_OPERATIONS, RedisStore
from academy.exchange.store.redis_leases import RedisLeases
from academy.exchange.store.redis_server import RedisServer
from tests.support.redis import Redis, redis_server, take

DEST, SRC = uuid4().bytes, uuid4().bytes
RECORD = MailboxRecord(DEST, True, "Ada", ("m.A",), 2, b"i" * 16, False, "u")


def message(number: int, payload: bytes = b"payload") -> Envelope:
    tag = number.to_bytes(16, "big")
    return Envelope(DEST, SRC, tag, 0, payload, len(payload), number=number)


def add(*numbers: int, payload: bytes = b"payload") -> Changes:
    return Changes(added=[message(number, payload) for number in numbers])


async def numbers(store: RedisStore) -> list[int]:
    return [e.number for e in await store.pending(DEST, 0, 100_000)]


async def test_everything_is_there_when_redis_was_killed(redis: Redis) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(Changes({DEST: RECORD}, sessions={SRC: 12}))
        await store.commit(add(1, 4))
        await store.commit(
            Changes(leased=[Envelope(DEST, b"", b"", 0, None, 0, 0, 4, 2)])
        )

        redis.kill()
        redis.start()

        contents = await (await take(server)).open()
        later = await take(server)
        await later.open()
        assert contents.mailboxes == [RECORD]
        assert contents.sessions == {SRC: 12}
        assert contents.waiting == {DEST: (2, 14)}
        assert contents.last_number == 4
        assert [e.lease for e in await later.pending(DEST, 0, 9)] == [0, 2]


async def test_a_commit_waits_for_a_redis_that_restarts(redis: Redis) -> None:
    async with redis_server(redis.url, patience=60) as server:
        store = await take(server)
        await store.open()
        redis.kill()
        commit = asyncio.create_task(store.commit(add(1)))
        await asyncio.sleep(0.1)
        assert not commit.done()

        redis.start()
        await commit

        assert await numbers(store) == [1]


async def test_a_commit_waits_for_a_redis_only_so_long(redis: Redis) -> None:
    async with redis_server(redis.url, patience=0.1) as server:
        store = await take(server)
        await store.open()
        redis.kill()
        with pytest.raises(StorageError, match=f"127.0.0.1:{redis.port}.*onnect"):
            await store.commit(add(1))


async def test_a_commit_whose_answer_was_lost_is_not_done_twice(redis: Redis) -> None:
    """Redis stops answering in mid-commit, and works it off when it goes on."""
    async with redis_server(redis.url, patience=60, reply_timeout=0.2) as server:
        store = await take(server)
        await store.open()
        await store.commit(add(1))
        assert redis.process is not None
        os.kill(redis.process.pid, signal.SIGSTOP)
        commit = asyncio.create_task(store.commit(add(2)))
        await asyncio.sleep(1)
        os.kill(redis.process.pid, signal.SIGCONT)
        await commit

        await store.commit(add(3))
        assert await numbers(store) == [1, 2, 3]


async def test_the_older_owner_of_a_namespace_neither_writes_nor_reads(
    redis: Redis,
) -> None:
    async with redis_server(redis.url) as server:
        old = await take(server, seconds=0.5)
        await old.open()
        await old.commit(add(1))
        leases = RedisLeases(server, "other", 60)
        while (owner := (await leases.take("test"))[1]) == "test":
            await asyncio.sleep(0.02)

        new = await take(server, owner=owner)
        await new.open()

        for refused in (
            old.commit(add(2)),
            old.commit(add(2, payload=bytes(2 * STEP_BYTES))),
            old.pending(DEST, 0, 1),
            old.open(),
        ):
            with pytest.raises(StorageError, match="does not own"):
                await refused
        await new.commit(add(2))
        assert await numbers(new) == [1, 2]


async def test_a_lease_that_was_given_up_is_free_at_once(redis: Redis) -> None:
    async with redis_server(redis.url) as server:
        ours, theirs = (RedisLeases(server, name, 60) for name in ("a", "b"))
        token, _ = await ours.take("test")
        assert await theirs.take("test") == (0, "a")
        assert await ours.renew("test", token)

        await ours.give_up("test", token)

        assert await theirs.owner_of("test") is None
        newer, owner = await theirs.take("test")
        assert newer > token
        assert owner == await ours.owner_of("test") == "b"
        assert not await ours.renew("test", token)


async def test_a_lease_that_ends_unnoticed_is_still_the_last_owners(
    redis: Redis,
) -> None:
    async with redis_server(redis.url) as server:
        leases = RedisLeases(server, "a", 0.01)
        token, _ = await leases.take("test")
        while await leases.owner_of("test") is not None:
            await asyncio.sleep(0.01)

        assert await leases.renew("test", token)


@pytest.mark.parametrize(
    ("count", "payload"), [(3 * STEP_OPERATIONS, b"x"), (4, bytes(STEP_BYTES))]
)
async def test_a_commit_of_many_steps_counts_when_all_of_them_are_there(
    redis: Redis, count: int, payload: bytes
) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(Changes({DEST: RECORD}))
        await store.commit(add(1))
        changes = add(*range(2, 2 + count), payload=payload)
        changes.settled, changes.sessions = [(DEST, 1)], {SRC: 7}
        await store.commit(changes)
        assert await numbers(store) == list(range(2, 2 + count))

        contents = await store.open()

        assert contents.waiting == {DEST: (count, count * len(payload))}
        assert contents.sessions == {SRC: 7}
        keys = await server.call("KEYS", "*journal*")
        assert keys == []


async def test_steps_of_a_commit_that_was_not_finished_leave_nothing_behind(
    redis: Redis,
) -> None:
    """The writer dies in mid-commit: here it has not got memory for all of it."""
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(add(1))
        await server.call("CONFIG", "SET", "maxmemory", str(5 * STEP_BYTES))
        large = add(*range(2, 20), payload=bytes(STEP_BYTES))
        with pytest.raises(StorageError, match="maxmemory"):
            await store.commit(large)
        assert await server.call("KEYS", "*journal*")

        await server.call("CONFIG", "SET", "maxmemory", "0")
        new = await take(server)
        await new.open()

        assert await numbers(new) == [1]
        assert await server.call("KEYS", "*journal*") == []


async def test_a_full_redis_refuses_what_is_new_and_settles_what_it_has(
    redis: Redis,
) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(add(1, 2, payload=bytes(100_000)))
        await server.call("CONFIG", "SET", "maxmemory", "1")

        with pytest.raises(StorageError, match="maxmemory"):
            await store.commit(add(3))
        await store.open()
        # A response: it settles its request, and is stored for the caller.
        await store.commit(Changes(added=[message(4)], settled=[(DEST, 1)]))
        assert await numbers(store) == [2, 4]

        new = await take(server)
        await new.open()
        assert await numbers(new) == [2, 4]


async def test_a_redis_that_has_forgotten_a_commit_is_found_out(redis: Redis) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(add(1))
        await store.commit(add(2))
        await server.call("HINCRBY", server.key("test", "meta"), "commit", -1)

        with pytest.raises(StorageError, match="does not follow"):
            await store.commit(add(3))


async def test_the_number_of_a_message_is_not_used_again(redis: Redis) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        await store.commit(add(1))
        await store.commit(Changes(settled=[(DEST, 1)]))

        with pytest.raises(StorageError, match="not UNIQUE"):
            await store.commit(add(2, 1))
        assert (await store.open()).last_number == 1


async def test_what_is_settled_or_cleared_leaves_no_key(redis: Redis) -> None:
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        before = await server.call("KEYS", "*")
        lease = Changes(leased=[Envelope(DEST, b"", b"", 0, None, 0, 0, 1, 2)])
        for end in (Changes(settled=[(DEST, 1), (DEST, 2)]), Changes(cleared=[DEST])):
            first = (await store.open()).last_number + 1
            lease.leased[0].number = first
            end.settled = [(DEST, first), (DEST, first + 1)] if end.settled else []
            await store.commit(add(first, first + 1))
            await store.commit(lease)
            assert len(await server.call("KEYS", "*")) == len(before) + 3
            await store.commit(end)
            assert sorted(await server.call("KEYS", "*")) == sorted(before)
        # Settled by the commit that leases it: the lease is of nothing.
        await store.commit(add(10))
        await store.commit(Changes(leased=[message(10)], settled=[(DEST, 10)]))
        assert sorted(await server.call("KEYS", "*")) == sorted(before)


async def test_a_redis_that_evicts_is_refused(tmp_path: Path) -> None:
    options = {"maxmemory-policy": "allkeys-lru"}
    with Redis(tmp_path, **options) as redis:
        async with redis_server(redis.url) as server:
            with pytest.raises(StorageError, match=r"allkeys-lru.*set .*noeviction"):
                await server.check()


async def test_a_password_is_asked_for_and_told_nobody(tmp_path: Path) -> None:
    with Redis(tmp_path, requirepass="s3cret") as redis:
        async with redis_server(redis.url) as stranger:
            with pytest.raises(StorageError, match="uth"):
                await stranger.check()
        url = redis.url.replace("//", "//:wr0ng@")
        async with redis_server(url) as wrong:
            with pytest.raises(StorageError) as refused:
                await wrong.check()
            assert "wr0ng" not in f"{refused.value}{wrong!r}"
        async with redis_server(redis.url.replace("//", "//:s3cret@")) as server:
            await server.check()


async def test_a_write_waits_for_as_many_replicas_as_it_was_told(redis: Redis) -> None:
    folder = redis.folder / "replica"
    with Redis(folder, replicaof=f"127.0.0.1 {redis.port}") as replica:
        async with redis_server(redis.url, replicas=1, patience=60) as server:
            store = await take(server)
            await store.open()
            await store.commit(add(1))
            async with redis_server(replica.url) as copy:
                box = server.key("test", "box:").encode() + DEST
                assert await copy.call("XLEN", box) == 1
    async with redis_server(redis.url, replicas=1, patience=0.1) as server:
        store = await take(server)
        await store.open()
        with pytest.raises(StorageError, match="0 of 1 replicas"):
            await store.commit(add(2))


async def test_ten_thousand_mailboxes_are_opened_page_by_page(redis: Redis) -> None:
    uids = [uuid4().bytes for _ in range(10_000)]
    async with redis_server(redis.url) as server:
        store = await take(server)
        await store.open()
        records = {uid: MailboxRecord(uid, True) for uid in uids}
        sessions = {uid: number for number, uid in enumerate(uids)}
        waiting = [
            Envelope(uid, SRC, bytes(16), 0, b"x" * 100, 100, number=number)
            for number, uid in enumerate(uids[::2], 1)
        ]
        await store.commit(Changes(records, waiting, sessions=sessions))

        contents = await store.open()

    assert {record.uid for record in contents.mailboxes} == set(uids)
    assert contents.sessions == sessions
    assert contents.waiting == dict.fromkeys(uids[::2], (1, 100))


async def test_keys_of_a_namespace_lie_on_one_node_of_a_cluster() -> None:
    server = RedisServer("redis://127.0.0.1")
    key = server.key("ada", "meta")
    await server.close()
    assert key == "academy:{ada}:meta"
