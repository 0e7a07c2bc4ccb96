"""Calls through a handle are checked against the agent's actions."""

from typing import assert_type

from academy.agent import Agent, action
from academy.handle import Handle


class Counter(Agent):
    def __init__(self, start: int = 0) -> None:
        self.count = start

    @action
    async def add(self, amount: int, *, times: int = 1) -> int:
        self.count += amount * times
        return self.count

    @action(idempotent=True)
    async def label(self) -> str:
        return f"count {self.count}"


class Lamp(Agent):
    @action
    async def switch(self, on: bool) -> None: ...


async def results_have_the_types_that_actions_return(handle: Handle[Counter]) -> None:
    assert_type(await handle.action(Counter.add, 1), int)
    assert_type(await handle.action(Counter.add, 1, times=2), int)
    assert_type(await handle.action(Counter.label), str)


async def arguments_are_those_of_the_action(handle: Handle[Counter]) -> None:
    await handle.action(Counter.add, "1")  # E: int
    await handle.action(Counter.add)  # E: amount
    await handle.action(Counter.add, 1, time=2)  # E: time
    await handle.action(Counter.label, 1)  # E:


async def an_action_belongs_to_the_agent(handle: Handle[Counter]) -> None:
    await handle.action(Lamp.switch, True)  # E: Lamp
    await handle.action(Counter.subtract, 1)  # E: subtract


async def a_name_is_not_checked(handle: Handle[Counter]) -> None:
    await handle.action("add", 1)
    await handle.action("subtract", "1")


async def an_action_is_still_a_method(counter: Counter) -> None:
    assert_type(await counter.add(1), int)
    await counter.add("1")  # E: int
