"""Agents that vanish: what watchers are told by a real exchange, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from academy.exception import AgentTerminatedError
from academy.exchange import AgentRegistration, HttpExchangeFactory, UserExchangeClient
from academy.exchange.presence import Presence, PresenceState
from academy.executors.base import AgentExecutor
from academy.failure import AgentLostError, MissingModuleError, NeverStartedError
from academy.launch import run_agent
from academy.manager import Manager
from academy.scheduler.job import JobInfo, JobState
from tests.support.agents import Adder, Other
from tests.support.executors import Recording
from tests.support.launchables import Counter
from tests.support.recording_agent import AgentProcess, RecordingAgent
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.watcher import Watcher

ATTACHED, GONE = PresenceState.ATTACHED, PresenceState.GONE


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    exchange = ExchangeServer(tmp_path_factory.mktemp("exchange"))
    impatient = f"heartbeat_interval = 0.4\n{exchange.config_file.read_text()}"
    exchange.config_file.write_text(impatient)
    with exchange:
        yield exchange


@pytest.fixture
async def registration(user: UserExchangeClient) -> AgentRegistration[Any]:
    return await user.register_agent(RecordingAgent)


# --- what the exchange tells


async def test_a_process_that_is_killed_is_gone_at_once_and_comes_back_as_another(
    factory: HttpExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    tmp_path: Path,
) -> None:
    agent_id = registration.agent_id
    watcher = Watcher()
    await user.watch([agent_id], watcher)
    with AgentProcess(factory, registration, tmp_path / "record") as process:
        here = await watcher.until(agent_id, ATTACHED)
        process.kill()
        gone = await watcher.until(agent_id, GONE)
        assert gone == Presence(GONE, 1, here.place)
        process.start()
        again = await watcher.until(agent_id, ATTACHED)
        assert again.epoch == 2
        assert again.place != here.place


async def test_a_connection_that_falls_silent_is_gone_until_it_is_back(
    exchange: ExchangeServer,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    watcher = Watcher()
    await user.watch([registration.agent_id], watcher)
    async with TcpProxy(exchange.port) as proxy:
        factory = exchange.factory(proxy.port, heartbeat=0.4, request_timeout_s=5)
        agent = await factory.connect(registration)
        await watcher.until(registration.agent_id, ATTACHED)
        proxy.stall()  # as when a host loses its power: nothing is said any more
        await watcher.until(registration.agent_id, GONE)
        proxy.cut()
        proxy.resume()
        back = await watcher.until(registration.agent_id, ATTACHED)
        assert back.epoch == 1
        await agent.close()


async def test_those_of_one_process_are_gone_together(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registrations = await user.register_agents([(Adder, None)] * 300)
    agents = [one.agent_id for one in registrations]
    watcher = Watcher()
    await user.watch(agents, watcher)
    async with TcpProxy(exchange.port) as proxy:
        factory = exchange.factory(proxy.port)
        transports = await asyncio.gather(*map(factory.connect, registrations))
        for agent_id in agents:
            await watcher.until(agent_id, ATTACHED)
        before = len(watcher.told)
        proxy.stall()
        proxy.cut()
        await watcher.until(agents[0], GONE)
        assert set(watcher.told[before]) == set(agents)
        proxy.resume()
        for agent_id in agents:
            await watcher.until(agent_id, ATTACHED)
        await asyncio.gather(*(transport.close() for transport in transports))


@pytest.mark.slow
async def test_watchers_are_told_again_after_the_exchange_was_away(
    tmp_path: Path,
) -> None:
    watcher = Watcher()
    with ExchangeServer(tmp_path / "exchange") as exchange:
        factory = exchange.factory()
        async with await factory.create_user_client() as user:
            three = await user.register_agents([(RecordingAgent, None)] * 3)
            lives, dies, never = three
            await user.watch([one.agent_id for one in three], watcher)
            with (
                AgentProcess(factory, lives, tmp_path / "lives"),
                AgentProcess(factory, dies, tmp_path / "dies") as dying,
            ):
                before = await watcher.until(lives.agent_id, ATTACHED)
                await watcher.until(dies.agent_id, ATTACHED)
                exchange.shoot()
                dying.kill()
                await exchange.restart()
                # It died while nobody looked, and it does not come back.
                await watcher.until(dies.agent_id, GONE)
                assert await watcher.until(lives.agent_id, ATTACHED) == before
                assert watcher.now[never.agent_id].state is PresenceState.REGISTERED


# --- what the manager makes of it


class Somewhere(Recording, AgentExecutor):
    """Begins nothing by itself; a test runs what was submitted, and says of what job.

    Attributes:
        tasks: what was submitted, to be run by the test.
        info: what is told about the job of each.
        cancelled: the futures that were to be cancelled.
    """

    def __init__(self, info: JobInfo | None = None) -> None:
        super().__init__()
        self.info = info
        self.tasks: list[Any] = []
        self.cancelled: list[Future[Any]] = []
        self.asked: list[dict[str, Any]] = []

    max_workers = None

    def validate(self, **submit_kwargs: Any) -> None:
        pass

    def preview(self, **submit_kwargs: Any) -> str:
        return ""

    def ask_scheduler(self, **submit_kwargs: Any) -> None:
        self.asked.append(submit_kwargs)
        if submit_kwargs.get("nodes") == 1000:
            raise ValueError("there are no 1000 nodes")

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert fn is run_agent
        self.tasks.append(args[0])
        return super().submit(fn, *args)

    def job(self, future: Future[Any]) -> JobInfo | None:
        return self.info

    def cancel(self, future: Future[Any]) -> bool:
        self.cancelled.append(future)
        return future.cancel()


async def test_an_agent_of_which_nobody_can_tell_is_lost_in_the_end(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with await Manager.from_exchange_factory(
        factory, Somewhere(), lost_after=0.1
    ) as manager:
        registration = await manager.register_agent(RecordingAgent)
        agent = await manager.launch(
            RecordingAgent, args=(tmp_path,), registration=registration
        )
        with AgentProcess(factory, registration, tmp_path / "record") as process:
            await agent.pid()
            hanging = asyncio.ensure_future(agent.hang(1))
            process.kill()
            with pytest.raises(AgentLostError, match="no connection to its exchange"):
                await manager.wait([agent], raise_error=True, timeout=30)
            with pytest.raises(AgentTerminatedError, match="no connection"):
                await hanging


async def test_an_agent_whose_process_lives_is_not_lost_without_a_connection(
    exchange: ExchangeServer,
    factory: HttpExchangeFactory,
    user: UserExchangeClient,
    tmp_path: Path,
) -> None:
    watcher = Watcher()
    executor = Somewhere()
    async with await Manager.from_exchange_factory(
        factory, executor, lost_after=0.05
    ) as manager:
        registration = await manager.register_agent(RecordingAgent)
        agent_id = registration.agent_id
        await user.watch([agent_id], watcher)
        agent = await manager.launch(
            RecordingAgent, args=(tmp_path,), registration=registration
        )
        async with TcpProxy(exchange.port) as proxy:
            far = exchange.factory(proxy.port, request_timeout_s=5)
            with AgentProcess(far, registration, tmp_path / "record"):
                pid = await agent.pid()
                proxy.stall()
                proxy.cut()
                await watcher.until(agent_id, GONE)
                with pytest.raises(TimeoutError):
                    await manager.wait([agent], timeout=2)
                proxy.cut()
                proxy.resume()
                assert await agent.pid() == pid
        executor.submitted[0].set_result(None)
        await manager.wait([agent], raise_error=True, timeout=30)


async def test_a_job_that_its_scheduler_will_never_start_is_given_up_and_cancelled(
    factory: HttpExchangeFactory,
) -> None:
    executor = Somewhere(
        JobInfo("slurm", "4711", JobState.PENDING, "PartitionTimeLimit")
    )
    async with await Manager.from_exchange_factory(
        factory, executor, max_retries=3
    ) as manager:
        agent = await manager.launch(Counter)
        assert await manager.job(agent) == executor.info
        call = asyncio.ensure_future(agent.add())
        with pytest.raises(NeverStartedError) as caught:
            await manager.wait([agent], raise_error=True, timeout=30)
        assert caught.value.job_id == "4711"
        assert caught.value.reason == "PartitionTimeLimit"
        with pytest.raises(AgentTerminatedError, match=r"job 4711: PartitionTimeLimit"):
            await call
    # It is of no use to submit it again, nor to keep it in the queue.
    assert executor.cancelled == executor.submitted
    assert len(executor.submitted) == 1


async def test_a_scheduler_is_asked_once_a_minute_before_anything_is_registered(
    factory: HttpExchangeFactory, user: UserExchangeClient
) -> None:
    executor = Somewhere()
    async with await Manager.from_exchange_factory(factory, executor) as manager:
        before = await user.discover(Other)
        with pytest.raises(ValueError, match="no 1000 nodes"):
            await manager.launch(Other, submit_kwargs={"nodes": 1000})
        batch = manager.launch_batch()
        await batch.queue(Other)
        await batch.queue(Other, submit_kwargs={"nodes": 1000})
        with pytest.raises(ValueError, match="no 1000 nodes"):
            await batch.submit()
        assert await user.discover(Other) == before
        assert executor.submitted == []
        executor.asked.clear()
        await asyncio.gather(
            *(manager.launch(Other, submit_kwargs={"nodes": 2}) for _ in range(9))
        )
        assert executor.asked == [{"nodes": 2}]


async def test_what_a_worker_lacks_to_run_any_agent_is_named_with_its_job(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.write_text("module load is not what it was\n")
    executor = Somewhere(JobInfo("local", "4711", nodes=("n1",), stderr=str(output)))
    async with await Manager.from_exchange_factory(factory, executor) as manager:
        agent = await manager.launch(Counter)
        error = ModuleNotFoundError("No module named 'academy'")
        executor.submitted[0].set_exception(error)
        with pytest.raises(MissingModuleError, match="'academy'") as caught:
            await manager.wait([agent], raise_error=True, timeout=30)
        assert (caught.value.job_id, caught.value.host) == ("4711", "n1")
        assert "not what it was" in caught.value.output
        assert caught.value.__cause__ is error
