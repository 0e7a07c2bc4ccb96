"""Batch jobs on this machine: what is asked for, written down, listed and found."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider
from typer.testing import CliRunner

from academy.cli import jobs
from academy.cli.app import app
from academy.executors.batch import BatchExecutor, ListedTask
from academy.executors.batch.listing import list_tasks
from academy.executors.batch.records import RECORD, JobDirectory, JobRecord, Task
from academy.failure import AgentLostError, JobCancelledError, JobFailedError
from academy.scheduler.job import JobInfo, JobState
from tests.support.slurm import until

CONFIG = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider, PBSProProvider

config = Config(executors=[
    HighThroughputExecutor(label="cpu", address="127.0.0.1", provider=LocalProvider()),
    HighThroughputExecutor(
        label="gpu", address="127.0.0.1", provider=PBSProProvider(queue="gpu")
    ),
])
"""


@pytest.fixture
def executor() -> Iterator[BatchExecutor]:
    with BatchExecutor("local") as executor:
        yield executor


# --- what is asked for


def test_a_provider_is_named_given_or_read_from_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(CONFIG)
    for provider, label, scheduler in (
        ("slurm", None, "slurm"),
        ("pbs", None, "pbs"),
        ("torque", None, "torque"),
        ("lsf", None, "lsf"),
        ("grid_engine", None, "grid_engine"),
        (LocalProvider(), None, "local"),
        (SlurmProvider(partition="debug"), None, "slurm"),
        (tmp_path / "config.py", "cpu", "local"),
        (str(tmp_path / "config.py"), "gpu", "pbs"),
    ):
        executor = BatchExecutor(provider, label=label)
        assert executor.scheduler == scheduler
        assert executor.max_workers is None
        assert "academy.run --spec" in executor.preview()
        executor.shutdown()


def test_what_is_no_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'slurm'"):
        BatchExecutor("slrum")
    with pytest.raises(ValueError, match="no provider of Parsl"):
        BatchExecutor(7)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nothing\.py"):
        BatchExecutor(tmp_path / "nothing.py")
    (tmp_path / "config.py").write_text(CONFIG)
    with pytest.raises(ValueError, match="'gpu'"):
        BatchExecutor(tmp_path / "config.py", label="gpuu")


def test_a_provider_of_the_user_s_is_not_changed() -> None:
    provider = PBSProProvider(worker_init="module load conda", queue="gpu")
    before = repr(provider)
    executor = BatchExecutor(provider, resources={"queue": "debug"})
    assert "module load conda" in executor.preview(worker_init="conda activate env")
    assert repr(provider) == before


def test_a_launch_asks_for_more_than_the_defaults() -> None:
    resources = {"nodes": 2, "walltime": "01:00:00", "worker_init": "one"}
    executor = BatchExecutor("slurm", resources=resources)
    lines = executor.preview(num_nodes=3, worker_init="two").splitlines()
    assert "#SBATCH --nodes=3" in lines
    assert "#SBATCH --time=60" in lines
    assert lines.index("one") < lines.index("two")


def test_what_nobody_knows_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'nodes'"):
        BatchExecutor("slurm", resources={"nodez": 2})
    executor = BatchExecutor("slurm")
    for refused in (executor.validate, executor.preview):
        with pytest.raises(ValueError, match=r"Did you mean 'walltime'"):
            refused(waltime=5)
    with pytest.raises(ValueError, match=r"Did you mean 'walltime'"):
        executor.submit(os.getpid, waltime=5)
    assert not executor.directory.exists()


def test_a_preview_is_the_script_to_the_byte(executor: BatchExecutor) -> None:
    preview = executor.preview(worker_init="export COLOUR=green")
    future = executor.submit(os.getenv, "COLOUR", worker_init="export COLOUR=green")
    assert future.result() == "green"
    [task] = executor.jobs()
    scripts = [path.read_text() for path in task.directory.iterdir() if is_script(path)]
    assert scripts == [preview]


def is_script(path: Path) -> bool:
    return path.name.startswith("academy-") and path.suffix in ("", ".sh")


def test_agents_that_share_a_job_have_parts_of_this_machine() -> None:
    asked = {"ranks_per_node": 2, "gpus_per_node": 4}
    executor = BatchExecutor("local", share_job=True)
    with pytest.raises(ValueError, match="gpus_per_node"):
        executor.validate(**asked)
    calls = [("CUDA_VISIBLE_DEVICES",), ("PATH",)]
    futures = executor.submit_together(os.getenv, calls, ranks_per_node=2)
    assert [bool(future.result()) for future in futures] == [False, True]
    one, other = executor.jobs()
    assert one.job.job_id == other.job.job_id
    with pytest.raises(ValueError, match="3 agents"):
        executor.submit_together(os.getenv, [*calls, ("HOME",)], ranks_per_node=2)
    executor.shutdown()


# --- what is written down


def test_a_job_is_listed_with_all_that_is_known(executor: BatchExecutor) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=2)
    future = executor.submit(print, "hello")
    future.result()
    [task] = executor.jobs()
    job = executor.job(future)
    assert job is not None
    assert job.job_id == task.job.job_id
    assert (task.name, task.agent_id) == ("", "")
    assert task.state is JobState.COMPLETED
    assert task.job.started is not None
    assert begun < task.job.started < datetime.now(UTC)
    assert task.job.nodes == (os.uname().nodename,)
    assert task.job.stdout is not None
    assert Path(task.job.stdout).read_text() == "hello\n"
    assert stat.S_IMODE((task.directory / RECORD).stat().st_mode) == 0o600
    assert stat.S_IMODE(task.directory.stat().st_mode) == 0o700


