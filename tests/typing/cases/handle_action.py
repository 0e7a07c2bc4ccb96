"""Calls through a handle are checked against the agent's actions."""

from collections.abc import AsyncIterator
from typing import Any, assert_type

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

    @action
    async def each(self, to: int) -> AsyncIterator[int]:
        yield to


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


async def a_stream_has_the_types_that_it_yields(handle: Handle[Counter]) -> None:
    async for item in handle.action(Counter.each, 1):
        assert_type(item, int)
    async for anything in handle.action("each", 1):
        assert_type(anything, Any)
    handle.action(Counter.each, "1")  # E: int
    await handle.action(Counter.each, 1)  # E:


async def what_returns_is_not_iterated(handle: Handle[Counter]) -> None:
    async for _ in handle.action(Counter.add, 1):  # E:
        pass
