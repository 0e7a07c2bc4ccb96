"""What PBS and Torque say, which are not to be had here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobInfo, JobState
from tests.support.commands import Commands

PBS, Torque = get_scheduler("pbs"), get_scheduler("torque")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


# As `qstat -x -f -F json` of OpenPBS writes them.
RUNNING = {
    "Job_Name": "agent",
    "Job_Owner": "me@login1",
    "resources_used": {"cput": "00:00:00", "mem": "5000kb", "walltime": "00:00:42"},
    "job_state": "R",
    "queue": "workq",
    "server": "pbs01",
    "ctime": "Sun Nov 22 17:00:00 2026",
    "Error_Path": "login1.hpc.org:/home/me/agent.e12",
    "exec_host": "x1000c0s0b0n0/0*64+x1000c0s1b0n0/0*64",
    "exec_vnode": "(x1000c0s0b0n0:ncpus=64)+(x1000c0s1b0n0:ncpus=64)",
    "Output_Path": "login1.hpc.org:/home/me/agent.o12",
    "qtime": "Sun Nov 22 17:00:00 2026",
    "Resource_List": {"nodect": 2, "select": "2:ncpus=64", "walltime": "01:00:00"},
    "stime": "Sun Nov 22 17:01:00 2026",
    "substate": 42,
    "comment": "Job run at Sun Nov 22 at 17:01 on (x1000c0s0b0n0:ncpus=64)",
}


def as_json(**jobs: dict[str, Any]) -> str:
    named = {f"{name[1:]}.pbs01": job for name, job in jobs.items()}
    return json.dumps({"timestamp": 1, "pbs_server": "pbs01", "Jobs": named})


def ended(**attributes: Any) -> dict[str, Any]:
    return RUNNING | {"job_state": "F", "substate": 93} | attributes


def test_a_job_that_runs_shows_where_since_when_and_until_when(
    commands: Commands,
) -> None:
    commands.says("qstat", as_json(j12=RUNNING))
    info = PBS.job("12.pbs01")
    assert info.state is JobState.RUNNING
    assert info.nodes == ("x1000c0s0b0n0", "x1000c0s1b0n0")
    assert info.started is not None
    assert info.ends is not None
    assert (info.ends - info.started).total_seconds() == 3600
    assert info.stdout == "/home/me/agent.o12"
    assert info.stderr == "/home/me/agent.e12"
    assert commands.calls("qstat") == ["-x -f -F json 12.pbs01"]


@pytest.mark.parametrize(
    ("attributes", "state", "code"),
    [
        ({"Exit_status": 0, "substate": 92}, JobState.COMPLETED, 0),
        ({"Exit_status": 3}, JobState.FAILED, 3),
        ({"Exit_status": 256 + 11}, JobState.FAILED, 128 + 11),
        ({"Exit_status": 271, "substate": 91}, JobState.CANCELLED, 143),
        ({"substate": 91, "stime": ""}, JobState.CANCELLED, None),
        ({"Exit_status": -29}, JobState.TIMEOUT, None),
        ({"Exit_status": -27}, JobState.OUT_OF_MEMORY, None),
        ({"Exit_status": -26}, JobState.OUT_OF_MEMORY, None),
        ({"Exit_status": -20}, JobState.NODE_FAIL, None),
        ({"Exit_status": -17}, JobState.FAILED, None),
        ({"job_state": "Q"}, JobState.PENDING, None),
        ({"job_state": "H"}, JobState.PENDING, None),
        ({"job_state": "E"}, JobState.RUNNING, None),
        ({"job_state": "?"}, JobState.UNKNOWN, None),
    ],
)
def test_the_end_of_a_job_is_told_from_its_status(
    commands: Commands, attributes: dict[str, Any], state: JobState, code: int | None
) -> None:
    commands.says("qstat", as_json(j12=ended(**attributes)))
    info = PBS.job("12.pbs01")
    assert (info.state, info.exit_code) == (state, code)


def test_known_and_unknown_jobs_are_one_question(commands: Commands) -> None:
    commands.says(
        "qstat",
        as_json(j12=RUNNING, j14=ended(Exit_status=0)),
        stderr="qstat: Unknown Job Id 13.pbs01\n",
        status=153,
    )
    # The server may write its name in another way than it did when submitting.
    found = PBS.jobs(["12.pbs01.hpc.org", "13.pbs01", "14"])
    states = [info.state for info in found.values()]
    assert states == [JobState.RUNNING, JobState.UNKNOWN, JobState.COMPLETED]
    assert found["12.pbs01.hpc.org"].job_id == "12.pbs01.hpc.org"
    assert len(commands.calls("qstat")) == 1


def test_no_job_that_is_known_is_no_error(commands: Commands) -> None:
    commands.says("qstat", stderr="qstat: Unknown Job Id 13.pbs01\n", status=153)
    assert PBS.job("13.pbs01").state is JobState.UNKNOWN


TEXT = """\
Job Id: 12.pbs01
    Job_Name = agent
    resources_used.walltime = 00:00:42
    job_state = R
    ctime = Sun Nov 22 17:00:00 2026
    exec_host = x1000c0s0b0n0/0*64+x1000c
