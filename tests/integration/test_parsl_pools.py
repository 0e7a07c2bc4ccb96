"""Pools of blocks of several shapes on this machine: how they begin, fail and end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.providers import LocalProvider

from academy.executors.parsl import ParslExecutor
from academy.failure import MissingModuleError, StartupError
from academy.scheduler.job import JobState
from tests.support.slurm.polling import until

# Workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class QuickProvider(LocalProvider):
    """Tells soon that a block has ended."""

    status_polling_interval = 1


def config(*labels: str, idle_timeout: float = 600.0) -> Config:
    """Return a configuration with a Parsl executor for each label."""
    return Config(
        executors=[
            HighThroughputExecutor(
                label=label,
                address="127.0.0.1",
                max_workers_per_node=1,
                cores_per_worker=1e-6,
                heartbeat_period=1,
                heartbeat_threshold=5,
                provider=QuickProvider(  # type: ignore[no-untyped-call]  # Parsl's
                    init_blocks=0
                ),
            )
            for label in labels or ("here",)
        ],
        strategy="simple",
        strategy_period=0.2,
        max_idletime=idle_timeout,
    )


def interchanges() -> set[psutil.Process]:
    """Return the processes that stand for the pools which run."""
    found = set()
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # It has just ended.
            if "interchange" in " ".join(process.cmdline()):
                found.add(process)
    return found


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A named pipe: tasks that read it run until `open_gate`, or the test's end."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    yield path
    open_gate(path)


def open_gate(path: Path) -> None:
    # Never waits for a reader, who then reads nothing to the end.
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def hold(gate: Path, started: Path) -> Any:
    """Say that the task runs, wait for the gate, and return the worker's GPUs."""
    started.write_text(str(os.getpid()))
    with open(gate) as reading:
        reading.read()
    return os.environ.get("CUDA_VISIBLE_DEVICES")


# --- several shapes


def test_two_shapes_have_workers_at_the_same_time_and_one_kernel(
    tmp_path: Path,
) -> None:
    with ParslExecutor(config(), run_dir=tmp_path / "run") as executor:
        usual = executor.submit(os.getppid)
        other = executor.submit(os.getppid, ranks_per_node=2)
        same = executor.submit(os.getppid, mpiprocs=2)
        assert usual.result() != other.result() == same.result()
        assert len(interchanges()) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000"]


def test_a_pool_without_tasks_ends_and_begins_again_when_needed(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    with ParslExecutor(config(idle_timeout=0.1), run_dir=run_dir) as executor:
        worker = psutil.Process(executor.submit(os.getpid, ranks_per_node=1).result())
        until(lambda: not interchanges(), "the end of the pool")
        until(lambda: not worker.is_running(), "the end of its workers")
        assert ".block-1" in executor.preview(ranks_per_node=1)
        assert executor.submit(abs, -1, ranks_per_node=1).result() == 1
    (pool,) = (run_dir / "000").glob("here-1r-*")
    assert {path.name for path in pool.glob("block-*")} == {"block-0", "block-1"}


def test_there_are_no_more_pools_than_allowed_and_idle_ones_make_room(
    gate: Path, tmp_path: Path
) -> None:
    with ParslExecutor(config(), max_pools=1) as executor:
        busy = executor.submit(hold, gate, tmp_path / "started", ranks_per_node=1)
        assert executor.preview(ranks_per_node=2)  # Looking costs nothing.
        with pytest.raises(ValueError, match=r"here-1r-\w+ \(ranks_per_node=1\)"):
            executor.validate(ranks_per_node=2)
        with pytest.raises(ValueError, match="which is max_pools"):
            executor.submit(abs, -1, ranks_per_node=2)
        assert executor.submit(abs, -1).result() == 1  # The usual blocks are no pool.
        until((tmp_path / "started").exists, "the first task")
        open_gate(gate)
        busy.result()
        assert executor.submit(abs, -2, ranks_per_node=2).result() == 2
        assert executor.submit(abs, -3, ranks_per_node=1).result() == 3
        until(lambda: len(interchanges()) == 2, "the end of the one that made room")


def test_a_label_that_is_shut_down_takes_its_pools_along() -> None:
    executors = ParslExecutor.from_config(config("a", "b"))
    for executor in executors.values():
        assert executor.submit(abs, -1, ranks_per_node=2).result() == 1
    executors["a"].shutdown()
    assert len(interchanges()) == 1
    assert executors["b"].submit(abs, -1, ranks_per_node=2).result() == 1
    executors["b"].shutdown()
    assert not interchanges()


# --- failures


def test_a_pool_that_fails_takes_its_own_tasks_along_and_no_others(
    gate: Path, tmp_path: Path
) -> None:
    mended, started = tmp_path / "mended", tmp_path / "started"
    broken = f"test -e {mended} || {{ echo no such module: cuda/99 >&2; exit 3; }}"
    with ParslExecutor(config()) as executor:
        spared = executor.submit(hold, gate, started, ranks_per_node=1)
        until(started.exists, "a task in another pool")
        lost = executor.submit(abs, -1, worker_init=broken)
        with pytest.raises(StartupError, match="no such module: cuda/99") as caught:
            lost.result()
        assert caught.value.job_id
        assert isinstance(caught.value.__cause__, BadStateException)
        assert not spared.done()
        mended.touch()
        assert executor.submit(abs, -1, worker_init=broken).result() == 1
        open_gate(gate)
        spared.result()


def test_a_module_that_is_missing_is_named() -> None:
    line = "python -c 'import no_such_module' || exit 1"
    with ParslExecutor(config()) as executor:
        lost = executor.submit(abs, -1, worker_init=line)
        with pytest.raises(MissingModuleError, match="no_such_module"):
            lost.result()


# --- jobs


def test_the_job_of_a_task_is_known(gate: Path, tmp_path: Path) -> None:
    with ParslExecutor(config()) as executor:
        running = executor.submit(hold, gate, tmp_path / "started", ranks_per_node=1)
        until((tmp_path / "started").exists, "the task")
        job = executor.job(running)
        assert job is not None
        assert (job.scheduler, job.state) == ("local", JobState.RUNNING)
        assert "Launching worker" in Path(job.stdout or "").read_text()
        open_gate(gate)


# --- GPUs


def test_each_worker_sees_its_own_share_of_the_gpus_that_the_job_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    shape = {"gpus_per_node": 4, "ranks_per_node": 2}
    gate, started = tmp_path / "gate", [tmp_path / "a", tmp_path / "b"]
    os.mkfifo(gate)
    with ParslExecutor(config()) as executor:
        futures = [executor.submit(hold, gate, file, **shape) for file in started]
        until(lambda: all(file.exists() for file in started), "both workers")
        open_gate(gate)
        assert {future.result() for future in futures} == {"4,5", "6,7"}
