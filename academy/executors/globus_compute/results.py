"""The results of a task group, as they come from the service's broker.

The SDK's result watcher brings them, in a thread of its own. When the broker has been
away for a while, the watcher gives up, with an error on each future, although the tasks
go on. Then the service is asked what has become of them, and a new watcher waits for
the rest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from globus_compute_sdk import Client
    from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

    from academy.executors.globus_compute.watcher import Watcher

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds between two attempts to reach the service, which begin at one."""

CHECK_INTERVAL = 300.0
"""Seconds after which the service is asked, should the broker have lost a result."""

Deliver = Callable[[str, Any, BaseException | None], None]


class Results:
    """Waits for the results of tasks of one group.

    Whoever made it calls all methods, from one thread, and `tend` every few seconds.

    Args:
        client: of the SDK.
        task_group_id: whose results.
        deliver: called with a task's id, and its result or error, once for each; by
            any thread.
        wake: called when `tend` has something to do; by any thread.
    """

    def __init__(
        self,
        client: Client,
        task_group_id: str,
        deliver: Deliver,
        wake: Callable[[], None],
    ) -> None:
        self._client = client
        self._group = task_group_id
        self._deliver = deliver
        self._wake = wake
        self._watcher: Watcher | None = None
        self._lock = threading.Lock()
        self._open: set[str] = set()
        # Of these, nobody knows whether their results have come already.
        self._unknown: set[str] = set()
        self._pause = 1.0
        self._ask_not_before = 0.0
        self._checked = time.monotonic()

    def watch(self, task_ids: Iterable[str]) -> None:
        """Wait for tasks that have just been submitted."""
        with self._lock:
            self._open.update(task_ids)
        self._watch(self._new_futures(task_ids))

    def find(self, task_ids: Iterable[str]) -> None:
        """Wait for tasks that have been submitted some time ago; `tend` begins it."""
        with self._lock:
            self._open.update(task_ids)
            self._unknown.update(task_ids)

    def tend(self) -> None:
        """Find out what has become of tasks, where it is not known any more."""
        now = time.monotonic()
        with self._lock:
            if self._watcher is not None and not self._watcher.is_alive():
                self._unknown.update(self._open)
            unknown = sorted(self._unknown)
            everything = sorted(self._open)
        if now < self._ask_not_before:
            return
        if unknown:
            self._ask(unknown, keep=True)
        elif everything and now - self._checked > CHECK_INTERVAL:
            self._ask(everything, keep=False)

    def _ask(self, task_ids: list[str], *, keep: bool) -> None:
        """Ask the service for results; keep waiting for those that are not there."""
        from academy.executors.globus_compute.watcher import pending

        self._checked = time.monotonic()
        futures = self._new_futures(task_ids)
        try:
            unfinished = pending(dict(futures), self._client)
        except Exception as error:
            logger.warning("no news of %d tasks: %r", len(task_ids), error)
            self._ask_not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        self._pause = 1.0
        if keep:
            with self._lock:
                self._unknown.difference_update(task_ids)
            waiting = {f.task_id for f in unfinished}
            for task_id, future in futures.items():
                if task_id not in waiting and not future.done():
                    future.set_exception(_unknown_to_the_service())
            self._watch({t: f for t, f in futures.items() if t in waiting})
            # Should the broker be away still, it is not asked in a tight loop.
            self._ask_not_before = time.monotonic() + 1.0

    def _new_futures(self, task_ids: Iterable[str]) -> dict[str, ComputeFuture]:
        from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

        futures = {}
        for task_id in task_ids:
            futures[task_id] = future = ComputeFuture(task_id)
            future.add_done_callback(partial(self._arrived, task_id))
        return futures

    def _watch(self, futures: dict[str, ComputeFuture]) -> None:
        if not futures:
            return
        if self._watcher is None or not self._watcher.is_alive():
            from academy.executors.globus_compute.watcher import Watcher

            self._watcher = Watcher(self._group, self._client)
            self._watcher.start()
        if not self._watcher.follow(list(futures.values())):
            with self._lock:
                self._unknown.update(futures)

    def _arrived(self, task_id: str, future: ComputeFuture) -> None:
        error = future.exception()
        lost = error is not None and not _is_of_task(error)
        with self._lock:
            if task_id not in self._open:
                return
            if lost:
                self._unknown.add(task_id)
            else:
                self._open.discard(task_id)
                self._unknown.discard(task_id)
        if lost:
            logger.warning("lost the connection to task %s: %r", task_id, error)
            self._wake()
        else:
            self._deliver(task_id, None if error else future.result(), error)

    def close(self) -> None:
        """Give up the watcher, and tasks that have not ended."""
        with self._lock:
            self._open.clear()
        if self._watcher is not None:
            self._watcher.end(timeout=5.0)
            self._watcher = None


def _is_of_task(error: BaseException) -> bool:
    """Whether an error is what became of the task, or only of the connection."""
    from globus_compute_sdk.errors import TaskExecutionFailed

    # A result that does not unpack is a bare Exception with a cause.
    does_not_unpack = type(error) is Exception and error.__cause__ is not None
    return isinstance(error, TaskExecutionFailed) or does_not_unpack


def _unknown_to_the_service() -> Exception:
    from globus_compute_sdk.errors import TaskExecutionFailed

    return TaskExecutionFailed("The service does not know the task any more")
