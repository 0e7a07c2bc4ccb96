"""All tasks of one configuration: their submission, their results, their records."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, InvalidStateError
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from academy.executors.globus_compute import task
from academy.executors.globus_compute.causes import cause_of
from academy.executors.globus_compute.future import Task, TaskFuture
from academy.executors.globus_compute.limits import (
    AROUND_REQUEST,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_TASKS,
)
from academy.executors.globus_compute.records import GroupRecord, Owner
from academy.executors.globus_compute.request import Request
from academy.executors.globus_compute.results import Results
from academy.executors.globus_compute.service import Service

if TYPE_CHECKING:
    from globus_compute_sdk import Client

logger = logging.getLogger(__name__)

TEND_INTERVAL = 2.0
"""Seconds between two looks whether results still come."""

LINGER = 10.0
"""Seconds that a lane without tasks keeps its connection to the broker."""

CUT_OFF_GRACE = 5.0
"""Seconds that a lane which is cut off has to close its connections."""


EXIT_GRACE = 60.0
"""Seconds that a program which ends waits for the service to take its tasks."""

_lanes: WeakSet[Lane] = WeakSet()


@atexit.register
def _hand_over() -> None:
    """Let a program end when what it has submitted has been handed to the service."""
    deadline = time.monotonic() + EXIT_GRACE
    for lane in list(_lanes):
        if not lane.hand_over(max(0.0, deadline - time.monotonic())):
            logger.error("some tasks were not submitted in time: %s", lane.request)


class Lane:
    """Submits what has gathered, and waits for its results, in one thread.

    The thread is there while there are tasks, and a little longer; so are the
    connection to the broker and the lane itself, which `ended` then lets go. It is a
    daemon, as is the watcher: a program that ends leaves its tasks to the service.

    Args:
        service: takes the tasks.
        request: what all of them ask for.
        directory: for the record of the tasks that have not ended.
        ended: called once, in the end, without any lock of ours.
    """

    def __init__(
        self,
        service: Service,
        request: Request,
        directory: Path,
        ended: Callable[[Lane], None],
    ) -> None:
        self.request = request
        self._service = service
        self._directory = directory
        self._ended = ended
        self._changed = threading.Condition()
        self._queue: deque[Task] = deque()
        self._in_flight: list[TaskFuture] = []
        self._open: dict[str, TaskFuture] = {}
        self._submitted: dict[str, str] = {}
        self._recorded: set[str] = set()
        self._closing = self._cut_off = self._over = False
        self._idle_since = time.monotonic()
        self._group: str | None = None
        self._client: Client | None = None
        self._results: Results | None = None
        self._thread: threading.Thread | None = None
        _lanes.add(self)

    # --- for its executor

    def put(self, tasks: Sequence[Task]) -> bool:
        """Take tasks; False if this lane has ended, and another one is needed."""
        with self._changed:
            if self._over:
                return False
            self._queue.extend(tasks)
            self._run()
        return True

    def adopt(self, record: GroupRecord, futures: Mapping[str, TaskFuture]) -> None:
        """Take over tasks that another client has submitted; before anything else."""
        with self._changed:
            self._group = record.task_group_id
            self._open.update(futures)
            self._submitted.update(record.tasks)
        self._record(owned=True)
        with self._changed:
            self._run()

    def close(self, *, cut_off: bool) -> None:
        """End when all tasks have ended; or now, which leaves them to the service."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if not cut_off:
                return
            self._cut_off = True
            queued = [one.future for one in self._queue]
            submitted = [*self._in_flight, *self._open.values()]
            self._queue.clear()
        for future in queued:
            future.cancel()
            future.set_running_or_notify_cancel()
        for future in submitted:
            _settle(future, error=_cut_off_error())

    def join(self) -> None:
        """Wait until it has ended; if cut off, not for the answer to a request."""
        if self._thread is not None:
            self._thread.join(CUT_OFF_GRACE if self._cut_off else None)

    def hand_over(self, timeout: float) -> bool:
        """Wait until the service has all tasks, and they are on record."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._over or not (self._queue or self._in_flight), timeout
            )

    def _run(self) -> None:
        if self._thread is None:
            name = f"globus-compute-{self._service.endpoint_id[:8]}"
            self._thread = threading.Thread(target=self._live, name=name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # --- its thread

    def _live(self) -> None:
        try:
            self._work()
        except Exception as error:
            logger.exception("submissions to %s ended", self._service.endpoint_id)
            self._fail_all(error)
        finally:
            with self._changed:
                self._over = True
            if self._results is not None:
                self._results.close()
            if self._client is not None:
                self._service.give_back(self._client)
            self._ended(self)

    def _work(self) -> None:
        while self._goes_on():
            if batch := self._next():
                self._submit(batch)
            self._tend()
        self._record(owned=False)

    def _goes_on(self) -> bool:
        """Wait for something to do, or to look after; False when there is no more."""
        with self._changed:
            finished = self._closing and not self._open
            if not (self._queue or self._cut_off or finished):
                self._changed.wait(TEND_INTERVAL)
            now = time.monotonic()
            busy = bool(self._queue or self._open)
            if busy:
                self._idle_since = now
            lingers = not self._closing and now - self._idle_since < LINGER
            self._over = self._cut_off or not (busy or lingers)
            return not self._over

    def _next(self) -> list[Task]:
        """Return what fits into one request, the oldest first."""
        batch: list[Task] = []
        room = MAX_REQUEST_BYTES - AROUND_REQUEST - len(self.request.key)
        with self._changed:
            while self._queue and len(batch) < MAX_REQUEST_TASKS:
                if batch and self._queue[0].size > room:
                    break
                taken = self._queue.popleft()
                if taken.future.set_running_or_notify_cancel():
                    batch.append(taken)
                    room -= taken.size
            self._in_flight = [one.future for one in batch]
        return batch

    def _submit(self, batch: list[Task]) -> None:
        try:
            if self._client is None:
                self._client = self._service.borrow()
            accepted = self._service.submit(
                self._client, self.request, self._group, batch
            )
        except Exception as error:
            logger.warning("%d tasks were not submitted: %s", len(batch), error)
            for one in batch:
                _settle(one.future, error=error)
            with self._changed:
                self._in_flight = []
                self._changed.notify_all()
            self._leave_group()
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._changed:
            self._group = accepted.task_group_id
            for one, task_id in zip(batch, accepted.task_ids, strict=True):
                one.future.task_id = task_id
                self._open[task_id] = one.future
                self._submitted[task_id] = now
        self._record(owned=True)
        with self._changed:
            self._in_flight = []
            self._changed.notify_all()
        self._connected().watch(accepted.task_ids)

    def _leave_group(self) -> None:
        """Begin anew if nothing is left: the group may be what was refused."""
        if not self._open:
            self._group = None
            if self._results is not None:
                self._results.close()
                self._results = None

    def _connected(self) -> Results:
        assert self._group is not None
        if self._client is None:
            self._client = self._service.borrow()
        if self._results is None:
            self._results = Results(
                self._client, self._group, self._deliver, self._wake
            )
        return self._results

    def _tend(self) -> None:
        if self._open and self._results is None:
            try:
                self._connected().find(list(self._open))
            except Exception as error:
                logger.warning("no results of %s: %s", self._group, error)
                return
        if self._results is not None:
            self._results.tend()
        self._record(owned=True)

    def _record(self, *, owned: bool) -> None:
        """Write down which tasks have not ended, if that has changed."""
        if self._group is None:
            return
        with self._changed:
            tasks = {task_id: self._submitted[task_id] for task_id in self._open}
        if owned and tasks.keys() == self._recorded:
            return
        self._recorded = set(tasks)
        owner = Owner.of_this_process() if owned else None
        record = GroupRecord(
            self._service.endpoint_id,
            self._group,
            self.request.as_json(),
            tasks,
            owner,
        )
        try:
            record.write(self._directory)
        except OSError as error:
            logger.error("tasks of %s are not on record: %s", self._group, error)

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._over = True
            futures = [one.future for one in self._queue]
            futures += [*self._in_flight, *self._open.values()]
        for future in futures:
            _settle(future, error=error)

    # --- for the threads of the SDK

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _deliver(self, task_id: str, result: Any, error: BaseException | None) -> None:
        with self._changed:
            future = self._open.pop(task_id, None)
            self._submitted.pop(task_id, None)
            self._changed.notify_all()
        if future is None:
            return
        if error is not None:
            text = str(getattr(error, "remote_data", None) or error)
            cause = cause_of(text)
            cause.__cause__ = error
            _settle(future, error=cause)
            return
        try:
            value = task.unpack(result)
        except Exception as raised:
            _settle(future, error=raised)
        else:
            _settle(future, value)


def _settle(future: TaskFuture, value: Any = None, error: Any = None) -> None:
    with suppress(InvalidStateError):  # It was cancelled, or cut off, before.
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


def _cut_off_error() -> BrokenExecutor:
    return BrokenExecutor(
        "The task was cut off: the GlobusComputeExecutor was shut down without waiting "
        "for it. On the endpoint it goes on; reattach() finds it again."
    )
