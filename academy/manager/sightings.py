"""Where a manager's agents are, as their exchange tells it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from academy.exception import ExchangeError

if TYPE_CHECKING:
    from academy.exchange.client import ExchangeClient
    from academy.exchange.presence import Presence
    from academy.identifier import AgentId, EntityId

logger = logging.getLogger("academy.manager")


class Follower(Protocol):
    """Who wants to know where an agent is."""

    def noticed(self, presence: Presence) -> None:
        """Learn what the exchange tells of the agent."""


class Sightings:
    """Watches agents at the exchange, those that are launched together in one call.

    Invariant: `_followers` has exactly the agents that are watched or in `_new`.
    """

    def __init__(self, client: ExchangeClient) -> None:
        self._client = client
        self._followers: dict[EntityId, Follower] = {}
        self._latest: dict[EntityId, Presence] = {}
        self._new: list[EntityId] = []
        self._asking: asyncio.Task[None] | None = None

    def of(self, agent_id: AgentId[Any]) -> Presence | None:
        """Return what the exchange told last of an agent, while it is followed."""
        return self._latest.get(agent_id)

    def follow(self, agent_id: AgentId[Any], follower: Follower) -> None:
        """Tell a follower where an agent is; it takes the place of an earlier one."""
        known = agent_id in self._followers
        self._followers[agent_id] = follower
        if known:
            return
        self._new.append(agent_id)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())

    def leave(self, agent_id: AgentId[Any]) -> None:
        """Forget an agent that has ended for good."""
        self._followers.pop(agent_id, None)
        self._latest.pop(agent_id, None)

    async def _ask(self) -> None:
        try:
            while self._new:
                new, self._new = self._new, []
                await self._client.watch(new, self._told)
        except (ExchangeError, TimeoutError) as error:
            # Their executor tells as well, if later.
            logger.warning("where agents are cannot be watched: %s", error)
        finally:
            self._asking = None

    def _told(self, changes: Mapping[EntityId, Presence]) -> None:
        for agent_id, presence in changes.items():
            follower = self._followers.get(agent_id)
            if follower is not None:
                self._latest[agent_id] = presence
                follower.noticed(presence)

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