def test_jobs_of_other_programs_are_listed_and_attached_to(
    executor: BatchExecutor,
) -> None:
    ended = executor.submit(int, "seven")
    assert ended.exception() is not None
    going = executor.submit(time.sleep, 600)
    until(going.running, "the task to run")
    with BatchExecutor("local") as other:
        states = {task.id: task.state for task in other.jobs()}
        assert list(states.values()) == [JobState.FAILED, JobState.RUNNING]
        [(name, future)] = other.attach().items()
        assert states[name] is JobState.RUNNING
        for task in other.attach(states).values():
            assert task is future or isinstance(task.exception(), ValueError)
        with pytest.raises(ValueError, match="no task 'nosuch'"):
            other.attach(["nosuch"])
        assert other.cancel(future)
        assert isinstance(future.exception(), AgentLostError)
    assert isinstance(going.exception(), AgentLostError)
    with pytest.raises(RuntimeError, match="shut down"):
        other.attach()


def test_ended_jobs_are_kept_for_a_week_and_not_too_many() -> None:
    directory = JobDirectory()
    end = JobInfo("local", "1", JobState.COMPLETED)
    for number in range(30):
        path = directory.new(f"academy-{number}")
        when = datetime.now(UTC) - timedelta(hours=12 * number)
        task = Task(path.name, path)
        # One of them may still run, as far as anybody knows.
        ended = None if number == 20 else end
        JobRecord(
            path.name, path, "local", "academy", (task,), "1", when, ended
        ).write()
        os.utime(path / RECORD, (when.timestamp(), when.timestamp()))
    directory.prune()
    assert numbers(directory) == {*range(14), 20}
    directory.prune(kept_jobs=3)
    assert numbers(directory) == {0, 1, 2, 20}


def numbers(directory: JobDirectory) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in directory.path.iterdir()}


def test_a_record_that_cannot_be_read_is_left_alone(
    executor: BatchExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    path = JobDirectory().new("academy-1")
    (path / RECORD).write_text("{}")
    assert executor.jobs() == []
    assert str(path) in caplog.text
    assert path.exists()


# --- ends


def test_what_a_killed_process_printed_last_is_told(executor: BatchExecutor) -> None:
    command = "import os, sys; print('The end.', file=sys.stderr); os._exit(9)"
    future = executor.submit(exec, command)
    error = future.exception()
    assert isinstance(error, JobFailedError)
    assert error.output == "The end."
    assert error.host == os.uname().nodename


def test_a_job_whose_files_somebody_removed_is_lost_and_ended(
    executor: BatchExecutor,
) -> None:
    future = executor.submit(time.sleep, 600)
    until(future.running, "the task to run")
    [task] = executor.jobs()
    shutil.rmtree(task.directory)
    assert "was removed" in str(future.exception())
    assert executor.job(future) is not None


def test_all_futures_are_done_when_many_end_at_once(executor: BatchExecutor) -> None:
    futures = [executor.submit(pow, 2, n) for n in range(8)]
    futures += [executor.submit(time.sleep, 600) for _ in range(2)]
    assert [future.result() for future in futures[:8]] == [2**n for n in range(8)]
    until(lambda: all(f.running() for f in futures[8:]), "the others to run")
    executor.shutdown(cancel_futures=True)
    assert not wait(futures).not_done
    assert all(isinstance(f.exception(), JobCancelledError) for f in futures[8:])


# --- the command


def academy(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_the_command_lists_and_cancels(executor: BatchExecutor) -> None:
    future = executor.submit(time.sleep, 600)
    until(future.running, "the task to run")
    [shown] = json.loads(academy("ps", "--json").stdout)
    table = academy("ps").stdout
    for word in (shown["id"], shown["job_id"], "RUNNING", *shown["nodes"]):
        assert re.search(rf"\b{re.escape(word)}\b", table), table
    done = academy("cancel", shown["id"])
    assert done.stdout == f"Cancelled local job {shown['job_id']}\n"
    assert isinstance(future.exception(), AgentLostError)
    assert json.loads(academy("ps", "--json").stdout) == []
    [again] = json.loads(academy("ps", "--all", "--json").stdout)
    assert again["id"] == shown["id"]


def test_a_job_that_ended_well_without_an_outcome_was_no_success(
    tmp_path: Path,
) -> None:
    path = JobDirectory(tmp_path).new("job-1")
    end = JobInfo("local", "1", JobState.COMPLETED, "the process has ended")
    task = Task(path.name, path)
    JobRecord(path.name, path, "local", "academy", (task,), "1", end=end).write()
    [shown] = list_tasks(JobDirectory(tmp_path))
    assert shown.state is JobState.FAILED


def test_a_job_whose_time_is_over_has_none_left() -> None:
    now = datetime.now(UTC)
    job = JobInfo(
        *("slurm", "1", JobState.RUNNING, "COMPLETING"),
        started=now - timedelta(minutes=2),
        ends=now - timedelta(seconds=2),
    )
    table = jobs._table([ListedTask("job-1", "", "", job, Path())], now)
    left = next(column for column in table.columns if column.header == "LEFT")
    assert list(left.cells) == ["0:00:00"]


def test_the_command_says_what_it_does_not_find(tmp_path: Path) -> None:
    done = academy("cancel", "nosuch", "--directory", str(tmp_path))
    assert done.exit_code == 1
    assert f"There is no job 'nosuch' in {tmp_path}" in str(done.exception)
