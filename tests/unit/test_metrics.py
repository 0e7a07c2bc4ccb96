"""Metrics of many namespaces, and stores that are watched."""

from __future__ import annotations

from collections import Counter

import pytest

from academy.exception import StorageError
from academy.exchange.cloud.operations.metrics import (
    MAX_NAMESPACES,
    OTHERS,
    Metrics,
    Numbers,
    capped,
)
from academy.exchange.store import Changes
from academy.exchange.store.measured import BOUNDS, Latency, MeasuredStore
from academy.exchange.store.memory import MemoryStore


def numbers(connections: int) -> Numbers:
    latency = Latency()
    latency.counts[-1] = 1
    latency.seconds = 9.0
    refused = Counter(MailboxFullError=1)
    return Numbers(connections=connections, refused=refused, committing=latency)


def test_namespaces_beyond_the_first_hundred_are_summed() -> None:
    many = [(f"team{n}", numbers(n)) for n in range(MAX_NAMESPACES + 3)]
    kept = capped(many)

    assert list(kept) == [*(f"team{n}" for n in range(MAX_NAMESPACES)), OTHERS]
    assert kept["team7"].connections == 7
    assert kept[OTHERS].connections == 100 + 101 + 102
    assert kept[OTHERS].refused == {"MailboxFullError": 3}

    text = Metrics().text(kept, None).decode()
    labels = f'namespace="{OTHERS}",operation="commit"'
    assert f"academy_exchange_store_seconds_count{{{labels}}} 3.0" in text
    assert f"academy_exchange_store_seconds_sum{{{labels}}} 27.0" in text
    assert "process_" not in text


def test_two_applications_of_a_process_have_their_own_metrics() -> None:
    one, other = Metrics(), Metrics()
    assert b'connections{namespace="a"} 1.0' in one.text({"a": numbers(1)}, Counter())
    assert b'namespace="a"' not in other.text({"b": numbers(2)}, Counter())


class FullDisk(MemoryStore):
    full = False

    async def commit(self, changes: Changes) -> None:
        if self.full:
            raise StorageError("no space")
        await super().commit(changes)


async def test_a_store_that_fails_is_tried_by_writing_until_it_works() -> None:
    inner = FullDisk()
    store = MeasuredStore(inner)
    await store.open()
    await store.check()
    assert sum(store.committing.counts) == 0

    inner.full = True
    with pytest.raises(StorageError):
        await store.commit(Changes(sessions={bytes(16): 1}))
    for _ in range(2):
        with pytest.raises(StorageError, match="no space"):
            await store.check()
    inner.full = False
    await store.check()
    assert not store.failing


async def test_operations_of_a_store_are_sorted_by_their_time() -> None:
    store = MeasuredStore(MemoryStore())
    await store.open()
    await store.commit(Changes(sessions={bytes(16): 1}))
    assert store.commit_now is not None
    store.commit_now(Changes(sessions={bytes(16): 2}))
    await store.pending(bytes(16), 0, 1)

    assert sum(store.committing.counts) == 2
    assert sum(store.reading.counts) == 1
    assert store.committing.seconds > 0
    assert len(store.committing.counts) == len(BOUNDS) + 1
