"""Agents on a real Globus Compute endpoint; only the cloud between is a stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from academy.exception import ActionInterruptedError
from academy.exchange.cloud import HttpExchangeFactory
from academy.executors.globus_compute import (
    EndpointRefusedError,
    GlobusComputeExecutor,
    PayloadTooLargeError,
    ResultTooLargeError,
)
from academy.failure import MissingModuleError, WorkerDiedError
from academy.manager import Manager
from tests.support.globus import ComputeLab
from tests.support.globus.cloud import RefusedError
from tests.support.launchables import Counter, FailsAtLast
from tests.support.tcp_proxy import TcpProxy

# Workers of the endpoint have no pytest, and so cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow

Make = Callable[..., GlobusComputeExecutor]


@pytest.fixture(scope="module")
def lab() -> Iterator[ComputeLab]:
    """One endpoint for all, with a user endpoint for who asks for nothing special."""
    if (reason := ComputeLab.missing()) is not None:
        pytest.skip(reason)
    with ComputeLab() as lab:
        with GlobusComputeExecutor(lab.endpoint_id, client=lab.client) as executor:
            executor.submit(os.getpid).result()
        yield lab


@pytest.fixture
def compute(lab: ComputeLab) -> Iterator[ComputeLab]:
    """The same, without the user endpoints that a test has started."""
    before = lab.user_endpoints()
    lab.cloud.submissions.clear()
    yield lab
    lab.stop(lab.user_endpoints() - before)


@pytest.fixture
def make(compute: ComputeLab) -> Iterator[Make]:
    """Make executors for the endpoint, which are ended with the test."""
    made: list[GlobusComputeExecutor] = []

    def make(**options: Any) -> GlobusComputeExecutor:
        options.setdefault("client", compute.client)
        made.append(GlobusComputeExecutor(compute.endpoint_id, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


@pytest.fixture
def executor(make: Make) -> GlobusComputeExecutor:
    return make()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits for who writes it, and the other way round."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def variables(*names: str) -> list[str | None]:
    """Return environment variables of a worker."""
    return [os.environ.get(name) for name in names]


def threads() -> set[threading.Thread]:
    """Return the threads that run, but for those of the stand-in."""
    found = threading.enumerate()
    return {one for one in found if "process_request_thread" not in one.name}


# --- agents


async def test_an_agent_on_the_endpoint_answers_and_ends_when_asked(
    http_exchange: HttpExchangeFactory, executor: GlobusComputeExecutor
) -> None:
    async with await Manager.from_exchange_factory(http_exchange, executor) as manager:
        counter = await manager.launch(Counter, args=(40,))
        assert await counter.add(2) == 42
        await manager.shutdown(counter)


async def test_what_an_agent_fails_of_comes_back_as_itself(
    http_exchange: HttpExchangeFactory, executor: GlobusComputeExecutor
) -> None:
    async with await Manager.from_exchange_factory(http_exchange, executor) as manager:
        agent = await manager.launch(FailsAtLast)
        await agent.add(1)
        with pytest.raises(ValueError, match="at last") as caught:
            await manager.shutdown(agent, raise_error=True)
        assert "Raised on" in "".join(caught.value.__notes__)


async def test_an_agent_whose_worker_is_killed_comes_back_as_itself(
    http_exchange: HttpExchangeFactory, make: Make
) -> None:
    # Of a user endpoint of its own, which gets a new worker.
    executor = make(user_endpoint_config={"mine": True})
    async with await Manager.from_exchange_factory(
        http_exchange, executor, max_retries=1
    ) as manager:
        counter = await manager.launch(Counter)
        before = await counter.pid()
        with pytest.raises(ActionInterruptedError):
            await counter.kill()
        assert await counter.pid() != before
        await manager.shutdown(counter)
    with pytest.raises(WorkerDiedError, match="loss of worker 0") as caught:
        make(user_endpoint_config={"mine": True}).submit(os._exit, 3).result()
    assert caught.value.host == os.uname().nodename


# --- what is asked for


def test_concurrent_launches_with_different_configurations_never_mix(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    def launch(n: int) -> Any:
        flavour = {"worker_init": "export FLAVOUR=vanilla"} if n % 2 else {}
        return executor.submit(
            variables, "FLAVOUR", "PARSL_PRIORITY", priority=n // 2 % 4, **flavour
        )

    with ThreadPoolExecutor(4) as threads:
        futures = list(threads.map(launch, range(80)))
    for n, future in enumerate(futures):
        flavour = "vanilla" if n % 2 else None
        assert future.result() == [flavour, str(n // 2 % 4)], n
    # One request at least for each of the eight, and one for many tasks at a time.
    assert 8 <= len(compute.cloud.submissions) < 40


def test_what_is_launched_together_is_submitted_in_one_request(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    numbers = [(n,) for n in range(100)]
    futures = executor.submit_together(abs, numbers, priority=3)
    assert [future.result() for future in futures] == list(range(100))
    [submission] = compute.cloud.submissions
    assert list(submission["tasks"].values()) == [100]


def test_what_is_submitted_is_what_was_previewed(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    native = {"workers": 2, "note": {"any": ["thing", None, 1.5]}}
    preview = executor.preview(priority=3, user_endpoint_config=native)
    compute.cloud.refusals.append(RefusedError(403, "FORBIDDEN", "enough is known"))
    future = executor.submit(abs, -1, priority=3, user_endpoint_config=native)
    with pytest.raises(EndpointRefusedError, match="enough is known"):
        future.result()
    [submission] = compute.cloud.submissions
    shown = json.loads(preview[preview.index("{") :])
    assert shown == {key: submission[key] for key in shown}
    assert shown["user_endpoint_config"] == native
    assert f"/v3/endpoints/{compute.endpoint_id}/submit" in preview


def test_an_executor_of_a_hundred_launches_does_not_wait_for_the_service(
    executor: GlobusComputeExecutor,
) -> None:
    futures = [executor.submit(abs, -n) for n in range(100)]
    assert [future.result() for future in futures] == list(range(100))


# --- what is refused


def test_too_large_an_agent_is_refused_before_it_is_submitted(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    assert executor.submit(len, bytes(7_000_000)).result() == 7_000_000
    compute.cloud.submissions.clear()
    with pytest.raises(PayloadTooLargeError, match=r"takes 10,000,000 .* action"):
        executor.submit(len, bytes(8_000_000))
    assert compute.cloud.submissions == []


def test_large_agents_that_fit_one_by_one_are_submitted_one_by_one(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    numbers = [(bytes(3_000_000),) for _ in range(5)]
    futures = executor.submit_together(len, numbers)
    assert {future.result() for future in futures} == {3_000_000}
    sizes = [next(iter(one["tasks"].values())) for one in compute.cloud.submissions]
    assert sizes == [2, 2, 1]


def test_after_a_refusal_the_next_launch_works(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    forbidden = RefusedError(403, "ENDPOINT_ACCESS_FORBIDDEN", "not for you")
    compute.cloud.refusals.append(forbidden)
    refused = executor.submit(abs, -1)
    with pytest.raises(EndpointRefusedError, match=r"not for you \(HTTP 403\)") as e:
        refused.result()
    assert compute.endpoint_id in str(e.value)
    assert executor.submit(abs, -1).result() == 1
    # This is what the endpoint itself says.
    refused = executor.submit(abs, -1, user_endpoint_config={"workers": "many"})
    with pytest.raises(EndpointRefusedError, match=r"max_workers_per_node.*HTTP 422"):
        refused.result()
    assert executor.submit(abs, -1).result() == 1


def test_what_the_engine_does_not_take_is_told(executor: GlobusComputeExecutor) -> None:
    future = executor.submit(abs, -1, resource_specification={"num_nodes": 2})
    with pytest.raises(EndpointRefusedError, match=r"num_nodes.*only accepts"):
        future.result()


def test_too_large_a_result_is_told(executor: GlobusComputeExecutor) -> None:
    with pytest.raises(ResultTooLargeError, match="10,485,760 bytes"):
        executor.submit(bytes, 8_000_000).result()


def test_an_endpoint_without_academy_is_told_to_install_it(
    executor: GlobusComputeExecutor, tmp_path: Path
) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'academy'\")"
    (tmp_path / "academy.py").write_text(missing)
    future = executor.submit(abs, -1, worker_init=f"export PYTHONPATH={tmp_path}")
    with pytest.raises(MissingModuleError, match="Install academy-hpc"):
        future.result()


def test_an_endpoint_that_is_offline_is_told_when_asked(
    executor: GlobusComputeExecutor, compute: ComputeLab
) -> None:
    assert executor.ask_scheduler() is None
    nobody = GlobusComputeExecutor(
        "00000000-0000-0000-0000-000000000000", client=compute.client
    )
    with pytest.raises(EndpointRefusedError, match=r"no endpoint 0000.*HTTP 404"):
        nobody.ask_scheduler()
    nobody.shutdown()


# --- clients and brokers that go away


def test_a_result_is_fetched_by_a_client_that_comes_later(
    make: Make, compute: ComputeLab, gate: Path, academy_home: Path
) -> None:
    program = f"""
        import pathlib
        from academy.executors.globus_compute import GlobusComputeExecutor
        from tests.support.globus.lab import client

        executor = GlobusComputeExecutor(
            {compute.endpoint_id!r}, client=lambda: client({compute.cloud.url!r})
        )
        executor.submit(pathlib.Path({str(gate)!r}).read_text)
    """
    # It ends at once, and waits for its task to be submitted, but not to run.
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command) as first, gate.open("w") as file:
        assert first.wait() == 0
        file.write("once")
    [record] = (academy_home / "globus-compute").glob("*.json")
    assert record.stat().st_mode & 0o077 == 0
    executor = make()
    [(found, future)] = executor.reattach().items()
    assert found == future.task_id
    assert future.result() == "once"
    executor.shutdown()
    assert not record.exists()


def test_tasks_that_were_cut_off_go_on_and_are_found_again(
    make: Make, compute: ComputeLab, gate: Path
) -> None:
    first = make()
    future = first.submit(gate.read_text)
    with gate.open("w") as file:
        first.shutdown(cancel_futures=True)
        with pytest.raises(BrokenExecutor, match="reattach"):
            future.result()
        file.write("late")
    task_id = future.task_id
    assert task_id is not None
    compute.cloud.wait_for_end(task_id)
    second = make()
    assert second.reattach([task_id])[task_id].result() == "late"
    assert second.reattach() == {}
    with pytest.raises(ValueError, match=f"no record of a task {task_id}"):
        second.reattach([task_id])


async def test_results_come_after_the_broker_was_away(
    executor: GlobusComputeExecutor, compute: ComputeLab, gate: Path
) -> None:
    cloud = compute.cloud
    async with TcpProxy(compute.broker_port) as broker:
        cloud.client_broker_url = f"amqp://guest:guest@127.0.0.1:{broker.port}/"
        try:
            future = executor.submit(gate.read_text)
            with await asyncio.to_thread(gate.open, "w") as file:
                await broker.has_accepted(1)
                broker.budget = lambda: 0
                while not broker.cut():
                    await asyncio.sleep(0.01)
                # The watcher of the SDK tries once more, and gives up; then we do.
                await broker.has_accepted(3)
                assert not future.done()
                file.write("meanwhile")
            assert await asyncio.wrap_future(future) == "meanwhile"
            late = executor.submit(abs, -1)
            broker.heal()
            assert await asyncio.wrap_future(late) == 1
        finally:
            cloud.client_broker_url = cloud.broker.url
        await asyncio.to_thread(executor.shutdown)


def test_shutdown_waits_for_what_runs_and_leaves_no_thread(
    make: Make, gate: Path
) -> None:
    before = threads()
    executor = make()
    future = executor.submit(gate.read_text)
    with gate.open("w") as file:
        executor.shutdown(wait=False)
        assert not wait([future], timeout=0).done
        file.write("end")
    executor.shutdown()
    assert future.result() == "end"
    assert threads() <= before
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(abs, -1)
