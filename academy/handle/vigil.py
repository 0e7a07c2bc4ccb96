"""Calls that fail when their agent is away for too long (`reject_on_inactive`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from academy.exception import AgentInactiveError, ExchangeError
from academy.exchange.client import ExchangeClient
from academy.exchange.presence import Presence, PresenceState

if TYPE_CHECKING:
    from academy.identifier import EntityId
    from academy.message import Message

_AWAY = (PresenceState.GONE, PresenceState.DETACHED)

_vigils: WeakKeyDictionary[ExchangeClient, dict[EntityId, Vigil]] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def attended(client: ExchangeClient, agent_id: EntityId) -> AsyncIterator[Vigil]:
    """Watch an agent during a call; all calls of a client share one watch.

    Raises:
        AgentInactiveError: it has been away for too long already.
    """
    vigils = _vigils.setdefault(client, {})
    vigil = vigils.get(agent_id)
    if vigil is None:
        vigil = vigils[agent_id] = Vigil(client, agent_id)
    vigil.users += 1
    try:
        await vigil.begun()
        yield vigil
    finally:
        vigil.users -= 1
        if not vigil.users:
            del vigils[agent_id]
            await vigil.close()


class Vigil:
    """Learns from the exchange when an agent goes, and fails calls if it stays away.

    Attributes:
        users: calls that need it.
    """

    __slots__ = (
        "_agent_id",
        "_asking",
        "_calls",
        "_client",
        "_inactive",
        "_timer",
        "_watching",
        "users",
    )

    def __init__(self, client: ExchangeClient, agent_id: EntityId) -> None:
        self.users = 0
        self._client = client
        self._agent_id = agent_id
        self._inactive = False
        self._calls: set[asyncio.Future[Message]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        watch = client.watch([agent_id], self._told)
        self._watching = asyncio.get_running_loop().create_task(watch)

    async def begun(self) -> None:
        """Wait until it is known where the agent is."""
        await asyncio.shield(self._watching)
        if self._asking is not None:
            await asyncio.wait([self._asking])
        if self._inactive:
            raise AgentInactiveError(self._agent_id)

    def guard(self, call: asyncio.Future[Message]) -> None:
        """Fail a call when the agent has been away for too long."""
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def _told(self, changes: Mapping[EntityId, Presence]) -> None:
        self._stop()
        self._inactive = False
        if changes[self._agent_id].state in _AWAY:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        """Find out for how long the agent has been away."""
        try:
            silence = await self._client.silence(self._agent_id)
        except (ExchangeError, TimeoutError):
            silence = None  # it counts as away from now on
        left = self._client.config.stale_after - (silence or 0.0)
        if left <= 0:
            self._fail()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left, self._fail)

    def _fail(self) -> None:
        self._inactive = True
        for call in list(self._calls):
            if not call.done():
                call.set_exception(AgentInactiveError(self._agent_id))

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def close(self) -> None:
        """Give the watch back."""
        self._stop()
        self._watching.cancel()
        self._watching.add_done_callback(_heed)
        with contextlib.suppress(ExchangeError):
            await self._client.unwatch([self._agent_id], self._told)


def _heed(done: asyncio.Future[Any]) -> None:
    """Tell asyncio that nobody need hear of an error."""
    if not done.cancelled():
        done.exception()
