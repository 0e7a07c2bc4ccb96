"""When a broker looks for what has expired."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from academy.exchange.store import RESPONSE, Changes, Envelope, Store

EVERY = 0.25
"""Seconds between two looks; so much later than promised a message may expire."""
SOON = 0.01
"""Seconds until the next look when there is more to do."""
LOOK_AGAIN = 3600.0
"""Seconds after which a message that its receiver may work on is looked at again.

And that a receiver may be away until what it has had counts as given up: as long as
clients try to connect again unless told otherwise.
"""


_EPOCH = time.time() - time.monotonic()


def now() -> float:
    """Return the time of day as it was when this began, and the seconds since then.

    What is due outlives a process, and may not be due because somebody has set a clock.
    """
    return _EPOCH + time.monotonic()


class Expiry:
    """Knows when the first thing expires, and runs a timer only until then.

    Invariants: `_due` is no later than when the first message or tombstone expires.
    `_tombstones` has the terminated mailboxes by when they are to be forgotten.

    Args:
        wake: called when something may have expired.
    """

    __slots__ = ("_due", "_loop", "_timer", "_tombstones", "_wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._due = math.inf
        self._tombstones: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def load(
        self, store: Store, terminated: Iterable[bytes], keep: float
    ) -> None:
        """Begin with what a store holds; its tombstones are as good as new."""
        self.stop()
        self._tombstones.clear()
        _, due = await store.expired(0.0, 0)
        self._due = math.inf
        self.plan(due)
        for uid in terminated:
            self.bury(uid, keep)

    def note(self, changes: Changes, envelope: Envelope, longest: float) -> None:
        """Have a message expire when its sender or the exchange has said.

        Args:
            changes: in which it is stored.
            envelope: the message; of a request, `answers` is its lifetime in ms.
            longest: seconds that any message is kept; 0 is for ever.
        """
        lifetime = 0.0
        if not envelope.flags & RESPONSE:
            lifetime = envelope.answers / 1000
        if longest and not 0 < lifetime < longest:
            lifetime = longest
        due = now() + lifetime
        changes.expiries.append((envelope.dest, envelope.number, due))
        if due < self._due:
            self.plan(due)

    def bury(self, uid: bytes, keep: float) -> None:
        """Have a terminated mailbox forgotten after `keep` seconds; 0 is never."""
        if keep:
            due = now() + keep
            self._tombstones.append((due, uid))
            if due < self._due:
                self.plan(due)

    def forgotten(self, now: float) -> list[bytes]:
        """Return the terminated mailboxes that are to be forgotten, once."""
        uids = []
        while self._tombstones and self._tombstones[0][0] <= now:
            uids.append(self._tombstones.popleft()[1])
        return uids

    def plan(self, due: float | None) -> None:
        """Look again when this is due, or the next mailbox is to be forgotten."""
        self.stop()
        if self._tombstones:
            due = min(due or math.inf, self._tombstones[0][0])
        self._due = math.inf if due is None else due
        if due is not None:
            wait = due - now()
            loop = self._loop = asyncio.get_running_loop()
            wait = SOON if wait <= 0 else max(wait, EVERY)
            self._timer = loop.call_later(min(wait, LOOK_AGAIN), self._wake)

    def stop(self) -> None:
        """Look no more."""
        timer, self._timer = self._timer, None
        if timer is not None and self._loop is asyncio.get_running_loop():
            timer.cancel()
