"""Where agents are, at an exchange that has to be asked (protocol v1)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from academy.exception import ExchangeError
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.presence import Presence, PresenceState, dispatch

if TYPE_CHECKING:
    from academy.exchange.presence import PresenceCallback
    from academy.identifier import EntityId

AT_ONCE = 16
"""Mailboxes that are asked about together."""


class Directory(Protocol):
    """What can be asked about mailboxes."""

    async def status(self, uid: EntityId) -> MailboxStatus:
        """Return MISSING, ACTIVE or TERMINATED."""

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Return the seconds since an entity's last sign of life; None if never."""


class V1Presence:
    """Asks about mailboxes again and again, and tells who watches what has changed.

    An owner is attached while its heartbeats come, and gone when enough of them are
    missing. v1 knows no places and no incarnations: who comes back counts as a new one.
    """

    def __init__(self, directory: Directory, config: ExchangeClientConfig) -> None:
        self._directory = directory
        self._config = config
        self._watched: dict[bytes, tuple[EntityId, PresenceCallback]] = {}
        self._told: dict[bytes, Presence] = {}
        self._states: dict[bytes, PresenceState] = {}
        self._epochs: dict[bytes, int] = {}
        self._asking: asyncio.Task[None] | None = None

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Tell where the owners of mailboxes are, now and whenever it changes."""
        for uid in uids:
            self._watched[uid.uid.bytes] = uid, callback
            self._told.pop(uid.uid.bytes, None)
        await self._ask(uids)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._run())

    def unwatch(self, uids: Collection[EntityId]) -> None:
        """Tell no more about these."""
        for uid in uids:
            self._watched.pop(uid.uid.bytes, None)
            self._told.pop(uid.uid.bytes, None)

    async def close(self) -> None:
        """Ask no more."""
        self._watched.clear()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_interval)
            await self._ask([uid for uid, _ in self._watched.values()])

    async def _ask(self, uids: Collection[EntityId]) -> None:
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(uid: EntityId) -> PresenceState | None:
            async with turns:
                try:
                    return await self._state_of(uid)
                except (ExchangeError, TimeoutError):
                    return None  # next time

        found = await asyncio.gather(*map(one, uids))
        changes = {}
        for uid, state in zip(uids, found, strict=True):
            key = uid.uid.bytes
            if key not in self._watched or state is None:
                continue
            presence = self._presence(key, state)
            if self._told.get(key) != presence:
                self._told[key] = changes[key] = presence
        dispatch(changes, self._watched)

    def _presence(self, key: bytes, state: PresenceState) -> Presence:
        comes = state is PresenceState.ATTACHED and self._states.get(key) is not state
        self._states[key] = state
        if comes or (state is PresenceState.GONE and key not in self._epochs):
            self._epochs[key] = self._epochs.get(key, 0) + 1
        return Presence(state, self._epochs.get(key, 0))

    async def _state_of(self, uid: EntityId) -> PresenceState:
        status = await self._directory.status(uid)
        if status is not MailboxStatus.ACTIVE:
            return PresenceState(status.value)
        silence = await self._directory.heartbeat_status(uid)
        if silence is None:
            return PresenceState.REGISTERED
        away = silence > self._config.stale_after
        return PresenceState.GONE if away else PresenceState.ATTACHED
