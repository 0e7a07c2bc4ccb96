"""Jobs that are processes of this machine, as Parsl starts them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.local import Local
from tests.support.slurm import until


@pytest.fixture
def local() -> Local:
    return Local()


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    provider: Any = LocalProvider(launcher=SimpleLauncher())  # type: ignore[no-untyped-call]
    provider.script_dir = str(tmp_path)
    yield lambda command: str(provider.submit(command, 1, "agent"))
    Local().cancel(provider.resources)


def over(local: Local, job: str) -> JobInfo:
    def look() -> JobInfo | None:
        info = local.job(job)
        return info if info.state.is_over else None

    info = until(look, "the end of the process")
    assert info is not None
    return info


@pytest.mark.parametrize(
    ("script", "state", "code"),
    [("true", JobState.COMPLETED, 0), ("exit 3", JobState.FAILED, 3)],
)
def test_a_job_shows_its_output_while_it_runs_and_its_exit_code_after(
    local: Local,
    submit: Callable[[str], str],
    tmp_path: Path,
    script: str,
    state: JobState,
    code: int,
) -> None:
    go = tmp_path / "go"
    job = submit(f"echo hello; until [ -e {go} ]; do sleep 0.05; done; {script}")
    info = local.job(job)
    assert info.state is JobState.RUNNING
    assert info.started is not None
    assert info.stdout is not None
    assert info.nodes == (os.uname().nodename,)
    until(lambda: Path(info.stdout or "").read_text() == "hello\n", "its output")
    go.touch()
    ended = over(local, job)
    assert (ended.state, ended.exit_code) == (state, code)
    assert ended.stdout == info.stdout


def test_a_job_that_is_cancelled_ends_with_all_that_it_has_started(
    local: Local, submit: Callable[[str], str]
) -> None:
    job = submit("sleep 616 & wait")
    assert local.job(job).state is JobState.RUNNING
    local.cancel([job])
    info = over(local, job)
    assert (info.state, info.exit_code) == (JobState.CANCELLED, None)
    assert subprocess.run(["pgrep", "-f", "^sleep 616$"], check=False).returncode == 1
    local.cancel([job])  # It is over, which is no error.


def test_a_process_that_was_killed_alone_fails_its_job(
    local: Local, submit: Callable[[str], str], tmp_path: Path
) -> None:
    job = submit(f"echo $$ >{tmp_path}/pid; exec sleep 617")
    assert local.job(job).state is JobState.RUNNING
    pid = until(lambda: (tmp_path / "pid").exists() and _text(tmp_path / "pid"), "pid")
    os.kill(int(pid), signal.SIGKILL)
    info = over(local, job)
    assert (info.state, info.exit_code) == (JobState.FAILED, 128 + 9)


def _text(path: Path) -> str:
    return path.read_text().strip()


def test_a_process_that_nobody_saw_alive_is_over(local: Local) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        jobs = local.jobs([str(process.pid), "no-number"])
    assert jobs[str(process.pid)].state is JobState.COMPLETED
    assert jobs["no-number"].state is JobState.UNKNOWN


def test_a_process_whose_parent_did_not_look_is_over(local: Local) -> None:
    with subprocess.Popen(["sleep", "618"]) as process:
        job = str(process.pid)
        assert local.job(job).state is JobState.RUNNING
        process.kill()
        assert over(local, job).state is JobState.COMPLETED


def test_limits_of_this_machine_are_its_own(local: Local) -> None:
    limits = local.limits()
    assert limits is not None
    assert limits.cpus_per_node == os.cpu_count()
    assert limits.walltime is None
