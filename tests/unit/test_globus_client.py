"""The client's side of Globus Compute, as far as it needs no service."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from globus_compute_sdk.sdk.batch import Batch

from academy.executors.globus_compute import GlobusComputeExecutor, PayloadTooLargeError
from academy.executors.globus_compute.limits import (
    MAX_REQUEST_BYTES,
    Pace,
    encoded_size,
)
from academy.executors.globus_compute.records import GroupRecord, Owner, read_records
from academy.executors.globus_compute.task import pack, run_task, unpack
from academy.failure import NeverStartedError
from academy.launch import AgentInterruptedError

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
GROUP = "0d3b1fd2-0000-4000-8000-000000000000"


# --- the function that runs on the endpoint


def test_a_call_travels_and_its_outcome_does() -> None:
    offset = 40
    assert unpack(run_task(pack(lambda n: n + offset, (2,)))) == 42


def test_what_a_call_raises_is_raised_here_with_its_traceback() -> None:
    with pytest.raises(ValueError, match="'seven'") as caught:
        unpack(run_task(pack(int, ("seven",))))
    [note] = caught.value.__notes__
    assert os.uname().nodename in note
    assert "Traceback" in note


def test_what_a_call_does_does_not_end_the_worker() -> None:
    def leave() -> NoReturn:
        raise SystemExit(3)

    with pytest.raises(AgentInterruptedError, match="SystemExit"):
        unpack(run_task(pack(leave, ())))


def test_a_module_that_is_missing_on_the_endpoint_is_named() -> None:
    packed = pack(os.getpid, ()).replace(b"posix", b"pozix")
    with pytest.raises(ModuleNotFoundError, match="pozix"):
        unpack(run_task(packed))


# --- limits


@pytest.mark.parametrize("size", [0, 1, 56, 57, 58, 1000, 1_000_000])
def test_the_size_of_a_task_is_not_taken_for_less_than_it_is(size: int) -> None:
    batch = Batch(None)
    batch.add(GROUP, (bytes(size),))
    size_of_request = len(json.dumps(batch.prepare()))
    estimate = encoded_size(bytes(size))
    assert size_of_request <= estimate + 4096
    assert estimate <= size_of_request + 1024


def test_what_is_too_large_is_told_with_its_size_and_the_limit() -> None:
    executor = GlobusComputeExecutor(ENDPOINT)
    with pytest.raises(PayloadTooLargeError, match=r"10,9\d\d,\d{3} bytes") as caught:
        executor.submit(len, bytes(8_000_000))
    assert caught.value.limit == MAX_REQUEST_BYTES
    assert caught.value.size > MAX_REQUEST_BYTES


def test_after_a_few_requests_at_once_others_keep_their_distance() -> None:
    pace = Pace(burst=5, period=0.05)
    began = time.monotonic()
    for number in range(10):
        pace.wait()
        assert time.monotonic() - began >= (number - 4) * 0.05


def test_no_window_has_more_requests_than_the_service_allows() -> None:
    pace = Pace()
    assert pace._burst + 10 / pace._period < 20


# --- clients


@contextmanager
def waiting_login() -> Iterator[tuple[Any, threading.Event]]:
    """Make a login that waits for somebody, who does not come."""
    asked, answered = threading.Event(), threading.Event()

    def log_in() -> NoReturn:
        asked.set()
        answered.wait()
        raise OSError("nobody came")

    try:
        yield log_in, asked
    finally:
        answered.set()


def test_a_login_that_takes_its_time_holds_nobody_up() -> None:
    with waiting_login() as (log_in, asked):
        executor = GlobusComputeExecutor(ENDPOINT, client=log_in)
        future = executor.submit(abs, -1)
        asked.wait()
        late = executor.submit(abs, -2)
        assert not future.cancel()
        assert late.cancel()
    with pytest.raises(NeverStartedError, match="nobody came"):
        future.result()
    executor.shutdown()


def test_the_next_launch_tries_the_login_again() -> None:
    calls = []

    def log_in() -> NoReturn:
        calls.append(1)
        raise OSError("nobody came")

    with GlobusComputeExecutor(ENDPOINT, client=log_in) as executor:
        for _ in range(3):
            with pytest.raises(NeverStartedError):
                executor.submit(abs, -1).result()
    assert len(calls) == 3


def test_who_is_in_a_hurry_does_not_wait_for_a_login() -> None:
    with waiting_login() as (log_in, asked):
        executor = GlobusComputeExecutor(ENDPOINT, client=log_in)
        futures = [executor.submit(abs, -1)]
        asked.wait()
        futures.append(executor.submit(abs, -2))
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.done() for future in futures)
        assert futures[1].cancelled()
    executor.shutdown()


def test_an_executor_that_was_never_used_is_shut_down_at_once() -> None:
    executor = GlobusComputeExecutor(ENDPOINT)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(abs, -1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.reattach()


def test_it_says_what_it_is_and_that_nobody_knows_how_many_run() -> None:
    executor = GlobusComputeExecutor(ENDPOINT.upper())
    assert repr(executor) == f"GlobusComputeExecutor({ENDPOINT!r})"
    assert executor.max_workers is None
    with waiting_login() as (log_in, _):
        executor = GlobusComputeExecutor(ENDPOINT, client=log_in)
        assert executor.job(executor.submit(abs, -1)) is None
        executor.shutdown(wait=False, cancel_futures=True)


# --- records


def record(**changes: Any) -> GroupRecord:
    options = {"tasks": {"t1": "2026-01-01T00:00:00+00:00"}, **changes}
    return GroupRecord(ENDPOINT, GROUP, {"user_endpoint_config": {"a": 1}}, **options)


def test_a_record_is_private_and_read_again(tmp_path: Path) -> None:
    directory = tmp_path / "records"
    record(owner=Owner.of_this_process()).write(directory)
    [path] = directory.iterdir()
    assert path.stat().st_mode & 0o077 == 0
    assert directory.stat().st_mode & 0o077 == 0
    [again] = read_records(directory, ENDPOINT)
    assert again == record(owner=Owner.of_this_process())
    assert again.owner is not None
    assert again.owner.lives()
    assert list(read_records(directory, "another")) == []


def test_without_tasks_there_is_no_record(tmp_path: Path) -> None:
    record().write(tmp_path)
    record(tasks={}).write(tmp_path)
    record(tasks={}).write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert list(read_records(tmp_path / "nowhere", ENDPOINT)) == []


def test_an_owner_that_has_ended_is_no_owner() -> None:
    me = psutil.Process()
    name = os.uname().nodename
    assert not Owner(name, me.pid, me.create_time() - 100).lives()
    assert not Owner("elsewhere", me.pid, me.create_time()).lives()


def test_tasks_of_a_client_that_lives_are_left_to_it(tmp_path: Path) -> None:
    record(owner=Owner.of_this_process()).write(tmp_path)
    executor = GlobusComputeExecutor(ENDPOINT, directory=tmp_path)
    assert executor.reattach() == {}
    with pytest.raises(ValueError, match="no record of a task t1"):
        executor.reattach(["t1"])
    executor.shutdown()
