"""A store with a stop watch: how long its operations take, and whether they work."""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter

from academy.exception import StorageError
from academy.exchange.store import Changes, Contents, Envelope, Store

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
"""Upper ends of the classes into which durations are sorted; seconds."""

_NOBODY = bytes(16)


class Latency:
    """How long an operation took: per class of `BOUNDS` and above, and in sum."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, took: float) -> None:
        """Count an operation that took so many seconds."""
        self.counts[bisect_left(BOUNDS, took)] += 1
        self.seconds += took

    def merge(self, other: Latency) -> None:
        """Add what another one has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds


class MeasuredStore:
    """Hands everything to another store, and looks at the clock.

    Attributes:
        committing: how long commits took.
        reading: how long reading a page of messages took.
        failing: whether the last operation has failed.
    """

    def __init__(self, store: Store) -> None:
        self.bodies = store.bodies
        self._store = store
        self._commit = store.commit_now
        self.commit_now = None if self._commit is None else self._commit_now
        self.committing = Latency()
        self.reading = Latency()
        self.failing = False

    async def open(self) -> Contents:
        return await self._store.open()

    async def commit(self, changes: Changes) -> None:
        begun = perf_counter()
        try:
            await self._store.commit(changes)
        except StorageError:
            self.failing = True
            raise
        self.committing.add(perf_counter() - begun)
        self.failing = False

    def _commit_now(self, changes: Changes) -> None:
        assert self._commit is not None
        begun = perf_counter()
        try:
            self._commit(changes)
        except StorageError:
            self.failing = True
            raise
        self.committing.add(perf_counter() - begun)
        self.failing = False

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        begun = perf_counter()
        page = await self._store.pending(dest, after, limit)
        self.reading.add(perf_counter() - begun)
        return page

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        begun = perf_counter()
        found = await self._store.expired(now, limit)
        self.reading.add(perf_counter() - begun)
        return found

    async def close(self) -> None:
        await self._store.close()

    async def check(self) -> None:
        """Ask for nothing, or write next to nothing where the last write has failed.

        Raises:
            StorageError: the store does not work.
        """
        if self.failing:
            await self.commit(Changes(sessions={_NOBODY: 0}))
        else:
            await self._store.pending(_NOBODY, 0, 1)
