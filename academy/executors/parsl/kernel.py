"""One DataFlowKernel for all that use one configuration."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from glob import glob
from pathlib import Path
from typing import Any

from parsl.config import Config

from academy.executors.parsl.future import TaskFuture
from academy.executors.parsl.pools import Pool
from academy.executors.parsl.run import Run


class Kernel:
    """The DataFlowKernel that the executors of one Parsl configuration share.

    It starts with the first task, and with each pool's first task an executor for it is
    added: one that nobody uses costs no job. When the last user has released it, it is
    cleaned up. A task that comes later starts another one.

    Args:
        config: The user's configuration, of which only copies are started.
        run_dir: Where Parsl makes the numbered directory of a run.
        private: Whether run_dir is ours, to be made unreadable for others.
    """

    def __init__(self, config: Config, run_dir: Path, *, private: bool) -> None:
        self.config = config
        self.run_dir = run_dir
        self._private = private
        self._lock = threading.Lock()
        # Labels that have submitted and not released yet: while there are any, there
        # is a run.
        self._users: set[str] = set()
        self._run: Run | None = None
        self._planned: str | None = None
        # What has been released and may not have ended yet.
        self._ending: list[threading.Event | threading.Thread] = []

    def submit(
        self, user: str, pool: Pool, packed: bytes, specification: dict[str, Any]
    ) -> Future[Any]:
        """Queue a task; its user must release the kernel after its last task."""
        future = TaskFuture()
        with self._lock:
            if self._run is None:
                self._plan()
                self._run = Run(self.config, self.run_dir, self._private)
                self._run.thread.start()
            self._users.add(user)
            self._run.submit(pool, packed, specification, future)
        return future

    def directory(self) -> str:
        """Return the directory of the run, or of the next one if there is none."""
        with self._lock:
            run = self._run
            return (run is not None and run.directory) or self._plan()

    def _plan(self) -> str:
        if self._planned is None:
            self._planned = _next_run(self.run_dir)
        return self._planned

    def drop(self, pool: Pool) -> None:
        """End the executor of a pool that has no tasks."""
        pool.is_leaving = True
        with self._lock:
            if self._run is not None:
                self._run.drop([pool], lambda: None)

    def release(self, user: str, pools: Iterable[Pool]) -> None:
        """Give up the interest of a user, whose futures are all done."""
        with self._lock:
            run = self._run
            if run is None or user not in self._users:
                return
            self._users.discard(user)
            if self._users:
                dropped = threading.Event()
                run.drop(pools, dropped.set)
                self._ending = [dropped]
                return
            run.end()
            self._ending = [run.thread]
            self._run = self._planned = None

    def join(self) -> None:
        """Wait for the end of what was released last, if anything was."""
        for ending in self._ending:
            if isinstance(ending, threading.Event):
                ending.wait()
            elif ending is not threading.current_thread():
                ending.join()


def _next_run(run_dir: Path) -> str:
    """Predict the directory that Parsl makes for its next run."""
    taken = [int(Path(p).name) for p in glob(f"{run_dir}/[0-9]*[0-9]")]
    return str(run_dir.absolute() / f"{max(taken, default=-1) + 1:03}")
