"""How an agent's run is ended from outside, and how its end is told."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from academy.exception import AcademyError, AcademyRemoteError
from academy.scheduler.here import place
from academy.serialize import dumps

if TYPE_CHECKING:
    from academy.runtime import Runtime

PARENT_CHECK_INTERVAL = 2.0
"""Seconds between two looks of a worker whether its parent lives."""

ORPHAN_GRACE = 30.0
"""Seconds that an agent has to shut down when its worker's parent is dead."""

ORPHANED = "the death of its parent process"


class AgentInterruptedError(AcademyError):
    """An agent was ended from outside, unasked: by a signal, or by SystemExit."""

    def __init__(self, cause: str, host: str) -> None:
        super().__init__(cause, host)
        self.cause = cause
        self.host = host

    def __str__(self) -> str:
        return f"The agent's worker on {self.host} was ended by {self.cause}."


@contextmanager
def shutdown_from_outside(
    runtime: Runtime[Any], *, expected: bool
) -> Iterator[list[str]]:
    """Shut an agent down at SIGTERM, SIGINT, or the death of who made this process.

    In other threads than the main one, which gets no signals, this does nothing.
    Yields the causes met; a second one cancels the current task.
    """
    causes: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield causes
        return
    task = asyncio.current_task()

    def end(cause: str) -> None:
        causes.append(cause)
        if len(causes) == 1:
            why = "" if expected else _interruption(cause)
            runtime.signal_shutdown(expected=expected, reason=why)
        elif task is not None:
            task.cancel()

    with _on_signals(end), _on_orphaning(end):
        yield causes


def _interruption(cause: str) -> str:
    at = place()
    job = f" in job {at.job_id}" if at.job_id else ""
    return f"its worker{job} on {at.host} was ended by {cause}"


@contextmanager
def _on_signals(end: Callable[[str], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, end, number.name)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextmanager
def _on_orphaning(end: Callable[[str], None]) -> Iterator[None]:
    """Tell when the parent dies, if this process is a worker of multiprocessing."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        yield
        return
    watch = asyncio.create_task(_watch_parent(end))
    try:
        yield
    finally:
        watch.cancel()


async def _watch_parent(end: Callable[[str], None]) -> None:
    # The parent's sentinel would tell at once, but sibling workers may hold it open.
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_INTERVAL)
    # The exchange may have died with the parent, and nobody else waits for us.
    asyncio.get_running_loop().call_later(ORPHAN_GRACE, os._exit, 1)
    end(ORPHANED)


def portable_error(error: BaseException) -> Exception:
    """Return the error, or what stands for it where it cannot travel or must not.

    SystemExit, KeyboardInterrupt and CancelledError would end the launching program.
    """
    if not isinstance(error, Exception):
        return AgentInterruptedError(repr(error), socket.gethostname())
    try:
        pickle.loads(dumps(error))
    except Exception:
        text = "".join(traceback.format_exception(error))
        return AcademyRemoteError(f"{error!r}, which does not pickle:\n{text}")
    return error
