"""The contract of executors, for ours and for those of the standard library.

The first part submits agents, as the manager does, to all of them. The second submits
functions to those that run any. Workers cannot import this module, so agents go by
value, and functions come from the standard library.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import pytest

from academy.agent import Agent
from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.executors import base
from academy.executors.batch import BatchExecutor
from academy.executors.event_loop import EventLoopExecutor
from academy.executors.parsl import ParslExecutor
from academy.launch import AgentSpec, run_agent
from academy.runtime import RuntimeConfig


def process_pool() -> Executor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn)


# Each makes an executor with one worker, or with one for each task.
FOR_FUNCTIONS: dict[str, Callable[[], Executor]] = {
    "process-pool": process_pool,
    "parsl-htex-local": lambda: ParslExecutor.local(1),
    "batch-local": lambda: BatchExecutor("local"),
}
FOR_AGENTS = FOR_FUNCTIONS | {
    "event-loop": lambda: EventLoopExecutor(process_pool(), 20),
}

Launch = Callable[..., Awaitable[Future[Any]]]


@pytest.fixture(scope="module", params=FOR_AGENTS)
def make(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    return FOR_AGENTS[request.param]


@pytest.fixture(scope="module", params=FOR_FUNCTIONS)
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """One that runs already, for tests that do not end it."""
    with FOR_FUNCTIONS[request.param]() as executor:
        executor.submit(os.getpid).result()
        yield executor


@pytest.fixture(scope="module")
def executor(
    make: Callable[[], Executor], exchange: ExchangeFactory
) -> Iterator[Executor]:
    """One that runs already, for tests that do not end it."""

    async def run_one() -> None:
        async with launcher(exchange) as launch:
            await asyncio.wrap_future(await launch(executor))

    with make() as executor:
        asyncio.run(run_one())
        yield executor


@pytest.fixture
def fresh(make: Callable[[], Executor]) -> Iterator[Executor]:
    """One that has not run anything yet."""
    executor = make()
    yield executor
    executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def exchange() -> Iterator[ExchangeFactory]:
    with spawn_http_exchange() as factory:
        yield factory


@pytest.fixture
async def launch(exchange: ExchangeFactory) -> AsyncIterator[Launch]:
    async with launcher(exchange) as launch:
        yield launch


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits for who writes it, and the other way round."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def agent_class() -> type[Agent]:
    """Return a local class, which goes to workers by value."""

    class Task(Agent):
        """Ends by itself: at once, when its gate opens, with an error, or violently."""

        def __init__(
            self,
            gate: Path | None = None,
            error: str | None = None,
            violently: bool = False,
        ) -> None:
            self.gate = gate
            self.error = error
            self.violently = violently

        async def agent_on_startup(self) -> None:
            if self.gate is not None:
                await asyncio.to_thread(self.gate.read_text)
            if self.error is not None:
                raise ValueError(self.error)
            if self.violently:
                os._exit(1)
            self.agent_shutdown()

    return Task


@asynccontextmanager
async def launcher(exchange: ExchangeFactory) -> AsyncIterator[Launch]:
    """Give a function that submits one agent, as the manager does."""
    agent = agent_class()
    async with await exchange.create_user_client() as client:

        async def launch(
            executor: Executor,
            *,
            submit_kwargs: Mapping[str, Any] = MappingProxyType({}),
            **kwargs: Any,
        ) -> Future[Any]:
            base.validate(executor, submit_kwargs)
            registration = await client.register_agent(agent)
            config = RuntimeConfig()
            spec = AgentSpec(agent, exchange, registration, config, kwargs=kwargs)
            return executor.submit(run_agent, spec.pack(), **submit_kwargs)

        yield launch


async def open_gate(gate: Path) -> TextIO:
    """Wait until the gate is being read, and hold it closed until closed."""
    return await asyncio.to_thread(open, gate, "w")


# --- agents


async def test_an_agent_runs_to_its_end(executor: Executor, launch: Launch) -> None:
    assert await asyncio.wrap_future(await launch(executor)) is None


async def test_what_an_agent_fails_of_comes_back(
    executor: Executor, launch: Launch
) -> None:
    failing = await launch(executor, error="seven")
    good = await launch(executor)
    with pytest.raises(ValueError, match="seven"):
        await asyncio.wrap_future(failing)
    await asyncio.wrap_future(good)


async def test_many_agents_are_answered_each_with_its_own(
    executor: Executor, launch: Launch
) -> None:
    futures = [await launch(executor, error=str(n)) for n in range(20)]
    answers = (asyncio.wrap_future(future) for future in futures)
    errors = await asyncio.gather(*answers, return_exceptions=True)
    assert [str(error) for error in errors] == [str(n) for n in range(20)]


async def test_an_unknown_key_is_refused_and_named(
    executor: Executor, launch: Launch
) -> None:
    with pytest.raises(ValueError, match="'nodez'"):
        await launch(executor, submit_kwargs={"nodez": 2})
    with pytest.raises(ValueError, match="'nodez'"):
        base.preview(executor, {"nodez": 2})


def test_a_preview_tells_what_will_run_and_starts_nothing(fresh: Executor) -> None:
    assert re.search(r"xecutor|academy\.run --spec", base.preview(fresh, {}))


def test_the_number_of_agents_at_a_time_is_known(fresh: Executor) -> None:
    unlimited = isinstance(fresh, BatchExecutor)
    assert base.max_workers(fresh) in ((None,) if unlimited else (1, 20))


async def test_what_runs_cannot_be_cancelled(
    executor: Executor, launch: Launch, gate: Path
) -> None:
    future = await launch(executor, gate=gate)
    with await open_gate(gate):
        assert not future.cancel()
    await asyncio.wrap_future(future)


async def test_submitting_does_not_wait_for_the_engine(
    fresh: Executor, launch: Launch, gate: Path
) -> None:
    future = await launch(fresh, gate=gate)
    assert not future.done()
    with await open_gate(gate):
        pass
    await asyncio.wrap_future(future)
    await asyncio.to_thread(fresh.shutdown)


async def test_shutdown_lets_everything_end_that_was_submitted(
    fresh: Executor, launch: Launch
) -> None:
    futures = [await launch(fresh) for _ in range(3)]
    futures.append(await launch(fresh, error="seven"))
    await asyncio.to_thread(fresh.shutdown, wait=True)
    assert all(future.done() for future in futures)
    errors = [future.exception() for future in futures]
    assert errors[:3] == [None, None, None]
    assert isinstance(errors[3], ValueError)
    await asyncio.to_thread(fresh.shutdown, wait=True)
    with pytest.raises(RuntimeError, match=r"shut ?down"):
        await launch(fresh)


async def test_shutdown_of_an_executor_that_never_ran_is_fine(
    fresh: Executor, launch: Launch
) -> None:
    fresh.shutdown()
    fresh.shutdown()
    with pytest.raises(RuntimeError, match=r"shut ?down"):
        await launch(fresh)


async def test_no_future_stays_pending_when_shutdown_cancels(
    fresh: Executor, launch: Launch, gate: Path
) -> None:
    futures = [await launch(fresh, gate=gate)]
    futures += [await launch(fresh) for _ in range(3)]
    with await open_gate(gate):
        closing = asyncio.create_task(
            asyncio.to_thread(fresh.shutdown, cancel_futures=True)
        )
    await closing
    assert all(future.done() for future in futures)


async def test_shutdown_without_waiting_ends_in_the_background(
    fresh: Executor, launch: Launch, gate: Path
) -> None:
    future = await launch(fresh, gate=gate)
    with await open_gate(gate):
        fresh.shutdown(wait=False)
        assert not future.done()
    await asyncio.wrap_future(future)
    await asyncio.to_thread(fresh.shutdown, wait=True)


async def test_the_loss_of_a_worker_is_told(fresh: Executor, launch: Launch) -> None:
    future = await launch(fresh, violently=True)
    told = r"lost|terminated abruptly|loss of worker|job failed"
    with pytest.raises(Exception, match=told):
        await asyncio.wrap_future(future)
    await asyncio.to_thread(fresh.shutdown)


# --- functions


def test_the_result_of_a_function_comes_back(pool: Executor) -> None:
    assert pool.submit(pow, 2, 10).result() == 1024
    assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]


def test_a_function_runs_in_another_process(pool: Executor) -> None:
    assert pool.submit(os.getpid).result() != os.getpid()


def test_the_exception_of_a_function_comes_back(pool: Executor) -> None:
    with pytest.raises(ValueError, match="'seven'"):
        pool.submit(int, "seven").result()
    assert pool.submit(abs, -1).result() == 1


def test_arguments_may_be_megabytes(pool: Executor) -> None:
    packed = os.urandom(4 * 1024 * 1024)
    assert pool.submit(bytes, packed).result() == packed