\t0s1b0n0/0*64
    Resource_List.walltime = 01:00:00
    stime = Sun Nov 22 17:01:00 2026
    Output_Path = login1.hpc.org:/home/me/agent.o12
    Variable_List = PS1=\\[\\e[1m"x",PBS_O_HOME=/home/me
"""


def test_what_is_said_to_be_json_and_is_not_is_read_as_text(commands: Commands) -> None:
    (commands.directory / "text").write_text(TEXT)
    commands.script(
        "qstat",
        f'case "$*" in *json*) echo \'{{"Jobs":{{"12.pbs01":{{"PS1":"\\["}}}}}}\';;'
        f" *) cat {commands.directory}/text;; esac",
    )
    info = PBS.job("12.pbs01")
    assert info.state is JobState.RUNNING
    assert info.nodes == ("x1000c0s0b0n0", "x1000c0s1b0n0")
    assert info.stdout == "/home/me/agent.o12"
    assert info.ends is not None
    assert info.started is not None
    assert (info.ends - info.started).total_seconds() == 3600


def test_a_server_without_history_is_asked_about_its_queue(commands: Commands) -> None:
    (commands.directory / "json").write_text(as_json(j12=RUNNING))
    commands.script(
        "qstat",
        'case "$*" in *-x*) echo "qstat: PBS is not configured to maintain job'
        f' history" >&2; exit 36;; *) cat {commands.directory}/json;; esac',
    )
    assert PBS.job("12.pbs01").state is JobState.RUNNING


@pytest.mark.parametrize(
    ("comment", "hopeless"),
    [
        (
            "Can Never Run: Insufficient amount of resource: ngpus (R: 9 A: 4 T: 4)",
            True,
        ),
        ("job held, too many failed attempts to run", True),
        ("Not Running: Insufficient amount of resource: ncpus", False),
        ("Not Running: Queue workq per-user limit reached on resource ncpus", False),
    ],
)
def test_what_the_scheduler_never_will_start_is_told_from_its_comment(
    comment: str, hopeless: bool
) -> None:
    assert PBS.hopeless(comment) is hopeless


def test_jobs_that_are_over_are_not_cancelled_again(commands: Commands) -> None:
    commands.says("qdel", stderr="qdel: Job has finished 12.pbs01", status=35)
    PBS.cancel(["12.pbs01"])
    assert commands.calls("qdel") == ["12.pbs01"]


# --- Torque

TORQUE = """\
Job Id: 12.torque
    Job_Name = agent
    resources_used.walltime = 00:00:42
    job_state = {state}
    queue = batch
    ctime = Sun Nov 22 17:00:00 2026
    Error_Path = login1:/home/me/agent.e12
    exec_host = node1/0-7+node2/0-7
    Output_Path = login1:/home/me/agent.o12
    Resource_List.nodes = 2:ppn=8
    Resource_List.walltime = 01:00:00
    start_time = Sun Nov 22 17:01:00 2026
    {more}

"""


def torque(commands: Commands, state: str, more: str = "") -> JobInfo:
    commands.says("qstat", TORQUE.format(state=state, more=more))
    return Torque.job("12.torque")


def test_a_job_of_torque_shows_the_same(commands: Commands) -> None:
    info = torque(commands, "R")
    assert (info.scheduler, info.state) == ("torque", JobState.RUNNING)
    assert info.nodes == ("node1", "node2")
    assert info.ends is not None
    assert info.started is not None
    assert (info.ends - info.started).total_seconds() == 3600
    assert info.stdout == "/home/me/agent.o12"
    assert commands.calls("qstat") == ["-f 12.torque"]


@pytest.mark.parametrize(
    ("status", "state", "code"),
    [
        (0, JobState.COMPLETED, 0),
        (3, JobState.FAILED, 3),
        (-10, JobState.OUT_OF_MEMORY, None),
        (-11, JobState.TIMEOUT, None),
        (-2, JobState.FAILED, None),
        (271, JobState.CANCELLED, 143),
        (267, JobState.FAILED, 139),
    ],
)
def test_the_end_of_a_job_of_torque_is_told_from_its_status(
    commands: Commands, status: int, state: JobState, code: int | None
) -> None:
    info = torque(commands, "C", f"exit_status = {status}")
    assert (info.state, info.exit_code) == (state, code)


def test_limits_of_torque_are_those_of_the_queue(commands: Commands) -> None:
    commands.says(
        "qstat",
        "Queue: batch\n    queue_type = Execution\n"
        "    resources_max.nodect = 10\n    resources_max.walltime = 24:00:00\n",
    )
    limits = Torque.limits("batch")
    assert limits is not None
    assert (limits.nodes, limits.walltime) == (10, 86_400)
