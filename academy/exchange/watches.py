"""Whom a client watches, and for whom: many may want to know about one owner."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from academy.exchange.presence import Presence, PresenceCallback, PresenceState

if TYPE_CHECKING:
    from academy.exchange.transport import ExchangeTransport
    from academy.identifier import EntityId


class Watches:
    """Shares what one transport watches, where an id has one callback only.

    Invariant: `_watchers` has who is told about whom, and `_latest` what they were told
    last; who is terminated is in neither.
    """

    __slots__ = ("_latest", "_transport", "_watchers")

    def __init__(self, transport: ExchangeTransport) -> None:
        self._transport = transport
        self._watchers: dict[EntityId, list[PresenceCallback]] = {}
        self._latest: dict[EntityId, Presence] = {}

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Tell a callback of these, too; see `ExchangeClient.watch`."""
        known, unknown = {}, []
        for uid in uids:
            watchers = self._watchers.setdefault(uid, [])
            if callback not in watchers:
                watchers.append(callback)
            if (latest := self._latest.get(uid)) is not None:
                known[uid] = latest
            else:
                unknown.append(uid)
        if known:
            callback(known)
        if unknown:
            await self._transport.watch(unknown, self._told)

    async def unwatch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Tell a callback no more about these."""
        left = []
        for uid in uids:
            watchers = self._watchers.get(uid, [])
            if callback in watchers:
                watchers.remove(callback)
                if not watchers:
                    del self._watchers[uid]
                    self._latest.pop(uid, None)
                    left.append(uid)
        if left:
            await self._transport.unwatch(left)

    def _told(self, changes: Mapping[EntityId, Presence]) -> None:
        batches: dict[PresenceCallback, dict[EntityId, Presence]] = {}
        for uid, presence in changes.items():
            for callback in self._watchers.get(uid, ()):
                batches.setdefault(callback, {})[uid] = presence
            if presence.state is PresenceState.TERMINATED:
                self._watchers.pop(uid, None)
                self._latest.pop(uid, None)
            elif uid in self._watchers:
                self._latest[uid] = presence
        for callback, batch in batches.items():
            callback(batch)
