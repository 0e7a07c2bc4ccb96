"""Agents whose mailboxes tests register; few of them ever run."""

from __future__ import annotations

from academy.agent import Agent, action


class Adder(Agent):
    @action
    async def add(self, a: int, b: int) -> int:
        return a + b


class FastAdder(Adder):
    pass


class Other(Agent):
    pass
