"""What LSF says, which is not to be had here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from academy.scheduler.base import get_scheduler
from academy.scheduler.command import SchedulerError
from academy.scheduler.job import JobState
from tests.support.commands import Commands

LSF = get_scheduler("lsf")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def record(**fields: str) -> dict[str, str]:
    return {
        "JOBID": "12",
        "JOBINDEX": "0",
        "STAT": "RUN",
        "EXIT_CODE": "",
        "EXIT_REASON": "",
        "PEND_REASON": "",
        "EXEC_HOST": "42*h01n01:42*h01n02",
        "SUBMIT_TIME": "Nov 22 17:00",
        "START_TIME": "Nov 22 17:01",
        "FINISH_TIME": "Nov 22 18:01 L",
        "OUTPUT_FILE": "/home/me/agent.%J.out",
        "ERROR_FILE": "-",
    } | fields


def answer(commands: Commands, *records: dict[str, str]) -> None:
    said = {"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}
    commands.says("bjobs", json.dumps(said))


def test_a_job_that_runs_shows_where_since_when_and_until_when(
    commands: Commands,
) -> None:
    answer(commands, record())
    info = LSF.job("12")
    assert info.state is JobState.RUNNING
    assert info.nodes == ("h01n01", "h01n02")
    assert info.started is not None
    assert info.ends is not None
    assert (info.ends - info.started).total_seconds() == 3600
    assert info.stdout == "/home/me/agent.12.out"
    assert info.stderr is None


@pytest.mark.parametrize(
    ("fields", "state", "code"),
    [
        ({"STAT": "DONE"}, JobState.COMPLETED, 0),
        ({"STAT": "EXIT", "EXIT_CODE": "3"}, JobState.FAILED, 3),
        (
            {
                "STAT": "EXIT",
                "EXIT_CODE": "140",
                "EXIT_REASON": "TERM_RUNLIMIT: job killed after reaching LSF run time "
                "limit",
            },
            *(JobState.TIMEOUT, 140),
        ),
        (
            {"STAT": "EXIT", "EXIT_REASON": "TERM_MEMLIMIT: job killed after reaching"},
            *(JobState.OUT_OF_MEMORY, None),
        ),
        (
            {"STAT": "EXIT", "EXIT_REASON": "TERM_OWNER: job killed by owner"},
            *(JobState.CANCELLED, None),
        ),
        (
            {
                "STAT": "EXIT",
                "EXIT_REASON": "TERM_PREEMPT: job killed after preemption",
            },
            *(JobState.PREEMPTED, None),
        ),
        ({"STAT": "PEND", "EXEC_HOST": ""}, JobState.PENDING, None),
        ({"STAT": "UNKWN"}, JobState.UNKNOWN, None),
    ],
)
def test_the_end_of_a_job_is_told_from_its_termination_reason(
    commands: Commands, fields: dict[str, str], state: JobState, code: int | None
) -> None:
    answer(commands, record(**fields))
    info = LSF.job("12")
    assert (info.state, info.exit_code) == (state, code)
    assert info.reason == fields.get("EXIT_REASON", "")


def test_known_and_unknown_jobs_and_arrays_are_one_question(commands: Commands) -> None:
    answer(
        commands,
        record(),
        record(JOBID="13", JOBINDEX="2", STAT="PEND", PEND_REASON="Load is high;"),
        {"JOBID": "99", "ERROR": "Job <99> is not found"},
    )
    found = LSF.jobs(["12", "13[2]", "99"])
    assert found["12"].state is JobState.RUNNING
    assert (found["13[2]"].state, found["13[2]"].reason) == (
        JobState.PENDING,
        "Load is high",
    )
    assert found["99"].state is JobState.UNKNOWN
    [call] = commands.calls("bjobs")
    assert call.startswith("-a -o jobid ")
    assert call.endswith("-json 12 13[2] 99")


def test_an_lsf_that_does_not_answer_is_an_error_in_its_own_words(
    commands: Commands,
) -> None:
    commands.says("bjobs", stderr="Failed in an LSF library call", status=255)
    with pytest.raises(SchedulerError, match="Failed in an LSF library call"):
        LSF.job("12")


def test_jobs_that_are_over_are_not_cancelled_again(commands: Commands) -> None:
    commands.says("bkill", stderr="Job <12>: Job has already finished\n", status=255)
    LSF.cancel(["12"])
    commands.says("bkill", stderr="Job <12>: Permission denied\n", status=255)
    with pytest.raises(SchedulerError, match="Permission denied"):
        LSF.cancel(["12"])
