"""What a job and the program that launched it leave for each other in a directory."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from academy.launch import AgentInterruptedError
from academy.launch.slot import part, take_slot
from academy.launch.task import (
    OUTCOME,
    SPEC,
    TAKEN,
    pack_spec,
    read_outcome,
    remove_spec,
    run_task,
    was_success,
    withdraw_spec,
    write_spec,
)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_function_runs_and_its_value_comes_back(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, pack_spec(pow, (2, 10)))
    assert stat.S_IMODE(spec.stat().st_mode) == 0o600
    assert run_task(spec) == 0
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.value == 1024
    assert was_success(tmp_path) is True
    assert names(tmp_path) == {OUTCOME, "place"}


def test_an_error_comes_back_with_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_task(write_spec(tmp_path, pack_spec(int, ("seven",)))) == 1
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert isinstance(outcome.error, ValueError)
    assert "invalid literal" in outcome.error.__notes__[0]
    assert was_success(tmp_path) is False
    # Whoever reads the output of the job sees it as well.
    assert "invalid literal" in capsys.readouterr().err


def test_sys_exit_does_not_end_who_reads_the_outcome(tmp_path: Path) -> None:
    def leave() -> None:
        raise SystemExit(3)

    assert run_task(write_spec(tmp_path, pack_spec(leave, ()))) == 1
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert isinstance(outcome.error, AgentInterruptedError)


def test_a_value_that_does_not_pickle_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert run_task(write_spec(tmp_path, pack_spec(threading.Lock, ()))) == 0
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert "pickle" in str(outcome.error)
    assert was_success(tmp_path) is False


def test_an_outcome_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    assert read_outcome(tmp_path) is None
    assert was_success(tmp_path) is None
    (tmp_path / OUTCOME).write_bytes(b"+not a pickle")
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.error is not None
    assert str(tmp_path / OUTCOME) in outcome.error.__notes__[0]


def test_what_was_withdrawn_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, pack_spec(pow, (2, 10)))
    assert withdraw_spec(tmp_path)
    assert not withdraw_spec(tmp_path)
    assert run_task(spec) == 2
    assert "withdrawn" in capsys.readouterr().err
    assert names(tmp_path) == set()


def test_what_has_begun_cannot_be_withdrawn(tmp_path: Path) -> None:
    def withdraw() -> bool:
        return withdraw_spec(tmp_path)

    run_task(write_spec(tmp_path, pack_spec(withdraw, ())))
    outcome = read_outcome(tmp_path)
    assert outcome is not None
    assert outcome.value is False


def test_of_a_job_and_who_takes_it_back_exactly_one_is_first(tmp_path: Path) -> None:
    def race(directory: Path, first: threading.Barrier) -> bool:
        first.wait()
        return withdraw_spec(directory)

    with ThreadPoolExecutor(1) as other:
        for number in range(50):
            directory = tmp_path / str(number)
            directory.mkdir()
            spec = write_spec(directory, pack_spec(pow, (2, 2)))
            first = threading.Barrier(2)
            withdrawn = other.submit(race, directory, first)
            first.wait()
            ran = run_task(spec) == 0
            assert withdrawn.result() is not ran


def test_a_requeued_job_begins_again_unless_it_has_ended(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, pack_spec(os.getpid, ()))
    os.rename(spec, tmp_path / TAKEN)  # as a run before it did, whose node has died
    assert run_task(spec) == 0
    assert run_task(spec) == 2


def test_nothing_secret_is_left(tmp_path: Path) -> None:
    write_spec(tmp_path, pack_spec(pow, (2, 10)))
    (tmp_path / TAKEN).write_bytes(b"")
    remove_spec(tmp_path)
    remove_spec(tmp_path)
    assert names(tmp_path) == set()
    assert not (tmp_path / SPEC).exists()


# --- slots


def test_parts_are_disjoint_and_all_of_it() -> None:
    for count in range(1, 9):
        parts = [part(range(8), index, count) for index in range(count)]
        assert [thing for one in parts for thing in one] == list(range(8))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def taken(
    slot: str, gpus: int, variables: dict[str, str]
) -> tuple[set[int], dict[str, str]]:
    before = os.environ.copy()
    try:
        os.environ.update(variables)
        cores = os.sched_getaffinity(0)
        take_slot(slot, gpus)
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
        return mine, {n: os.environ[n] for n in names if n in os.environ}
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="macOS pins no process to cores"
)
def test_a_slot_is_a_part_of_the_cores_and_gpus_that_the_job_has() -> None:
    cores, gpus = taken("1/2", 4, {})
    assert gpus == {"CUDA_VISIBLE_DEVICES": "2,3", "ZE_AFFINITY_MASK": "2,3"}
    others, gpus = taken("0/2", 4, {"CUDA_VISIBLE_DEVICES": "5,7"})
    assert gpus == {"CUDA_VISIBLE_DEVICES": "5"}
    if len(os.sched_getaffinity(0)) > 1:
        assert not cores & others
    _, gpus = taken("0/2", 0, {})
    assert gpus == {}


def test_what_is_no_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="0/4"):
        take_slot("one", 0)
    with pytest.raises(ValueError, match="counted from 0"):
        take_slot("4/4", 0)
