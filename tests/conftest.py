"""What holds for every test: a home of its own, nothing left behind, no hidden skip."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# Set in this process and inherited by all that it starts, so that a process which
# detached itself from us is still known as ours.
RUN_MARK = f"ACADEMY_TEST_RUN={uuid.uuid4()}"

# What a test may take to let go, once it is over, of what is ending already.
GRACE = 5.0

INHERITED = ("ACADEMY_", "PBS_", "SBATCH_", "SLURM", "SQUEUE_", "SRUN_")


def pytest_configure(config: pytest.Config) -> None:
    """Run as if no batch job and no other Academy were around us."""
    for name in [n for n in os.environ if n.startswith(INHERITED)]:
        del os.environ[name]
    name, _, value = RUN_MARK.partition("=")
    os.environ[name] = value
    # Fixtures that outlive a test find this home; `academy_home` is a test's own.
    home = tempfile.mkdtemp(prefix="academy-")
    os.environ["ACADEMY_HOME"] = home
    # Workers import the agents that tests define.
    os.environ["PYTHONPATH"] = str(config.rootpath)
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


# --- no hidden skip


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure; an expected failure (xfail) is none."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    where = report.longrepr
    reason = where[2] if isinstance(where, tuple) else str(where)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} may not be skipped in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Fail what is skipped in CI: there, a skip hides a missing installation step."""
    report = yield
    if _in_ci():
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Do the same for modules that skip themselves."""
    report = yield
    if _in_ci():
        _refuse_skip(report)
    return report


# --- nothing left behind


def _processes() -> set[psutil.Process]:
    """All processes started by this run, those that detached themselves included."""
    me = psutil.Process()
    mark = RUN_MARK.encode()
    found = set(me.children(recursive=True))
    for pid in psutil.pids():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue  # Not ours, or gone, or no /proc here.
    found.discard(me)
    return {process for process in found if not _lives_as_long_as_us(process)}


def _lives_as_long_as_us(process: psutil.Process) -> bool:
    """Tell the dead, and the helpers that multiprocessing starts once for us."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid():
            return True  # It has ended; somebody else has yet to notice.
        command = " ".join(process.cmdline())
    except psutil.Error:
        return True
    helpers = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
    return any(helper in command for helper in helpers)


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _listeners() -> set[tuple[str, int]]:
    connections = psutil.Process().net_connections(kind="inet")
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    }


def _describe(leaked: object) -> str:
    if isinstance(leaked, psutil.Process):
        try:
            return f"process {leaked.pid}: {' '.join(leaked.cmdline())}"
        except psutil.Error:
            return f"process {leaked.pid}, which has ended since"
    if isinstance(leaked, threading.Thread):
        return f"thread {leaked.name}"
    return f"socket listening on {leaked}"


def _everything() -> set[object]:
    return {*_processes(), *_threads(), *_listeners()}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a listening socket behind."""
    before = _everything()
    yield
    left = _wait_until_none(lambda: _everything() - before)
    message = "left behind: " + "; ".join(map(_describe, left))
    for process in left:
        if isinstance(process, psutil.Process):
            _kill(process)
    if left:
        pytest.fail(message, pytrace=False)


@pytest.fixture(autouse=True)
def no_task_is_left_behind(
    request: pytest.FixtureRequest, nothing_is_left_behind: None
) -> None:
    """Fail an asynchronous test that leaves a task running.

    Asking for the other check puts the event loop's end, and that of its threads,
    before that check.
    """
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_in_this_loop")


@pytest.fixture
async def _no_task_in_this_loop() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=GRACE)
    if left:
        pytest.fail(f"left behind: {'; '.join(map(repr, left))}", pytrace=False)


def _wait_until_none(look: Callable[[], set[object]]) -> set[object]:
    """Give what is ending the time to end. Nothing tells when a process has."""
    deadline = time.monotonic() + GRACE
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()
        process.wait(GRACE)


# --- a home of its own


@pytest.fixture(autouse=True)
def academy_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Academy home of this test, and of the processes that it starts."""
    home = tmp_path / "academy-home"
    monkeypatch.setenv("ACADEMY_HOME", str(home))
    return home
