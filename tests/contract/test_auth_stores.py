"""Where keys and revocations are kept, in files and in Redis: one suite for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from academy.exception import StorageError
from academy.exchange.cloud.security.auth import Credentials
from academy.exchange.cloud.security.auth_store import KEYS, AuthStore, FileAuthStore
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.cloud.security.redis_auth_store import RedisAuthStore
from academy.exchange.cloud.security.revocations import Revocations
from academy.exchange.store.redis_server import RedisServer
from tests.support.redis import Redis

Open = Callable[[], AuthStore]
"""Opens the same texts again, as another process does."""


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(params=["file", "redis"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, closing: AsyncExitStack
) -> Open:
    if request.param == "file":
        return lambda: FileAuthStore(tmp_path / "home" / "exchange.key")
    return opened_in(request.getfixturevalue("redis"), closing)


def opened_in(redis: Redis, closing: AsyncExitStack, patience: float = 10) -> Open:
    def store() -> RedisAuthStore:
        store = RedisAuthStore(RedisServer(redis.url, patience=patience))
        closing.push_async_callback(store.close)
        return store

    return store


async def test_a_text_is_read_as_it_was_written_by_another(opened: Open) -> None:
    one, other = opened(), opened()
    assert await one.read(KEYS) is None
    assert await other.change(KEYS, lambda text: f"{text} é") == "None é"
    assert await one.read(KEYS) == "None é"


async def test_changes_at_the_same_time_lose_nothing_of_each_other(
    opened: Open,
) -> None:
    stores = [opened() for _ in range(4)]

    async def add_some(store: AuthStore) -> None:
        for _ in range(10):
            await store.change(KEYS, lambda text: (text or "") + "x")

    await asyncio.gather(*map(add_some, stores))
    assert await stores[0].read(KEYS) == 40 * "x"


async def test_an_error_in_a_change_leaves_the_text(opened: Open) -> None:
    store = opened()
    await store.change(KEYS, lambda _: "text")
    with pytest.raises(ZeroDivisionError):
        await store.change(KEYS, lambda _: str(1 / 0))
    assert await opened().read(KEYS) == "text"


async def test_servers_that_start_at_once_make_one_key(opened: Open) -> None:
    sets = [KeySet(opened()) for _ in range(4)]
    await asyncio.gather(*(keys.refresh() for keys in sets))
    assert len(sets[0].keys) == 1
    assert [keys.keys for keys in sets] == 4 * [sets[0].keys]


async def test_a_rotation_reaches_other_servers(opened: Open) -> None:
    here, there = KeySet(opened()), KeySet(opened())
    await here.refresh()
    await there.refresh()
    await there.rotate()

    assert await here.refresh()
    assert not await here.refresh()
    assert list(here.keys) == list(there.keys)
    assert len(here.keys) == 2


async def test_what_is_damaged_is_named_and_what_was_known_holds(opened: Open) -> None:
    store = opened()
    keys, revocations = KeySet(store), Revocations(store)
    await keys.refresh()
    await revocations.add("user", "ada")
    await revocations.refresh()
    before = dict(keys.keys)
    for name in ("keys", "revoked"):
        await store.change(name, lambda _: "[")
    with pytest.raises(ValueError, match="holds no keys"):
        await keys.refresh()
    with pytest.raises(ValueError, match="is no list of revocations"):
        await revocations.refresh()
    assert keys.keys == before
    assert revocations.cover(Credentials("ada"))


async def test_what_others_change_in_redis_is_told_at_once(
    redis: Redis, closing: AsyncExitStack
) -> None:
    opened = opened_in(redis, closing)
    here, there = opened(), opened()
    await here.wait(600)  # it is told that it listens now
    waiting = asyncio.create_task(here.wait(600))
    await there.change(KEYS, lambda _: "new")
    await asyncio.wait_for(waiting, 30)
    assert await here.read(KEYS) == "new"


async def test_what_was_changed_while_redis_was_away_is_told_when_it_is_back(
    redis: Redis, closing: AsyncExitStack
) -> None:
    opened = opened_in(redis, closing)
    here, there = opened(), opened()
    await here.wait(600)
    await there.change(KEYS, lambda _: "old")
    await here.wait(600)
    redis.kill()
    await here.wait(0.01)  # it finds the connection broken
    redis.start()
    await there.change(KEYS, lambda _: "new")
    await here.wait(600)
    assert await here.read(KEYS) == "new"


async def test_a_redis_that_stays_away_is_an_error_and_breaks_no_wait(
    redis: Redis, closing: AsyncExitStack
) -> None:
    store = opened_in(redis, closing, patience=0.1)()
    redis.kill()
    await store.wait(0.01)
    with pytest.raises(StorageError, match=str(redis.port)):
        await store.read(KEYS)
