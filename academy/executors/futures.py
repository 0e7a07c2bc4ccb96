"""What can be done with the futures of any executor."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Executor, Future
from typing import Any

from academy.executors.base import AgentExecutor


def is_standard_pool(executor: Executor | None) -> bool:
    """Whether this is a thread or process pool of the standard library."""
    # Importing ProcessPoolExecutor to ask for it would load multiprocessing.
    pools = ("concurrent.futures.thread", "concurrent.futures.process")
    return any(kind.__module__ in pools for kind in type(executor).__mro__)


def submit(
    executor: Executor, fn: Any, /, *args: Any, **submit_kwargs: Any
) -> Future[Any]:
    """Submit a task, and make sure that the loss of its worker is noticed."""
    future = executor.submit(fn, *args, **submit_kwargs)
    # A ProcessPoolExecutor that starts workers on demand wakes its own thread first
    # and starts the worker then, which nobody watches until the next wake-up.
    # Source: https://github.com/python/cpython/blob/3.11/Lib/concurrent/futures/process.py
    wakeup = getattr(executor, "_executor_manager_thread_wakeup", None)
    if wakeup is not None:
        wakeup.wakeup()
    return future


def interrupt_workers(executor: Executor) -> None:
    """Send SIGTERM to the workers of a process pool, which ends their agents in order.

    The program would otherwise wait for them when it exits.
    """
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.terminate()


def withdraw(executor: Executor | None, future: Future[Any] | None) -> bool:
    """Take a task back that no worker has begun, where that can be told."""
    # Other executors may say that they cancelled what runs nevertheless.
    known = isinstance(executor, AgentExecutor) or is_standard_pool(executor)
    return known and future is not None and future.cancel()


def end_of(future: Future[Any]) -> asyncio.Future[None]:
    """Return a future of this event loop that is done when the other one is.

    Cancelling it leaves the other one alone.
    """
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    future.add_done_callback(tell)
    return ended
