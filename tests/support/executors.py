"""Executors that behave as no executor of ours does, or more simply."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any


class ProcessEach(Executor):
    """Runs each task in a new process, so that one that dies takes none along."""

    def __init__(self) -> None:
        self._pools: list[ProcessPoolExecutor] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=spawn)
        self._pools.append(pool)
        return pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self._pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


class Recording(Executor):
    """Begins nothing by itself; remembers what was asked of it."""

    def __init__(self, refuse: int | None = None) -> None:
        self.refuse = refuse
        self.submitted: list[Future[Any]] = []
        self.is_shut_down = threading.Event()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if len(self.submitted) == self.refuse:
            raise OSError("the scheduler refuses")
        future: Future[Any] = Future()
        self.submitted.append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.is_shut_down.set()
