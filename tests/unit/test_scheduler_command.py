"""How commands of schedulers are run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from academy.scheduler.command import SchedulerError, ask
from tests.support.commands import Commands
from tests.support.slurm import until


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def test_an_answer_is_status_output_and_errors(commands: Commands) -> None:
    commands.script("tool", 'cat; echo "$1" >&2; exit 3')
    answer = ask("tool", "a b; echo c", stdin="read me\n")
    assert (answer.status, answer.stdout, answer.stderr) == (
        3,
        "read me\n",
        "a b; echo c",
    )
    assert str(answer.error()) == "tool: status 3: a b; echo c"


def test_a_command_that_hangs_is_killed_with_what_it_has_started(
    commands: Commands, tmp_path: Path
) -> None:
    # Its child holds the pipes.
    commands.script("tool", f"sleep 614 & echo $! >{tmp_path}/pid; wait")
    before = time.monotonic()
    with pytest.raises(SchedulerError, match=r"no answer within 0\.5 s"):
        ask("tool", timeout=0.5)
    assert time.monotonic() - before < 60
    child = int((tmp_path / "pid").read_text())
    until(lambda: not lives(child), "the end of the child, which has been killed")


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_is_not_there_says_what_may_be_missing() -> None:
    with pytest.raises(SchedulerError, match=r"nosuch-command: .* on PATH"):
        ask("nosuch-command")


def test_commands_see_the_environment_without_what_changes_their_tables(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_FORMAT", "SLURM_TIME_FORMAT", "SACCT_FORMAT", "SINFO_FORMAT"):
        monkeypatch.setenv(name, "%i")
    monkeypatch.setenv("SLURM_CLUSTERS", "second")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    commands.script("tool", "env")
    seen = dict(line.partition("=")[::2] for line in ask("tool").stdout.splitlines())
    assert seen["SLURM_CLUSTERS"] == "second"
    assert seen["LC_ALL"] == "C"
    assert seen["HOME"] == os.environ["HOME"]
    assert not [name for name in seen if name.endswith("_FORMAT")]


def test_an_output_that_is_no_text_is_an_answer(commands: Commands) -> None:
    commands.script("tool", r"printf '\377ok'")
    assert ask("tool").stdout == "\ufffdok"
