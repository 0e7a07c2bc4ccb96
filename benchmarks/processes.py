"""Processes that take part in a benchmark, and end with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
R = TypeVar("R")

# Not forked: a copy of this process would share its memory, and be measured with it.
_CONTEXT = multiprocessing.get_context("spawn")


def workers() -> ProcessPoolExecutor:
    """Make an executor of one fresh process."""
    return ProcessPoolExecutor(1, _CONTEXT)


def run(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a fresh process and return its result."""
    with workers() as pool:
        return pool.submit(function, *args, **kwargs).result()


@contextmanager
def background(role: Callable[..., None], *args: Any) -> Iterator[tuple[int, Any]]:
    """Run `role(ready, *args)` in a process; yield its pid and what it sent first."""
    ready, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=role, args=(sender, *args), daemon=True)
    process.start()
    try:
        sender.close()
        assert process.pid is not None
        yield process.pid, ready.recv()
    finally:
        process.kill()
        process.join()
        ready.close()


def child_running(module: str) -> int:
    """Return the pid of our child process that runs `python -m module`."""
    (pid,) = (
        child.pid
        for child in psutil.Process().children(recursive=True)
        if module in child.cmdline()
    )
    return pid
