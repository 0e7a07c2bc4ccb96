"""Many agents in the event loop of one worker of another executor."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import pytest

from academy.agent import Agent
from academy.exception import (
    AgentTerminatedError,
    ExchangeError,
    QuotaExceededError,
)
from academy.exchange import ExchangeClientConfig
from academy.exchange.cloud import HttpExchangeFactory
from academy.executors import base
from academy.executors.event_loop import EventLoopExecutor
from academy.executors.event_loop.host import EventLoopHost
from academy.handle import Handle
from academy.launch import AgentInterruptedError, AgentSpec, run_agent
from academy.manager import Manager
from academy.runtime import RuntimeConfig
from tests.support.executors import ProcessEach, Recording
from tests.support.launchables import Counter, Diary, FailsAtFirst, Link, Seat
from tests.support.server import ExchangeServer


def pool(workers: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn)


@pytest.fixture
async def manager(http_exchange: HttpExchangeFactory) -> AsyncIterator[Manager]:
    """Places for six agents, three in each of two processes."""
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(pool(2), 3)
    ) as manager:
        yield manager


# --- where agents run


async def test_agents_share_a_worker_until_it_is_full(manager: Manager) -> None:
    counters = [await manager.launch(Counter) for _ in range(5)]
    pids = [await counter.pid() for counter in counters]
    assert os.getpid() not in pids
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 3]


async def test_agents_of_one_worker_call_each_other(manager: Manager) -> None:
    seats: list[Handle[Seat]] = []
    async with manager.launch_batch() as batch:
        for index in range(6):
            seats.append(await batch.queue(Seat, args=(seats, index)))
    assert await seats[0].around(14) == 2


async def test_a_place_that_is_free_again_is_taken_again(manager: Manager) -> None:
    counters = [await manager.launch(Counter) for _ in range(3)]
    pid = await counters[0].pid()
    await manager.shutdown(counters[1])
    assert await (await manager.launch(Counter)).pid() == pid


async def test_an_agent_that_the_exchange_has_no_room_for_costs_others_no_worker(
    tmp_path: Path,
) -> None:
    limits = {"max_namespace_bytes": 100_000}
    with ExchangeServer(tmp_path, limits=limits) as server:
        executor = EventLoopExecutor(pool(2), 3)
        async with await Manager.from_exchange_factory(
            server.factory(), executor
        ) as manager:
            first = await manager.launch(Counter)
            pid = await first.pid()
            large = await manager.launch(Counter, args=(1 << 1_600_000,))
            with pytest.raises(QuotaExceededError, match="max_namespace_bytes"):
                await manager.wait([large], raise_error=True)
            assert await (await manager.launch(Counter)).pid() == pid


async def test_agents_with_other_submit_kwargs_get_another_worker(
    http_exchange: HttpExchangeFactory,
) -> None:
    class Shapes(ProcessEach):
        """Takes a shape, and keeps it to itself."""

        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[str] = []

        def validate(self, shape: str = "any") -> None:
            pass

        def submit(self, fn: Any, /, *args: Any, shape: str = "any") -> Any:
            self.shapes.append(shape)
            return super().submit(fn, *args)

    inner = Shapes()
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(inner, 3)
    ) as manager:
        for shape in ("wide", "tall", "wide"):
            counter = await manager.launch(Counter, submit_kwargs={"shape": shape})
            await counter.ping()
    assert sorted(inner.shapes) == ["tall", "wide"]


async def test_an_agent_lives_longer_than_a_call_may_take(
    http_exchange: HttpExchangeFactory,
) -> None:
    factory = copy.copy(http_exchange)
    factory.client_config = ExchangeClientConfig(call_timeout=1)
    async with await Manager.from_exchange_factory(
        factory, EventLoopExecutor(pool(1), 3)
    ) as manager:
        counter = (await manager.launch(Counter)).with_timeout(60)
        pid = await counter.pid()
        await asyncio.sleep(1.5)
        assert await counter.pid() == pid


async def test_a_host_without_agents_gives_its_worker_back(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(ProcessEach(), 3, idle_timeout=0.01)
    ) as manager:
        client = manager.exchange_client
        counter = await manager.launch(Counter)
        pid = await counter.pid()
        assert len(await client.discover(EventLoopHost)) == 1
        await manager.shutdown(counter)
        while await client.discover(EventLoopHost):
            await asyncio.sleep(0.01)
        assert await (await manager.launch(Counter)).pid() != pid


async def test_a_thousand_agents_share_a_worker(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(pool(1), 1000)
    ) as manager:
        async with manager.launch_batch() as batch:
            counters = [await batch.queue(Counter, args=(i,)) for i in range(1000)]
        values = await asyncio.gather(*(counter.add() for counter in counters))
        assert values == list(range(1, 1001))


# --- how agents end


async def test_an_agent_ends_without_its_neighbours(manager: Manager) -> None:
    one, other = await manager.launch(Counter), await manager.launch(Counter)
    await manager.shutdown(one)
    with pytest.raises(AgentTerminatedError):
        await one.add()
    assert await other.add() == 1


async def test_what_an_agent_failed_of_is_told_with_its_traceback(
    manager: Manager, tmp_path: Path
) -> None:
    neighbour = await manager.launch(Counter)
    failing = await manager.launch(FailsAtFirst, args=(tmp_path / "diary", 9))
    with pytest.raises(RuntimeError, match="failure 1") as caught:
        await manager.wait([failing], raise_error=True)
    assert any("in agent_on_startup" in note for note in caught.value.__notes__)
    assert await neighbour.add() == 1


async def test_an_agent_whose_module_is_missing_fails_alone(
    http_exchange: HttpExchangeFactory,
) -> None:
    executor = EventLoopExecutor(pool(1))
    async with await Manager.from_exchange_factory(http_exchange, executor) as manager:
        neighbour = await manager.launch(Counter)
        registration = await manager.register_agent(Counter)
        by_reference = b"\x80\x05cno_such_package.agents\nThing\n."
        spec = AgentSpec(by_reference, http_exchange, registration, RuntimeConfig())
        future = executor.submit(run_agent, spec.pack())
        with pytest.raises(ModuleNotFoundError, match="no_such_package"):
            await asyncio.wrap_future(future)
        assert await neighbour.add() == 1


async def test_a_killed_worker_fails_exactly_its_agents(manager: Manager) -> None:
    counters = [await manager.launch(Counter) for _ in range(4)]
    pids = [await counter.pid() for counter in counters]
    lost = [c for c, pid in zip(counters, pids, strict=True) if pid == pids[0]]
    # A process pool takes its other workers along: some are asked to end before.
    with pytest.raises(AgentTerminatedError):
        await counters[0].kill()
    for counter in lost:
        with pytest.raises(BrokenExecutor, match=r"was lost: BrokenProcessPool"):
            await manager.wait([counter], raise_error=True)
    with pytest.raises((BrokenExecutor, AgentInterruptedError)):
        await manager.wait(set(counters) - set(lost), raise_error=True)


async def test_a_worker_that_was_killed_leaves_others_alone_and_its_agents_come_back(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange,
        EventLoopExecutor(ProcessEach(), 2),
        max_retries=1,
        retry_backoff=0,
    ) as manager:
        counters = [await manager.launch(Counter) for _ in range(4)]
        pids = [await counter.pid() for counter in counters]
        assert pids[0] == pids[1] != pids[2] == pids[3]
        with pytest.raises(Exception, match="interrupted"):
            await counters[0].kill()
        again = [await counter.pid() for counter in counters]
        assert again[2:] == pids[2:]
        assert set(again[:2]).isdisjoint(pids)


async def test_a_terminated_worker_shuts_its_agents_down_in_order(
    http_exchange: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(ProcessEach(), 5)
    ) as manager:
        diaries = [tmp_path / f"diary-{i}" for i in range(3)]
        agents = [await manager.launch(Diary, args=(path,)) for path in diaries]
        pid = await agents[0].pid()
        for agent in agents:
            await agent.ping()
        os.kill(pid, signal.SIGTERM)
        for agent in agents:
            with pytest.raises((AgentInterruptedError, BrokenExecutor)):
                await manager.wait([agent], raise_error=True)
        for path in diaries:
            assert path.read_text().split() == ["startup", "shutdown"]


async def test_a_worker_that_does_not_start_fails_its_agents(
    http_exchange: HttpExchangeFactory,
) -> None:
    inner = Recording()
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(inner, 5)
    ) as manager:
        counter = await manager.launch(Counter)
        while not inner.submitted:
            await asyncio.sleep(0.01)
        inner.submitted[0].set_exception(OSError("no such partition"))
        with pytest.raises(BrokenExecutor, match="no such partition") as caught:
            await manager.wait([counter], raise_error=True)
        assert isinstance(caught.value.__cause__, OSError)


async def test_an_inner_executor_that_refuses_fails_the_agent(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(Recording(refuse=0), 5)
    ) as manager:
        counter = await manager.launch(Counter)
        with pytest.raises(OSError, match="the scheduler refuses"):
            await manager.wait([counter], raise_error=True)
        assert await manager.exchange_client.discover(EventLoopHost) == ()


async def test_an_agent_whose_worker_waits_in_a_queue_is_withdrawn(
    http_exchange: HttpExchangeFactory,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    threads = ThreadPoolExecutor(1)
    threads.submit(lambda: (begun.set(), go_on.wait()))
    await asyncio.to_thread(begun.wait)
    manager = await Manager.from_exchange_factory(
        http_exchange, EventLoopExecutor(threads, 5)
    )
    counter = await manager.launch(Counter)
    await manager.shutdown(counter)
    await manager.launch(Counter)
    closing = asyncio.create_task(manager.close())
    go_on.set()
    await closing


# --- as an executor


def test_it_runs_nothing_but_agents() -> None:
    with EventLoopExecutor(ThreadPoolExecutor(1)) as executor:
        with pytest.raises(TypeError, match="runs the agents of a Manager only"):
            executor.submit(os.getpid)
        with pytest.raises(TypeError, match="runs the agents of a Manager only"):
            executor.submit(run_agent, "not a packed spec")


def test_it_asks_the_inner_executor_what_submit_takes() -> None:
    executor = EventLoopExecutor(ThreadPoolExecutor(2), 50)
    with pytest.raises(ValueError, match="ThreadPoolExecutor takes no submit_kwargs"):
        base.validate(executor, {"nodes": 2})
    with pytest.raises(ValueError, match="ThreadPoolExecutor takes no submit_kwargs"):
        executor.submit(run_agent, b"", nodes=2)
    assert base.max_workers(executor) == 100
    assert "Up to 50 agents" in base.preview(executor, {})
    assert base.max_workers(EventLoopExecutor(Recording())) is None
    executor.shutdown()


def test_a_worker_without_places_is_refused() -> None:
    with pytest.raises(ValueError, match="agents_per_worker is at least 1"):
        EventLoopExecutor(Recording(), 0)


def test_it_shuts_the_inner_executor_down_and_takes_nothing_more() -> None:
    inner = Recording()
    executor = EventLoopExecutor(inner)
    executor.shutdown()
    executor.shutdown()
    assert inner.is_shut_down.is_set()
    with pytest.raises(RuntimeError, match="has been shut down"):
        executor.submit(run_agent, b"")


def test_what_is_no_spec_fails_the_future() -> None:
    with EventLoopExecutor(Recording()) as executor:
        future = executor.submit(run_agent, b"not a spec")
        with pytest.raises(Exception, match="invalid load key"):
            future.result(timeout=30)


async def submitted(
    http_exchange: HttpExchangeFactory, executor: EventLoopExecutor
) -> tuple[Any, Any]:
    async with await http_exchange.create_user_client() as client:
        registration = await client.register_agent(Counter)
    spec = AgentSpec(Counter, http_exchange, registration, RuntimeConfig())
    return registration, executor.submit(run_agent, spec.pack())


async def test_a_shutdown_in_a_hurry_cuts_agents_off(
    http_exchange: HttpExchangeFactory,
) -> None:
    executor = EventLoopExecutor(ProcessEach())
    registration, future = await submitted(http_exchange, executor)
    async with await http_exchange.create_user_client() as client:
        handle: Handle[Counter] = Handle(registration.agent_id, exchange=client)
        await handle.ping()
        await asyncio.to_thread(executor.shutdown, cancel_futures=True)
        with pytest.raises(BrokenExecutor, match="cut off"):
            future.result(timeout=0)
        with pytest.raises((AgentTerminatedError, ExchangeError)):
            await handle.ping()


async def test_a_shutdown_waits_for_agents(http_exchange: HttpExchangeFactory) -> None:
    executor = EventLoopExecutor(ProcessEach())
    registration, future = await submitted(http_exchange, executor)
    async with await http_exchange.create_user_client() as client:
        handle: Handle[Counter] = Handle(registration.agent_id, exchange=client)
        shutdown = asyncio.create_task(asyncio.to_thread(executor.shutdown))
        assert await handle.add() == 1
        assert not shutdown.done()
        await handle.shutdown()
        await shutdown
    assert future.result(timeout=0) is None


async def test_a_future_that_is_cancelled_in_time_runs_nothing(
    http_exchange: HttpExchangeFactory,
) -> None:
    inner = Recording()
    executor = EventLoopExecutor(inner)
    _, future = await submitted(http_exchange, executor)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(timeout=0)
    shutdown = asyncio.create_task(asyncio.to_thread(executor.shutdown))
    for submission in inner.submitted:
        submission.set_result(None)
    await shutdown


# --- the host by itself


async def test_a_host_that_was_forgotten_ends_by_itself(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(http_exchange) as manager:
        host = await manager.launch(EventLoopHost, args=(0.05,))
        await manager.wait([host])


async def test_a_local_class_is_hosted_too(manager: Manager) -> None:
    class Local(Link):
        pass

    end = await manager.launch(Local)
    assert await (await manager.launch(Local, args=(end,))).length() == 2
    assert issubclass(Local, Agent)
