"""Agents on a Globus Compute endpoint."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from academy.executors.base import AgentExecutor
from academy.executors.globus_compute.future import Task, TaskFuture
from academy.executors.globus_compute.lane import Lane
from academy.executors.globus_compute.limits import (
    AROUND_REQUEST,
    MAX_REQUEST_BYTES,
    PayloadTooLargeError,
)
from academy.executors.globus_compute.records import (
    GroupRecord,
    default_directory,
    read_records,
)
from academy.executors.globus_compute.request import (
    Request,
    read_defaults,
    read_request,
)
from academy.executors.globus_compute.service import Service
from academy.executors.globus_compute.task import pack

if TYPE_CHECKING:
    from globus_compute_sdk import Client


class GlobusComputeExecutor(AgentExecutor):
    """Run agents on a Globus Compute endpoint, wherever that is.

    The keyword arguments of `submit` are fields of a ResourceSpec, which become
    variables of the endpoint's template (those in `configs/globus-compute` have all of
    them), and the SDK's own `user_endpoint_config` and `resource_specification`, whose
    entries go over these and are passed on unchanged. What one launch asks for never
    reaches another one's task.

    An agent and its arguments may be about seven megabytes. academy-hpc has to be
    installed where the endpoint's workers run.

    Submitting returns at once; what the service or the endpoint refuses is told by the
    future. Its `task_id` is that of the service. There is no way to end a task from
    here: futures can be cancelled until they have been submitted, and agents be asked
    to shut down.

    When this process ends, its agents go on. Which tasks have not ended is written
    down, and `reattach` gets their results, in any later process of this user.

    Args:
        endpoint_id: UUID of the endpoint.
        resources: Fields of a ResourceSpec, for all launches that do not say otherwise.
        user_endpoint_config: Entries for all launches that do not say otherwise.
        resource_specification: The same.
        client: A `globus_compute_sdk.Client`, or a function that makes one. Without,
            the SDK makes one from its usual environment and login, in a thread.
        directory: For the records of tasks; by default `ACADEMY_HOME/globus-compute`.

    Raises:
        ValueError: This is no UUID, or a key or value is wrong.
    """

    def __init__(
        self,
        endpoint_id: str | uuid.UUID,
        *,
        resources: Mapping[str, Any] | None = None,
        user_endpoint_config: Mapping[str, Any] | None = None,
        resource_specification: Mapping[str, Any] | None = None,
        client: Client | Callable[[], Client] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.endpoint_id = _uuid(endpoint_id)
        self._taker = f"Globus Compute endpoint {self.endpoint_id}"
        self._defaults = read_defaults(
            resources, user_endpoint_config, resource_specification, self._taker
        )
        self._directory = Path(directory) if directory else default_directory()
        self._service = Service(self.endpoint_id, client)
        self._lock = threading.Lock()
        self._closed = False
        self._by_key: dict[str, Lane] = {}
        self._lanes: set[Lane] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint_id!r})"

    @property
    def max_workers(self) -> int | None:
        return None

    def validate(self, **submit_kwargs: Any) -> None:
        self._request(submit_kwargs)

    def preview(self, **submit_kwargs: Any) -> str:
        return self._request(submit_kwargs).preview(self.endpoint_id)

    def ask_scheduler(self, **submit_kwargs: Any) -> datetime | None:
        self.validate(**submit_kwargs)
        self._service.check_online()
        return None

    def _request(self, submit_kwargs: Mapping[str, Any]) -> Request:
        return read_request(submit_kwargs, self._defaults, self._taker)

    def submit(self, fn: Any, /, *args: Any, **submit_kwargs: Any) -> TaskFuture:
        [future] = self.submit_together(fn, [args], **submit_kwargs)
        return future

    def submit_together(  # type: ignore[override] # a list of a narrower type
        self, fn: Any, /, arguments: Sequence[tuple[Any, ...]], **submit_kwargs: Any
    ) -> list[TaskFuture]:
        request = self._request(submit_kwargs)
        tasks = [Task(pack(fn, args), TaskFuture()) for args in arguments]
        around = AROUND_REQUEST + len(request.key)
        for task in tasks:
            if task.size + around > MAX_REQUEST_BYTES:
                raise PayloadTooLargeError(task.size + around, MAX_REQUEST_BYTES)
        with self._lock:
            self._check_open()
            lane = self._by_key.get(request.key)
            if lane is None or not lane.put(tasks):
                lane = self._by_key[request.key] = self._new_lane(request)
                lane.put(tasks)
        return [task.future for task in tasks]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"Cannot submit: {self!r} has been shut down.")

    def _new_lane(self, request: Request) -> Lane:
        lane = Lane(self._service, request, self._directory, self._forget)
        self._lanes.add(lane)
        return lane

    def _forget(self, lane: Lane) -> None:
        with self._lock:
            self._lanes.discard(lane)
            if self._by_key.get(lane.request.key) is lane:
                del self._by_key[lane.request.key]
            last = self._closed and not self._lanes
        if last:
            self._service.close()

    def reattach(self, task_ids: Iterable[str] | None = None) -> dict[str, TaskFuture]:
        """Wait again for tasks that an earlier client has submitted.

        Args:
            task_ids: Which; without, all on record whose client has ended.

        Returns:
            Their futures, by task id.

        Raises:
            ValueError: There is no record of such a task.
        """
        wanted = None if task_ids is None else set(task_ids)
        found: dict[str, TaskFuture] = {}
        with self._lock:
            self._check_open()
            for record in read_records(self._directory, self.endpoint_id):
                # Two that wait for results of one group would get a part of them each.
                asked = wanted is None or wanted & record.tasks.keys()
                if record.has_living_owner or not asked:
                    continue
                futures = {task_id: _adopted(task_id) for task_id in record.tasks}
                self._new_lane(_request_of(record)).adopt(record, futures)
                found |= futures
        if wanted is None:
            return found
        if missing := sorted(wanted - found.keys()):
            raise ValueError(
                f"In {self._directory} there is no record of a task {missing[0]} of "
                f"{self._taker} that nobody waits for: it has ended, or its client "
                "has not, or it was submitted with another directory."
            )
        return {task_id: found[task_id] for task_id in wanted}

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            lanes = list(self._lanes)
        for lane in lanes:
            lane.close(cut_off=cancel_futures)
        if not lanes:
            self._service.close()
        if wait:
            for lane in lanes:
                lane.join()


def _uuid(endpoint_id: str | uuid.UUID) -> str:
    try:
        return str(uuid.UUID(str(endpoint_id)))
    except ValueError:
        raise ValueError(
            f"A Globus Compute endpoint has a UUID for an id, not {endpoint_id!r}; see "
            "`globus-compute-endpoint list` where it runs."
        ) from None


def _adopted(task_id: str) -> TaskFuture:
    future = TaskFuture()
    future.task_id = task_id
    future.set_running_or_notify_cancel()
    return future


def _request_of(record: GroupRecord) -> Request:
    return Request(
        record.request.get("user_endpoint_config", {}),
        record.request.get("resource_specification", {}),
    )
