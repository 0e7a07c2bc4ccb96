"""How many jobs are followed with few questions; commands here are made up."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.monitor import JobMonitor, monitor
from tests.support.commands import Commands
from tests.support.slurm import until

FIELDS = 13
SEPARATOR = "\x1f"


class Queue(Commands):
    """A Slurm whose jobs are what a test says."""

    def show(self, **jobs: str) -> None:
        """Have squeue show jobs, named j1 and so on, in these states and no others."""
        lines = []
        for name, state in jobs.items():
            number = name[1:]
            values = [number, number, state, "n1", *["2026-11-22T17:00:00"] * 3, "0"]
            values += ["agent", "me", f"/out/{number}", f"/out/{number}", "None"]
            assert len(values) == FIELDS
            lines.append(SEPARATOR.join([*values, "\n"]))
        self.says("squeue", "".join(lines))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    found = Queue(tmp_path / "bin", monkeypatch)
    found.says("sacct", stderr="Slurm accounting storage is disabled", status=1)
    return found


@pytest.fixture
def quick() -> Iterator[JobMonitor]:
    monitor = JobMonitor(first=0.05, longest=0.2)
    yield monitor
    monitor.close()


class Told:
    """Keeps what a monitor calls back with."""

    def __init__(self) -> None:
        self._told: queue.Queue[JobInfo] = queue.Queue()

    def __call__(self, info: JobInfo) -> None:
        self._told.put(info)

    def next(self) -> JobInfo:
        return self._told.get(timeout=30)

    def nothing(self) -> bool:
        return self._told.empty()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "academy-jobs"]


def test_changes_are_told_until_a_job_is_over_and_then_no_thread_is_left(
    jobs: Queue, quick: JobMonitor
) -> None:
    told = Told()
    jobs.show(j1="PENDING")
    quick.watch("slurm", "1", told)
    assert told.next().state is JobState.PENDING
    jobs.show(j1="RUNNING")
    assert told.next().state is JobState.RUNNING
    jobs.show(j1="TIMEOUT")
    info = told.next()
    assert (info.state, info.stdout) == (JobState.TIMEOUT, "/out/1")
    until(lambda: threads() == [], "the thread to end")
    asked = len(jobs.calls("squeue"))
    # It stays known, and nobody is asked again.
    assert quick.info("slurm", "1", max_age=0) == info
    assert len(jobs.calls("squeue")) == asked
    quick.watch("slurm", "1", told)
    assert told.next() == info
    assert told.nothing()


def test_all_who_watch_are_told_and_each_may_stop(
    jobs: Queue, quick: JobMonitor
) -> None:
    first, second = Told(), Told()
    jobs.show(j1="PENDING", j2="PENDING")
    stop = quick.watch("slurm", "1", first)
    quick.watch("slurm", "1", second)
    quick.watch("slurm", "2", second)
    first.next()
    assert {second.next().job_id, second.next().job_id} == {"1", "2"}
    stop()
    stop()
    jobs.show(j1="RUNNING", j2="RUNNING")
    assert {second.next().job_id, second.next().job_id} == {"1", "2"}
    assert first.nothing()
    assert any("--jobs=1,2" in call for call in jobs.calls("squeue"))


def test_when_nobody_watches_any_more_the_thread_ends(
    jobs: Queue, quick: JobMonitor
) -> None:
    jobs.show(j1="PENDING")
    stop = quick.watch("slurm", "1", lambda _: None)
    assert threads() == ["academy-jobs"]
    stop()
    until(lambda: threads() == [], "the thread to end")


def test_a_job_that_is_missed_once_is_as_before_and_at_last_unknown(
    jobs: Queue, quick: JobMonitor
) -> None:
    told = Told()
    jobs.show(j1="RUNNING")
    quick.watch("slurm", "1", told)
    told.next()
    jobs.show()
    info = told.next()
    assert info.state is JobState.UNKNOWN
    assert not info.state.is_over
    # It was looked for in the accounts before.
    assert len(jobs.calls("sacct")) >= 3
    jobs.show(j1="RUNNING")
    assert told.next().state is JobState.RUNNING


def test_a_scheduler_that_does_not_answer_is_no_end(
    jobs: Queue, quick: JobMonitor
) -> None:
    told = Told()
    jobs.show(j1="RUNNING")
    quick.watch("slurm", "1", told)
    told.next()
    jobs.says("squeue", stderr="Unable to contact slurm controller", status=1)
    info = told.next()
    assert info.state is JobState.UNKNOWN
    assert "slurm does not answer: squeue: status 1: Unable to contact" in info.reason
    assert info.stdout == "/out/1"
    jobs.show(j1="FAILED")
    assert told.next().state is JobState.FAILED


def test_what_is_known_is_told_while_the_scheduler_does_not_answer(
    jobs: Queue, quick: JobMonitor
) -> None:
    jobs.show(j1="RUNNING")
    assert quick.info("slurm", "1").state is JobState.RUNNING
    jobs.says("squeue", stderr="down", status=1)
    assert quick.info("slurm", "1", max_age=0).state is JobState.RUNNING
    unknown = quick.info("slurm", "2")
    assert unknown.state is JobState.UNKNOWN
    assert "down" in unknown.reason


def test_an_ended_job_is_found_in_the_accounts_with_what_was_known(
    jobs: Queue, quick: JobMonitor
) -> None:
    told = Told()
    jobs.show(j1="RUNNING")
    quick.watch("slurm", "1", told)
    told.next()
    line = "1|1|NODE_FAIL|n1|2026-11-22T17:00:00|2026-11-22T17:00:00|x|0:0\n"
    jobs.says("sacct", line)
    jobs.show()
    info = told.next()
    assert (info.state, info.stdout) == (JobState.NODE_FAIL, "/out/1")


def test_questions_get_rarer_and_a_hint_is_followed_at_once(jobs: Queue) -> None:
    told = Told()
    patient = JobMonitor(first=0.02, longest=600.0)
    jobs.show(j1="RUNNING")
    patient.watch("slurm", "1", told)
    told.next()
    # The intervals add up to a minute after 18 questions.
    until(lambda: len(jobs.calls("squeue")) >= 10, "ten questions")
    jobs.show(j1="FAILED")
    patient.look_now("slurm", "1")
    assert told.next().state is JobState.FAILED
    patient.look_now("slurm", "nosuch")
    patient.close()


def test_questions_of_many_threads_are_one(jobs: Queue) -> None:
    jobs.show(**{f"j{number}": "RUNNING" for number in range(40)})
    fresh = JobMonitor()
    found: list[JobInfo] = []

    def ask(number: int) -> None:
        found.append(fresh.info("slurm", str(number)))

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert {info.job_id for info in found} == {str(number) for number in range(40)}
    assert {info.state for info in found} == {JobState.RUNNING}
    # Those which came while the first was answered share the second.
    assert len(jobs.calls("squeue")) < 10


def test_a_callback_that_fails_does_not_keep_others_from_being_told(
    jobs: Queue, quick: JobMonitor, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    def fail(info: JobInfo) -> None:
        raise RuntimeError("of the callback")

    jobs.show(j1="COMPLETED")
    quick.watch("slurm", "1", fail)
    quick.watch("slurm", "1", told)
    assert told.next().state is JobState.COMPLETED
    until(lambda: threads() == [], "the thread to end")
    assert "of the callback" in caplog.text


def test_a_callback_may_use_the_monitor(jobs: Queue, quick: JobMonitor) -> None:
    told = Told()
    jobs.show(j1="FAILED", j2="COMPLETED")

    def follow(info: JobInfo) -> None:
        quick.watch("slurm", "2", told)
        quick.info("slurm", "1")

    quick.watch("slurm", "1", follow)
    assert told.next().job_id == "2"


def test_a_closed_monitor_calls_nobody(jobs: Queue) -> None:
    told = Told()
    jobs.show(j1="RUNNING")
    closing = JobMonitor(first=0.05)
    closing.watch("slurm", "1", told)
    told.next()
    closing.close()
    closing.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        closing.watch("slurm", "1", told)
    assert closing.info("slurm", "1").state is JobState.RUNNING


def test_an_unknown_scheduler_is_refused_at_once(quick: JobMonitor) -> None:
    with pytest.raises(ValueError, match="no scheduler 'slrum'"):
        quick.info("slrum", "1")
    with pytest.raises(ValueError, match="no scheduler 'slrum'"):
        quick.watch("slrum", "1", print)
    assert threads() == []


def test_a_process_has_one_monitor_and_its_child_another(jobs: Queue) -> None:
    assert monitor() is monitor()
    jobs.show(j1="RUNNING")
    stop = monitor().watch("slurm", "1", lambda _: None)
    pid = os.fork()
    if pid == 0:  # Without the thread, and perhaps with a lock that nobody opens.
        info = monitor().info("slurm", "1")
        os._exit(0 if info.state is JobState.RUNNING else 1)
    _, status = os.waitpid(pid, 0)
    stop()
    assert status == 0
    until(lambda: threads() == [], "the thread to end")
