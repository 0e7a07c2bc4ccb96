"""What Slurm says that a cluster of tests cannot be brought to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from academy.scheduler.base import get_scheduler
from academy.scheduler.command import SchedulerError
from academy.scheduler.job import JobState
from tests.support.commands import Commands

Scheduler = get_scheduler("slurm")

# With slurmdbd; "Unknown" and "None assigned" are Slurm's.
ACCOUNTS = """\
12|12|OUT_OF_MEMORY|n[1-2]|2026-11-22T17:00:00|2026-11-22T17:01:00|2026-11-22T17:02:00|0:125
13|13|CANCELLED by 0|None assigned|2026-11-22T17:00:00|Unknown|2026-11-22T17:02:00|0:0
14_3|17|TIMEOUT|n3|2026-11-22T17:00:00|2026-11-22T17:01:00|2026-11-22T17:02:00|0:15
15|15|NODE_FAIL|n3|2026-11-22T17:00:00|2026-11-22T17:01:00|2026-11-22T17:02:00|1:0
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def test_ended_jobs_come_from_the_accounts_in_one_question(commands: Commands) -> None:
    commands.says("squeue")
    commands.says("sacct", ACCOUNTS)
    ids = ["12", "13", "14_3", "15", "16"]
    found = Scheduler.jobs(ids)
    assert list(found) == ids
    states = [found[job].state for job in ids]
    assert states == [
        JobState.OUT_OF_MEMORY,
        JobState.CANCELLED,
        JobState.TIMEOUT,
        JobState.NODE_FAIL,
        JobState.UNKNOWN,
    ]
    assert found["12"].nodes == ("n1", "n2")
    assert found["13"].reason == "cancelled by root"
    assert found["13"].nodes == ()
    assert found["13"].started is None
    assert found["14_3"].exit_code == 128 + 15
    assert len(commands.calls("sacct")) == 1
    assert "12,13,14_3,15,16" in commands.calls("sacct")[0]


def test_without_a_database_accounts_come_from_the_completion_log(
    commands: Commands,
) -> None:
    commands.says("squeue")
    commands.script(
        "sacct",
        'case "$*" in *--completion*) echo "12|12|FAILED|n1|x|x|x|3:0";;'
        ' *) echo "Slurm accounting storage is disabled" >&2; exit 1;; esac',
    )
    info = Scheduler.job("12")
    assert (info.state, info.exit_code) == (JobState.FAILED, 3)


def test_a_slurm_that_does_not_answer_is_an_error_in_its_own_words(
    commands: Commands,
) -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller"
    commands.says("squeue", stderr=words, status=1)
    with pytest.raises(SchedulerError, match=f"squeue: status 1: {words}"):
        Scheduler.jobs(["12"])


def test_asking_about_nothing_asks_nobody(commands: Commands) -> None:
    commands.says("squeue", status=1)
    commands.says("scancel", status=1)
    assert Scheduler.jobs([]) == {}
    Scheduler.cancel([])
    assert commands.calls("squeue") == commands.calls("scancel") == []


@pytest.mark.parametrize(
    ("shown", "state", "reason"),
    [
        ("None", JobState.RUNNING, "COMPLETING"),
        ("TimeLimit", JobState.TIMEOUT, "TimeLimit"),
        # It may be queued again.
        ("NodeDown", JobState.RUNNING, "COMPLETING NodeDown"),
    ],
)
def test_a_job_whose_processes_are_being_ended_says_so(
    commands: Commands, shown: str, state: JobState, reason: str
) -> None:
    times = ["2026-11-22T17:00:00"] * 3
    files = ["agent", "me", "/dev/null", "/dev/null"]
    values = ["12", "12", "COMPLETING", "n1", *times, "0", *files, shown, "\n"]
    commands.says("squeue", "\x1f".join(values))
    info = Scheduler.job("12")
    assert (info.state, info.reason, info.exit_code) == (state, reason, None)


@pytest.mark.parametrize(
    "reason",
    [
        *("BadConstraints", "PartitionTimeLimit", "PartitionNodeLimit", "InvalidQOS"),
        *("DependencyNeverSatisfied", "JobHeldAdmin", "launch failed requeued held"),
        *("AssocMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "QOSMinGRES"),
        *("QOSMaxGRESPerNode", "(InvalidAccount)", "ReservationDeleted"),
    ],
)
def test_what_no_time_will_change_is_hopeless(reason: str) -> None:
    assert Scheduler.hopeless(reason)


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "",
            "None",
            "Priority",
            "Resources",
            "BeginTime",
            "Dependency",
            "JobHeldUser",
        ),
        *("ReqNodeNotAvail, UnavailableNodes:n2", "QOSMaxJobsPerUserLimit", "Licenses"),
        *("AssocGrpCpuLimit", "QOSMaxGRESPerUser", "AssocMaxJobsLimit", "Reservation"),
        *("MaxCpuPerAccount", "PartitionDown", "JobArrayTaskLimit"),
    ],
)
def test_what_ends_by_itself_is_not_hopeless(reason: str) -> None:
    assert not Scheduler.hopeless(reason)


SINFO = """\
gpu*|2-00:00:00|10|1-4|128|515000|gpu:a100:4(S:0-3)
gpu*|2-00:00:00|2|1-4|256+|1031000+|gpu:a100:8(S:0-7),nic:2
cpu|infinite|500|1-infinite|64|257000|(null)
"""


def test_kinds_of_nodes_of_one_partition_are_put_together(commands: Commands) -> None:
    commands.says("sinfo", SINFO)
    limits = Scheduler.limits()
    assert limits is not None
    assert (limits.queue, limits.walltime, limits.nodes) == ("gpu", 172_800, 4)
    assert (limits.cpus_per_node, limits.gpus_per_node) == (256, 8)
    limits = Scheduler.limits("cpu")
    assert limits is not None
    assert (limits.walltime, limits.nodes, limits.gpus_per_node) == (None, 500, 0)


def test_a_scheduler_of_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no scheduler 'slrm'\. Did you mean 'slurm'"):
        get_scheduler("slrm")
