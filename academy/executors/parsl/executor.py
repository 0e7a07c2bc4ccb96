"""Agents in Parsl's pilot jobs: many agents share the workers of an allocation."""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from datetime import datetime
from pathlib import Path
from threading import Event, RLock
from typing import Any, TypeVar

import cloudpickle
from parsl.config import Config
from parsl.executors.base import ParslExecutor as ParslEngine

from academy.executors.base import AgentExecutor, unknown_key
from academy.executors.limits import check_limits
from academy.executors.parsl.config import (
    DEFAULT_RUN_DIR,
    local_config,
    read_config,
)
from academy.executors.parsl.engine import check_address
from academy.executors.parsl.future import TaskFuture
from academy.executors.parsl.kernel import Kernel
from academy.executors.parsl.losses import asked
from academy.executors.parsl.pools import Pool, Pools
from academy.executors.parsl.preview import plan_block, preview
from academy.executors.parsl.shapes import Request
from academy.executors.parsl.tasks import taker_of
from academy.executors.providers import scheduler_of
from academy.home import get_academy_home
from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobInfo

T = TypeVar("T")

# How long an estimate of the scheduler is good for.
ESTIMATE_AGE = 60.0


class ParslExecutor(AgentExecutor):
    """Run agents on the workers of one Parsl executor.

    The keyword arguments of `submit` are what this kind of Parsl executor accepts for
    one task (`priority` for a HighThroughputExecutor; `num_nodes` and `ranks_per_node`
    for an MPIExecutor; `cores`, `memory`, `gpus`, … for Work Queue and TaskVine;
    `num_tasks`, `cores_per_task`, … for Flux), or all of them in one dictionary as
    `parsl_resource_specification`.

    A HighThroughputExecutor or MPIExecutor takes all names of a `ResourceSpec` besides
    (`nodes`, `gpus_per_node`, `walltime`, `queue`, …). What only the scheduler can
    give selects a pool of blocks of that shape: a copy of the Parsl executor and its
    provider with these options. A pool begins with its first task and ends when it has
    had none for as long as the configuration's `max_idletime`. When its blocks fail,
    its own tasks do, and no others; with the next one it begins anew.

    Parsl starts with the first task, in a DataFlowKernel that is not Parsl's global
    one, from a copy of the configuration. It keeps its files in a directory of its own
    under `ACADEMY_HOME/parsl`, unless run_dir or the configuration says otherwise.

    When a worker or a block is lost, so are its tasks: their futures get one of the
    errors of `academy.failure`, whose cause is Parsl's own.

    Args:
        config: A `parsl.Config`, or the path of a Python file that holds one (see
            `read_config`).
        label: Which of the executors in the configuration; needed if it has several.
        run_dir: Where Parsl makes the numbered directory of each run.
        resources: What is asked for where a launch says nothing.
        max_pools: How many shapes may have blocks at the same time.

    Raises:
        ValueError: There is no such label, or several executors and no label; names
            the ones there are. Or the resources are wrong.
    """

    def __init__(
        self,
        config: Config | str | os.PathLike[str],
        *,
        label: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        resources: Mapping[str, Any] | None = None,
        max_pools: int = 8,
    ) -> None:
        config, origin = _resolve(config)
        engines = {engine.label: engine for engine in config.executors}
        engine: ParslEngine = choose(engines, label, origin)
        kernel = _kernel(config, engine.label, run_dir)
        self._begin(kernel, Pools(engine, config, resources or {}, max_pools))

    @classmethod
    def from_config(
        cls,
        config: Config | str | os.PathLike[str],
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resources: Mapping[str, Any] | None = None,
        max_pools: int = 8,
    ) -> dict[str, ParslExecutor]:
        """Return an executor for each label of a configuration.

        They share one DataFlowKernel, which is cleaned up with the last of them.
        """
        config, _ = _resolve(config)
        kernel = _kernel(config, "parsl", run_dir)
        executors = {}
        for engine in config.executors:
            executor = cls.__new__(cls)
            executor._begin(kernel, Pools(engine, config, resources or {}, max_pools))
            executors[engine.label] = executor
        return executors

    @classmethod
    def local(
        cls,
        max_workers: int | None = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> ParslExecutor:
        """Return an executor for worker processes on this machine.

        Args:
            max_workers: How many; as many as this process has cores if None.
            run_dir: Where Parsl makes the numbered directory of each run.
        """
        return cls(local_config(workers=max_workers), run_dir=run_dir)

    def _begin(self, kernel: Kernel, pools: Pools) -> None:
        self._kernel = kernel
        self._pools = pools
        self._engine: Any = pools.usual.pattern
        self._lock = RLock()
        self._closed = False
        # Futures that are not done. When there are none and this is closed, the kernel
        # is released.
        self._pending: dict[Future[Any], Pool] = {}
        self._released = Event()
        # What the scheduler has said of scripts, and when.
        self._estimates: dict[str, tuple[float, datetime | None]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(label={self.label!r})"

    @property
    def label(self) -> str:
        """The label of the Parsl executor."""
        return str(self._engine.label)

    @property
    def max_workers(self) -> int | None:
        with self._lock:
            workers = [p.max_workers for p in self._pools if p.is_asked_for]
        known = [n for n in workers if n is not None]
        return sum(known) if len(known) == len(workers) else None

    def validate(self, **submit_kwargs: Any) -> None:
        with self._lock:
            pool, _ = self._read(submit_kwargs)
            self._pools.make_room(pool)
            pool.is_asked_for = True

    def _read(self, submit_kwargs: Mapping[str, Any]) -> tuple[Pool, Request]:
        pool, request = self._pools.read(submit_kwargs)
        check_address(self._engine, taker_of(self._engine))
        return pool, request

    def preview(self, **submit_kwargs: Any) -> str:
        with self._lock:
            pool, request = self._read(submit_kwargs)
            return preview(pool, self._kernel.directory(), request)

    def ask_scheduler(self, **submit_kwargs: Any) -> datetime | None:
        with self._lock:
            pool, _ = self._read(submit_kwargs)
            if pool.engine is not None:
                return None  # Its blocks have been accepted.
            plan = plan_block(pool, self._kernel.directory())
            asked, estimate = self._estimates.get(pool.label, (-math.inf, None))
        if plan is None or time.monotonic() - asked < ESTIMATE_AGE:
            return estimate
        provider, script = plan
        check_limits(provider, taker_of(self._engine))
        estimate = get_scheduler(scheduler_of(provider)).estimate(script.text)
        self._estimates[pool.label] = time.monotonic(), estimate
        return estimate

    def submit(self, fn: Any, /, *args: Any, **submit_kwargs: Any) -> Future[Any]:
        packed = cloudpickle.dumps((fn, args))
        with self._lock:
            pool, request = self._read(submit_kwargs)
            if self._closed:
                raise RuntimeError(
                    f"Cannot submit: Parsl executor {self.label!r} has been shut down."
                )
            leaving = self._pools.make_room(pool)
            if leaving is not None:
                self._kernel.drop(leaving)
            pool.is_asked_for = True
            pool.add_task()
            future = self._kernel.submit(
                self.label, pool, packed, request.specification
            )
            self._pending[future] = pool
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.pop(future).drop_task()
            finished = self._closed and not self._pending
        if finished:
            self._release()

    def job(self, future: Future[Any]) -> JobInfo | None:
        if not isinstance(future, TaskFuture) or future.engine is None:
            return None
        return asked(future.engine, future.answer)

    def cancel(self, future: Future[Any]) -> bool:
        with self._lock:
            pool = self._pending.get(future)
        if not future.cancel():
            return False
        with self._lock:
            if pool is not None and not pool.pending and not self._closed:
                self._kernel.drop(pool)
        return True

    def _release(self) -> None:
        self._kernel.release(self.label, self._pools)
        self._released.set()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        if not pending:
            self._release()
        if cancel_futures:
            for future in pending:
                self._cut_off(future)
        if wait:
            self._released.wait()
            self._kernel.join()

    def _cut_off(self, future: Future[Any]) -> None:
        """End the wait for a task, which Parsl may be running and cannot take back."""
        if future.cancel():
            return
        error = BrokenExecutor(
            f"The task was cut off: Parsl executor {self.label!r} was shut down "
            "without waiting for it."
        )
        with contextlib.suppress(InvalidStateError):  # It has just ended by itself.
            future.set_exception(error)


def _resolve(config: Config | str | os.PathLike[str]) -> tuple[Config, str]:
    """Return a configuration and what to call it."""
    if isinstance(config, Config):
        return config, "the Parsl config"
    if isinstance(config, str | os.PathLike):
        return read_config(config), f"the Parsl config {os.fspath(config)}"
    raise TypeError(
        "ParslExecutor needs a parsl.Config or the path of a Parsl config file, not "
        f"{config!r}."
    )


def choose(executors: Mapping[str, T], label: str | None, origin: str) -> T:
    """Return the one of this label, or the only one there is.

    Raises:
        ValueError: There is no such label, or several executors and no label.
    """
    if label is not None:
        if label not in executors:
            raise unknown_key(label, executors, f"label= for {origin}")
        return executors[label]
    if len(executors) > 1:
        raise ValueError(
            f"There are several executors in {origin}, so choose one with label=: "
            f"{', '.join(sorted(executors))}."
        )
    return next(iter(executors.values()))


def _kernel(
    config: Config, name: str, run_dir: str | os.PathLike[str] | None
) -> Kernel:
    if run_dir is not None:
        return Kernel(config, Path(run_dir), private=False)
    if config.run_dir != DEFAULT_RUN_DIR:
        return Kernel(config, Path(config.run_dir), private=False)
    # One of its own, because two kernels that start at once in the same directory may
    # choose the same number.
    unique = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    return Kernel(config, get_academy_home() / "parsl" / unique, private=True)
