"""The contract of executors, for ours and for those of the standard library.

Workers cannot import this module, so they run functions of the standard library.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from academy.executors import base
from academy.executors.parsl import ParslExecutor

# Each makes an executor with one worker.
IMPLEMENTATIONS: dict[str, Callable[[], Executor]] = {
    "process-pool": lambda: ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ),
    "parsl-htex-local": lambda: ParslExecutor.local(1),
}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def executor(implementation: Callable[[], Executor]) -> Iterator[Executor]:
    """One that runs already, for all tests that do not end it."""
    with implementation() as executor:
        executor.submit(os.getpid).result()
        yield executor


@pytest.fixture
def fresh(implementation: Callable[[], Executor]) -> Iterator[Executor]:
    """One that has not run anything yet."""
    executor = implementation()
    yield executor
    executor.shutdown(cancel_futures=True)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits for who writes it, and the other way round."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def submit(
    executor: Executor, fn: Any, *args: Any, **submit_kwargs: Any
) -> Future[Any]:
    """Submit as the manager does."""
    base.validate(executor, submit_kwargs)
    return executor.submit(fn, *args, **submit_kwargs)


def test_the_result_of_a_function_comes_back(executor: Executor) -> None:
    assert submit(executor, pow, 2, 10).result() == 1024


def test_the_function_runs_in_another_process(executor: Executor) -> None:
    assert submit(executor, os.getpid).result() != os.getpid()


def test_the_exception_of_a_function_comes_back(executor: Executor) -> None:
    future = submit(executor, int, "seven")
    with pytest.raises(ValueError, match="'seven'"):
        future.result()


def test_an_executor_goes_on_after_an_exception(executor: Executor) -> None:
    assert isinstance(submit(executor, divmod, 1, 0).exception(), ZeroDivisionError)
    assert submit(executor, abs, -1).result() == 1


def test_arguments_may_be_megabytes(executor: Executor) -> None:
    packed = os.urandom(4 * 1024 * 1024)
    assert submit(executor, bytes, packed).result() == packed


def test_several_are_answered_each_with_its_own(executor: Executor) -> None:
    futures = [submit(executor, pow, n, 2) for n in range(20)]
    assert [future.result() for future in futures] == [n * n for n in range(20)]
    assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]


def test_an_unknown_key_is_refused_and_nothing_runs(
    executor: Executor, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="'nodez'"):
        submit(executor, (tmp_path / "ran").touch, nodez=2)
    assert submit(executor, abs, -1).result() == 1
    assert not (tmp_path / "ran").exists()


def test_a_preview_names_what_will_run_and_starts_nothing(fresh: Executor) -> None:
    assert "xecutor" in base.preview(fresh, {})
    with pytest.raises(ValueError, match="'nodez'"):
        base.preview(fresh, {"nodez": 2})


def test_the_number_of_workers_is_known(fresh: Executor) -> None:
    assert base.max_workers(fresh) == 1


def test_what_runs_cannot_be_cancelled(executor: Executor, gate: Path) -> None:
    future = submit(executor, gate.read_text)
    with open(gate, "w") as file:  # Waits for the reader.
        assert not future.cancel()
        file.write("done")
    assert future.result() == "done"


async def test_submitting_does_not_wait_for_the_engine(
    fresh: Executor, gate: Path
) -> None:
    future = submit(fresh, gate.read_text)
    assert not future.done()
    await asyncio.to_thread(gate.write_text, "done")
    assert await asyncio.wrap_future(future) == "done"
    await asyncio.to_thread(fresh.shutdown)


def test_shutdown_lets_everything_end_that_was_submitted(fresh: Executor) -> None:
    futures = [submit(fresh, pow, 2, n) for n in range(5)]
    fresh.shutdown(wait=True)
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [1, 2, 4, 8, 16]
    fresh.shutdown(wait=True)
    with pytest.raises(RuntimeError, match=r"shut ?down"):
        submit(fresh, abs, -1)


def test_shutdown_of_an_executor_that_never_ran_is_fine(fresh: Executor) -> None:
    fresh.shutdown()
    fresh.shutdown()
    with pytest.raises(RuntimeError, match=r"shut ?down"):
        submit(fresh, abs, -1)


def test_no_future_stays_pending_when_shutdown_cancels(
    fresh: Executor, gate: Path
) -> None:
    futures = [submit(fresh, gate.read_text)]
    futures += [submit(fresh, pow, 2, n) for n in range(5)]
    closing = threading.Thread(target=fresh.shutdown, kwargs={"cancel_futures": True})
    with open(gate, "w"):  # Waits for the reader, and ends it.
        closing.start()
    closing.join()
    assert all(future.done() for future in futures)
    assert any(future.cancelled() or future.exception() for future in futures)


def test_shutdown_without_waiting_ends_in_the_background(
    fresh: Executor, gate: Path
) -> None:
    future = submit(fresh, gate.read_text)
    fresh.shutdown(wait=False)
    assert not future.done()
    gate.write_text("done")
    assert future.result() == "done"
    fresh.shutdown(wait=True)
