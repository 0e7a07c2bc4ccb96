"""What Parsl's blocks on this machine leave behind."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
from parsl.providers import LocalProvider

# How long processes may take to end after they were asked to.
GRACE = 5.0


class LocalBlocks:
    """The processes of blocks on this machine, to be ended after Parsl has cancelled.

    Parsl terminates the process group of a block without waiting for its end. If the
    block's worker pool was killed before, it does not even find the group, and workers
    go on. A worker pool that is terminated leaves the directory of its
    multiprocessing manager behind.

    Args:
        executors: Parsl executors; those with another provider have no such blocks.
    """

    def __init__(self, executors: Iterable[Any]) -> None:
        providers = [getattr(executor, "provider", None) for executor in executors]
        jobs: list[dict[str, Any]] = []
        for provider in providers:
            if isinstance(provider, LocalProvider):
                jobs += provider.resources.values()
        self._processes = {*_of_groups(jobs), *_by_environment(jobs)}
        self._directories = set(_manager_directories(self._processes))

    def end(self) -> None:
        """Wait until all have ended, with less and less patience."""
        if left := self._wait():
            _signal_all(left, psutil.Process.terminate)
            left = self._wait()
        _signal_all(left, psutil.Process.kill)
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    def _wait(self) -> list[psutil.Process]:
        deadline = time.monotonic() + GRACE
        while (left := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def _alive(self) -> list[psutil.Process]:
        alive = []
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                # In a container nobody may be there to reap it.
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive


def _of_groups(jobs: Iterable[dict[str, Any]]) -> Iterator[psutil.Process]:
    """Give the processes that descend from a job."""
    for job in jobs:
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(job["remote_pid"])
            yield root
            yield from root.children(recursive=True)


def _by_environment(jobs: Iterable[dict[str, Any]]) -> Iterator[psutil.Process]:
    """Give the processes that inherited a job's name, which holds its time of birth."""
    names = {Path(job["script_path"]).stem for job in jobs}
    for process in psutil.process_iter() if names else ():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("JOBNAME") in names:
                yield process


def _manager_directories(processes: Iterable[psutil.Process]) -> Iterator[Path]:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for socket in process.net_connections("unix"):
                directory = Path(str(socket.laddr)).parent
                if directory.name.startswith("pymp-"):
                    yield directory


def _signal_all(processes: Iterable[psutil.Process], send: Any) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            send(process)
