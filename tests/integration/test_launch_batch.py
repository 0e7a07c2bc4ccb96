"""Launching many agents at once."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from academy.exception import AgentTerminatedError
from academy.exchange.client import UserExchangeClient
from academy.exchange.cloud import HttpExchangeFactory
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.transport import AgentRegistration
from academy.handle import Handle
from academy.manager import Manager
from tests.support.executors import Recording
from tests.support.launchables import Counter, Link, Seat


class Counting(UserExchangeClient):
    """Counts the registrations that it asks its exchange for."""

    calls: list[int]

    async def register_agents(
        self, agents: Sequence[tuple[type[Any], str | None]]
    ) -> list[AgentRegistration[Any]]:
        self.calls.append(len(agents))
        return await super().register_agents(agents)


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    transport = await LocalExchangeFactory().connect()
    client = Counting(transport)
    client.calls = []
    transport.start(client)
    async with Manager(client) as manager:
        yield manager


def registrations(manager: Manager) -> list[int]:
    client = manager.exchange_client
    assert isinstance(client, Counting)
    return client.calls


async def test_all_agents_register_in_one_call(manager: Manager) -> None:
    async with manager.launch_batch() as batch:
        counters = [await batch.queue(Counter, args=(i,)) for i in range(5)]
        assert registrations(manager) == []
    assert registrations(manager) == [5]
    assert [await counter.add() for counter in counters] == [1, 2, 3, 4, 5]
    assert manager.running() == {counter.agent_id for counter in counters}


async def test_a_queued_handle_is_not_bound_before_the_batch_is_submitted(
    manager: Manager,
) -> None:
    async with manager.launch_batch() as batch:
        counter = await batch.queue(Counter, name="one")
        with pytest.raises(RuntimeError, match="not bound"):
            _ = counter.agent_id
        with pytest.raises(pickle.PicklingError, match="unbound"):
            pickle.dumps(counter)
    assert counter.agent_id.name == "one"
    assert manager.get_handle(counter.agent_id) is counter


async def test_siblings_know_each_other(manager: Manager) -> None:
    seats: list[Handle[Seat]] = []
    async with manager.launch_batch() as batch:
        for index in range(4):
            seats.append(await batch.queue(Seat, args=(seats, index)))
    assert await seats[0].around(11) == 3


async def test_siblings_know_each_other_in_other_processes(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(3)
    ) as manager:
        seats: list[Handle[Seat]] = []
        async with manager.launch_batch() as batch:
            for index in range(3):
                seats.append(await batch.queue(Seat, args=(seats, index)))
        assert await seats[0].around(7) == 1


async def test_each_agent_of_a_batch_chooses_its_executor(manager: Manager) -> None:
    manager.add_executor("threads", ThreadPoolExecutor(1))
    async with manager.launch_batch() as batch:
        here = await batch.queue(Link)
        there = await batch.queue(Link, args=(here,), executor="threads")
    assert await there.length() == 2


async def test_a_batch_is_submitted_when_told_to(manager: Manager) -> None:
    batch = manager.launch_batch()
    first = await batch.queue(Counter)
    await batch.submit()
    assert await first.add() == 1
    second = await batch.queue(Counter)
    await batch.submit()
    assert await second.add() == 1
    assert registrations(manager) == [1, 1]


async def test_an_empty_batch_asks_the_exchange_for_nothing(manager: Manager) -> None:
    async with manager.launch_batch() as batch:
        await batch.submit()
    assert registrations(manager) == []


async def test_a_batch_whose_body_fails_launches_nothing(manager: Manager) -> None:
    async def body() -> None:
        async with manager.launch_batch() as batch:
            await batch.queue(Counter)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()
    assert registrations(manager) == []
    assert manager.running() == set()


async def test_a_closed_batch_takes_nothing(manager: Manager) -> None:
    async with manager.launch_batch() as batch:
        pass
    with pytest.raises(RuntimeError, match="batch is closed"):
        await batch.queue(Counter)
    with pytest.raises(RuntimeError, match="batch is closed"):
        await batch.submit()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"executor": "gpu"}, ValueError),
        ({"submit_kwargs": {"nodes": 1}}, ValueError),
        ({"args": (1, 2, 3)}, TypeError),
        ({"registration": None}, TypeError),
    ],
)
async def test_what_cannot_work_is_refused_when_it_is_queued(
    manager: Manager, options: dict[str, Any], error: type[Exception]
) -> None:
    async with manager.launch_batch() as batch:
        counter = await batch.queue(Counter)
        with pytest.raises(error):
            await batch.queue(Counter, **options)
    assert await counter.add() == 1


async def test_a_launch_that_fails_leaves_those_before_it_running(
    manager: Manager, http_exchange: HttpExchangeFactory
) -> None:
    executor = Recording(refuse=2)
    async with await Manager.from_exchange_factory(
        http_exchange, {"batch": executor}
    ) as manager:
        handles = []

        async def body() -> None:
            async with manager.launch_batch() as batch:
                for name in "abcde":
                    handle = await batch.queue(Counter, executor="batch", name=name)
                    handles.append(handle)

        with pytest.raises(OSError, match="the scheduler refuses"):
            await body()
        assert manager.running() == {handle.agent_id for handle in handles[:2]}
        status = manager.exchange_client.status
        states = [await status(handle.agent_id) for handle in handles]
        assert states == [MailboxStatus.ACTIVE] * 2 + [MailboxStatus.TERMINATED] * 3
        with pytest.raises(AgentTerminatedError):
            await handles[3].ping()
        for future in executor.submitted:
            future.set_result(None)


async def test_an_argument_that_does_not_pickle_is_named_and_ends_its_mailbox(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1)
    ) as manager:

        async def body() -> None:
            async with manager.launch_batch() as batch:
                await batch.queue(Link, args=(threading.Lock(),))

        with pytest.raises(pickle.PicklingError, match=r"args\[0\].*lock"):
            await body()
        assert await manager.exchange_client.discover(Link) == ()


async def test_a_handle_of_another_batch_that_is_not_submitted_is_named(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1)
    ) as manager:
        queued = await manager.launch_batch().queue(Link)
        with pytest.raises(pickle.PicklingError, match=r"args\[0\].*unbound"):
            await manager.launch(Link, args=(queued,))


async def test_two_batches_may_be_open_at_once(manager: Manager) -> None:
    async with manager.launch_batch() as left, manager.launch_batch() as right:
        one = await left.queue(Counter)
        two = await right.queue(Counter)
    assert await asyncio.gather(one.add(), two.add()) == [1, 1]
