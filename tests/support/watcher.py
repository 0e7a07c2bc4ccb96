"""Somebody who watches mailboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from academy.exchange.presence import Presence, PresenceState
from academy.identifier import EntityId


class Watcher:
    """Keeps what it is told about the owners of mailboxes.

    Attributes:
        told: each batch of news, in order.
    """

    def __init__(self) -> None:
        self.told: list[dict[EntityId, Presence]] = []
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, changes: Mapping[EntityId, Presence]) -> None:
        self.told.append(dict(changes))
        task = asyncio.get_running_loop().create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    @property
    def now(self) -> dict[EntityId, Presence]:
        """What was told last of each."""
        return {owner: one for batch in self.told for owner, one in batch.items()}

    def states(self, owner: EntityId) -> list[PresenceState]:
        """Return all that was told of one."""
        return [batch[owner].state for batch in self.told if owner in batch]

    async def until(self, owner: Any, state: PresenceState) -> Presence:
        """Wait until an owner is in this state."""
        async with asyncio.timeout(30), self._news:
            await self._news.wait_for(
                lambda: owner in self.now and self.now[owner].state is state
            )
        return self.now[owner]
