"""What a signal does to the worker that gets it, and to the program that launched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from academy.exchange.cloud import HttpExchangeFactory
from academy.exchange.cloud.credentials import FINGERPRINT_VARIABLE, TOKEN_VARIABLE
from academy.handle import Handle
from academy.launch import AgentInterruptedError, AgentSpec, run_agent
from academy.runtime import RuntimeConfig
from tests.support.launchables import Diary, Stubborn


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def spec_for(factory: HttpExchangeFactory, agent: Any, *args: Any) -> AgentSpec:
    async def register() -> Any:
        async with await factory.create_user_client() as client:
            return await client.register_agent(agent)

    registration = asyncio.run(register())
    return AgentSpec(agent, factory, registration, RuntimeConfig(), args=args)


@contextmanager
def once_it_runs(factory: HttpExchangeFactory, spec: AgentSpec) -> Iterator[None]:
    """Send this process signals from a thread, as soon as the agent answers."""

    async def ping() -> None:
        async with await factory.create_user_client() as client:
            await Handle(spec.registration.agent_id, exchange=client).ping()

    def interrupt() -> None:
        asyncio.run(ping())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_shuts_the_agent_of_a_worker_down_in_order(
    http_exchange: HttpExchangeFactory, diary: Path, number: signal.Signals
) -> None:
    spec = spec_for(http_exchange, Diary, diary)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(spec.pack())
    worker.stdin.close()

    async def wait_until_it_runs() -> None:
        async with await http_exchange.create_user_client() as client:
            await Handle(spec.registration.agent_id, exchange=client).ping()

    asyncio.run(wait_until_it_runs())
    worker.send_signal(number)
    output = worker.stdout.read().decode()
    worker.stdout.close()
    assert worker.wait() == 0
    assert f"was ended by {number.name}" in output
    assert diary.read_text().split() == ["startup", "shutdown"]


WORKER = """
import sys
from academy.launch import AgentInterruptedError, run_agent
try:
    run_agent(sys.stdin.buffer.read())
except AgentInterruptedError as error:
    print(error)
"""


def test_handlers_are_as_before_when_the_agent_has_ended(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    spec = spec_for(http_exchange, Diary, diary)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with (
        once_it_runs(http_exchange, spec),
        pytest.raises(AgentInterruptedError, match="SIGTERM"),
    ):
        run_agent(spec.pack())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert diary.read_text().split() == ["startup", "shutdown"]


def test_a_worker_thread_leaves_signals_alone(
    http_exchange: HttpExchangeFactory, diary: Path
) -> None:
    spec = spec_for(http_exchange, Diary, diary)
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run_agent, args=(spec,))
    thread.start()

    async def shut_down() -> None:
        async with await http_exchange.create_user_client() as client:
            handle: Handle[Diary] = Handle(spec.registration.agent_id, exchange=client)
            await handle.ping()
            assert signal.getsignal(signal.SIGTERM) == before
            await handle.shutdown()

    asyncio.run(shut_down())
    thread.join()


@contextmanager
def campaign(
    exchange: HttpExchangeFactory, diary: Path, kind: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a program with one agent; yield it and the process of the agent."""
    command = [sys.executable, "-m", "tests.support.campaign"]
    program = subprocess.Popen(
        [*command, exchange.url, str(diary), kind],
        env={
            **os.environ,
            TOKEN_VARIABLE: exchange.find_token() or "",
            FINGERPRINT_VARIABLE: exchange.find_fingerprint() or "",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        ready, pid = program.stdout.readline().split()
        assert ready == "ready"
        yield program, int(pid)
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("kind", ["event-loop", "pool", "hosted"])
def test_ctrl_c_in_the_program_ends_all_agents_in_order(
    http_exchange: HttpExchangeFactory, diary: Path, kind: str
) -> None:
    with campaign(http_exchange, diary, kind) as (program, _):
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate()
    assert program.returncode == 1
    assert errors.splitlines()[-1] == "interrupted"
    assert diary.read_text().split() == ["startup", "shutdown"]


@pytest.mark.parametrize("kind", ["pool", "hosted"])
def test_ctrl_c_that_workers_get_too_ends_all_agents_in_order(
    http_exchange: HttpExchangeFactory, diary: Path, kind: str
) -> None:
    with campaign(http_exchange, diary, kind) as (program, _):
        # A terminal interrupts everything that runs in the foreground.
        os.killpg(program.pid, signal.SIGINT)
        program.communicate()
    assert program.returncode == 1
    assert diary.read_text().split() == ["startup", "shutdown"]


@pytest.mark.parametrize("kind", ["pool", "hosted"])
def test_agents_end_in_order_when_their_program_is_killed(
    http_exchange: HttpExchangeFactory, diary: Path, kind: str
) -> None:
    with campaign(http_exchange, diary, kind) as (program, pid):
        worker = psutil.Process(pid)
        program.kill()
        program.wait()
        worker.wait(60)
    assert diary.read_text().split() == ["startup", "shutdown"]


def test_a_second_signal_stops_waiting_for_the_agent(
    http_exchange: HttpExchangeFactory,
) -> None:
    spec = spec_for(http_exchange, Insistent)
    with (
        once_it_runs(http_exchange, spec),
        pytest.raises(AgentInterruptedError, match="Cancelled"),
    ):
        run_agent(spec)


class Insistent(Stubborn):
    """Makes whoever wants to end it ask twice."""

    async def agent_on_shutdown(self) -> None:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await super().agent_on_shutdown()
