"""The thread that a DataFlowKernel belongs to."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from functools import partial
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel

from academy.executors.parsl.config import fresh_config
from academy.executors.parsl.future import TaskFuture
from academy.executors.parsl.lifecycle import (
    add_executor,
    bound_commands,
    end_kernel,
    logged,
    remove_executor,
    start_kernel,
)
from academy.executors.parsl.losses import InterchangeLost, translate
from academy.executors.parsl.pools import Pool
from academy.executors.parsl.tasks import NATIVE, run_task
from academy.home import private_directory

logger = logging.getLogger(__name__)

# How often to look whether interchanges are alive and pools in use; Parsl does not.
LOOK_INTERVAL = 1.0


class Run:
    """One thread that starts a DataFlowKernel, feeds it, and cleans it up.

    It lives as long as the kernel, since the system ends an interchange together with
    the very thread that has started it.

    Args:
        config: The user's configuration, of which only copies are started.
        run_dir: Where Parsl makes the numbered directory of this run.
        private: Whether run_dir is ours, to be made unreadable for others.
    """

    def __init__(self, config: Config, run_dir: Path, private: bool) -> None:
        self.thread = threading.Thread(
            target=self._live, name=f"academy-parsl-{run_dir.name}", daemon=True
        )
        self._steps: queue.SimpleQueue[Callable[[], object] | None]
        self._steps = queue.SimpleQueue()
        self._config = config
        self._run_dir = run_dir
        self._private = private
        self._kernel: DataFlowKernel | None = None
        self._stopping = False
        # Those that have an executor which runs.
        self._pools: list[Pool] = []
        # What Parsl has been given and has not answered.
        self._outstanding: set[Future[Any]] = set()

    # --- from other threads

    @property
    def directory(self) -> str | None:
        """The numbered directory, once Parsl has made it."""
        kernel = self._kernel
        return None if kernel is None else str(kernel.run_dir)

    def submit(
        self,
        pool: Pool,
        packed: bytes,
        specification: dict[str, Any],
        future: TaskFuture,
    ) -> None:
        """Queue a task."""
        step = partial(self._hand_over, pool, packed, specification, future)
        self._steps.put(step)

    def drop(self, pools: Iterable[Pool], done: Callable[[], object]) -> None:
        """Queue the end of pools that nobody needs now."""
        self._steps.put(partial(self._drop, list(pools), done))

    def end(self) -> None:
        """Let it end after what is queued."""
        self._steps.put(None)

    # --- in its own

    def _live(self) -> None:
        # A program that ends without a shutdown still cancels its blocks.
        atexit.register(self._stop)
        try:
            self._feed()
        finally:
            self._close()
            atexit.unregister(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self.end()
        self.thread.join()

    def _feed(self) -> None:
        looked = time.monotonic()
        while not self._stopping:
            with contextlib.suppress(queue.Empty):
                step = self._steps.get(timeout=LOOK_INTERVAL)
                if step is None:
                    return
                step()
            if time.monotonic() - looked >= LOOK_INTERVAL:
                logged(self._look)
                looked = time.monotonic()

    def _hand_over(
        self,
        pool: Pool,
        packed: bytes,
        specification: dict[str, Any],
        future: TaskFuture,
    ) -> None:
        self._outstanding.add(future)
        future.add_done_callback(self._outstanding.discard)
        try:
            kernel = None if future.cancelled() else self._started(pool)
            if not future.given_to(pool.engine) or kernel is None:
                return
            answer = kernel.submit(
                run_task,
                app_args=(packed,),
                executors=[pool.label],
                cache=False,
                ignore_for_cache=None,
                app_kwargs={NATIVE: specification} if specification else {},
            )
        except Exception as e:  # For the one who waits for the future.
            _settle(future, e)
        else:
            future.answer = answer
            answer.add_done_callback(partial(_pass_on, future, pool.engine))

    def _started(self, pool: Pool) -> DataFlowKernel:
        """Return the kernel with an executor of this pool that takes tasks."""
        kernel, engine = self._kernel, pool.engine
        if kernel is not None and engine is not None:
            if not getattr(engine, "bad_state_is_set", False):
                return kernel
            # Parsl would refuse this task and all later ones.
            self._remove(pool)
        fresh = pool.fresh()
        if kernel is None:
            if self._private:
                private_directory(self._run_dir)
            kernel = start_kernel(fresh_config(self._config, [fresh], self._run_dir))
            self._kernel = kernel
        else:
            add_executor(kernel, fresh)
        bound_commands(fresh)
        pool.engine = fresh
        self._pools.append(pool)
        logger.info("started Parsl executor %s in %s", pool.label, kernel.run_dir)
        return kernel

    def _remove(self, pool: Pool) -> None:
        kernel, engine = self._kernel, pool.engine
        if kernel is None or engine is None:
            return
        self._pools.remove(pool)
        pool.ended()
        remove_executor(kernel, engine)
        logger.info("ended Parsl executor %s", pool.label)

    def _drop(self, pools: Iterable[Pool], done: Callable[[], object]) -> None:
        for pool in pools:
            logged(partial(self._remove, pool))
            pool.is_leaving = False
        done()

    def _look(self) -> None:
        """End executors that have failed, and pools that nobody has used for long."""
        for pool in list(self._pools):
            engine: Any = pool.engine
            _check_interchange(engine)
            idle = time.monotonic() - pool.idle_since
            if getattr(engine, "bad_state_is_set", False):
                logger.warning("Parsl executor %s has failed", pool.label)
                self._remove(pool)
            elif (
                pool.block is not None
                and not pool.pending
                and idle > self._config.max_idletime
            ):
                self._remove(pool)

    def _close(self) -> None:
        for pool in self._pools:
            logged(partial(_check_interchange, pool.engine))
        if self._kernel is not None:
            end_kernel(self._kernel)
        for pool in self._pools:
            pool.ended()
        for future in list(self._outstanding):
            _settle(
                future, BrokenExecutor("The task was cut off by the executor's end.")
            )


def _check_interchange(engine: Any) -> None:
    """Fail the tasks of an executor whose interchange has died."""
    interchange = getattr(engine, "interchange_proc", None)
    if interchange is None or interchange.poll() is None or engine.bad_state_is_set:
        return
    engine.command_client.ok = False  # Commands fail instead of waiting.
    engine.set_bad_state_and_fail_all(
        InterchangeLost(
            f"the interchange of Parsl executor {engine.label!r} (process "
            f"{interchange.pid}) ended with status {interchange.returncode}; "
            f"its log is {engine.logdir}/interchange.log"
        )
    )


# --- futures


def _pass_on(future: TaskFuture, engine: Any, answer: Future[Any]) -> None:
    error = answer.exception()
    if error is not None:
        translate(error, engine, answer, partial(_settle, future))
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(answer.result())


def _settle(future: Future[Any], error: BaseException) -> None:
    """Fail a future, unless somebody was faster."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)
