"""Agents whose mailboxes tests register; few of them ever run."""

from __future__ import annotations

from academy.agent import Agent, action


class Adder(Agent):
    @action
    async def add(self, a: int, b: int) -> int:
        return a + b


class Brief(Agent):
    """Ends as soon as it has begun."""

    async def agent_on_startup(self) -> None:
        self.agent_shutdown()


class FastAdder(Adder):
    pass


class Other(Agent):
    pass
