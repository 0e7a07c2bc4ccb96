"""What a Grid Engine 8.1.9 said when it was asked, word by word."""

from __future__ import annotations

from pathlib import Path

import pytest

from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobInfo, JobState
from tests.support.commands import Commands

GridEngine = get_scheduler("grid_engine")

QUEUE = """\
<?xml version='1.0'?>
<job_info  xmlns:xsd="http://arc.liv.ac.uk/repos/darcs/sge/source/dist/util/resources/schemas/qstat/qstat.xsd">
  <queue_info>
    <job_list state="running">
      <JB_job_number>4</JB_job_number>
      <JAT_prio>0.50000</JAT_prio>
      <JB_name>sleep</JB_name>
      <JB_owner>root</JB_owner>
      <state>r</state>
      <JAT_start_time>2026-11-22T17:46:05</JAT_start_time>
      <queue_name>all.q@node1</queue_name>
      <slots>1</slots>
    </job_list>
    <job_list state="running">
      <JB_job_number>5</JB_job_number>
      <state>t</state>
      <JAT_start_time>2026-11-22T17:46:05</JAT_start_time>
      <queue_name>all.q@node2</queue_name>
      <slots>1</slots>
      <tasks>3</tasks>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>7</JB_job_number>
      <JAT_prio>0.75000</JAT_prio>
      <JB_name>sleep</JB_name>
      <JB_owner>root</JB_owner>
      <state>Eqw</state>
      <JB_submission_time>2026-11-22T17:46:05</JB_submission_time>
      <queue_name></queue_name>
      <slots>1</slots>
    </job_list>
    <job_list state="pending">
      <JB_job_number>8</JB_job_number>
      <state>hqw</state>
      <JB_submission_time>2026-11-22T17:46:05</JB_submission_time>
      <queue_name></queue_name>
      <slots>1</slots>
    </job_list>
  </job_info>
</job_info>
"""

RECORD = """\
==============================================================
qname        all.q
hostname     node1
owner        root
jobname      sleep
jobnumber    3
taskid       undefined
qsub_time    {submitted}
start_time   {started}
end_time     Sun Nov 22 17:46:08 2026
slots        1
failed       {failed}
exit_status  {code}
ru_wallclock 3s
maxvmem      1.754MB
{more}
"""
AT = "Sun Nov 22 17:46:05 2026"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands(tmp_path / "bin", monkeypatch)
    found.says("qstat", QUEUE)
    found.says("qacct", stderr="error: job id 999 not found\n", status=1)
    return found


def accounted(
    commands: Commands,
    failed: str,
    code: str,
    more: str = "category     NONE",
    submitted: str = AT,
    started: str = AT,
) -> JobInfo:
    record = RECORD.format(
        failed=failed, code=code, more=more, submitted=submitted, started=started
    )
    commands.says("qacct", record)
    return GridEngine.job("3")


def test_jobs_in_the_queue_are_one_question(commands: Commands) -> None:
    found = GridEngine.jobs(["4", "5.3", "7", "8"])
    assert [info.state for info in found.values()] == [
        JobState.RUNNING,
        JobState.RUNNING,
        JobState.PENDING,
        JobState.PENDING,
    ]
    assert found["4"].nodes == ("node1",)
    assert found["4"].started is not None
    assert found["5.3"].nodes == ("node2",)
    assert found["7"].submitted is not None
    assert len(commands.calls("qstat")) == 1
    assert commands.calls("qacct") == []


def test_a_job_in_an_error_state_will_never_run(commands: Commands) -> None:
    found = GridEngine.jobs(["7", "8"])
    assert GridEngine.hopeless(found["7"].reason)
    assert not GridEngine.hopeless(found["8"].reason)


@pytest.mark.parametrize(
    ("failed", "code", "more", "state"),
    [
        ("0    ", "0                   ", "category     NONE", JobState.COMPLETED),
        ("0    ", "3                   ", "category     NONE", JobState.FAILED),
        (
            "37  : qmaster enforced h_rt, h_cpu, or h_vmem limit",
            "137                  (Killed)",
            "category     -l h_rt=2",
            JobState.TIMEOUT,
        ),
        (
            "100 : assumedly after job",
            "137                  (Killed)",
            "category     NONE",
            JobState.FAILED,
        ),
        (
            "100 : assumedly after job",
            "137",
            "deleted_by   me@login1",
            JobState.CANCELLED,
        ),
        ("26  : opening input/output file", "0", "category     NONE", JobState.FAILED),
    ],
)
def test_the_end_of_a_job_is_told_from_its_account(
    commands: Commands, failed: str, code: str, more: str, state: JobState
) -> None:
    info = accounted(commands, failed, code, more)
    assert info.state is state
    assert info.exit_code == int(code.split()[0])
    assert info.nodes == ("node1",)
    assert info.started is not None
    assert info.ends is not None


def test_newer_makes_write_times_in_another_way(commands: Commands) -> None:
    info = accounted(
        commands, "0", "0", submitted="11/22/2026 17:46:05.123", started="-/-"
    )
    assert info.submitted is not None
    assert f"{info.submitted:%d %b %H:%M}" == "22 Nov 17:46"
    assert info.started is None


def test_a_job_that_ran_twice_ended_as_the_last_time(commands: Commands) -> None:
    records = [
        RECORD.format(failed="0", code=code, more="", submitted=AT, started=AT)
        for code in (99, 0)
    ]
    commands.says("qacct", "".join(records))
    assert GridEngine.job("3").exit_code == 0


def test_a_task_of_an_array_is_asked_for_by_its_number(commands: Commands) -> None:
    assert GridEngine.job("9.2").state is JobState.UNKNOWN
    assert commands.calls("qacct") == ["-j 9 -t 2"]


def test_jobs_that_are_over_are_not_cancelled_again(commands: Commands) -> None:
    commands.says("qdel", stdout='denied: job "1" does not exist\n', status=1)
    GridEngine.cancel(["1", "2"])
    assert commands.calls("qdel") == ["1,2"]
