"""One DataFlowKernel and the thread that it belongs to."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors.base import ParslExecutor as ParslEngine

from academy.executors.parsl.config import fresh_config, fresh_executor
from academy.executors.parsl.future import TaskFuture
from academy.executors.parsl.leftovers import LocalBlocks
from academy.executors.parsl.tasks import NATIVE, run_task
from academy.home import private_directory

logger = logging.getLogger(__name__)

# How often to look whether the interchanges are alive; Parsl does not.
LOOK_INTERVAL = 1.0
# How long an interchange may take to answer.
COMMAND_TIMEOUT = 10.0


@dataclass(frozen=True)
class _Task:
    label: str
    packed: bytes
    specification: dict[str, Any]
    future: TaskFuture


class Kernel:
    """The DataFlowKernel that the executors of one Parsl configuration share.

    It starts with the first task, and with each executor's first task that executor is
    added: a label that nobody uses costs no job. When the last user has released it, it
    is cleaned up. A task that comes later starts another one.

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
        self._run: _Run | None = None
        self._ended: _Run | None = None

    def submit(
        self, label: str, packed: bytes, specification: dict[str, Any]
    ) -> Future[Any]:
        """Queue a task; the label's user must release it after its last task."""
        future = TaskFuture()
        with self._lock:
            if self._run is None:
                self._run = _Run(self.config, self.run_dir, self._private)
                self._run.thread.start()
            self._users.add(label)
            self._run.inbox.put(_Task(label, packed, specification, future))
        return future

    def running(self, label: str) -> Any | None:
        """Return the started Parsl executor of this label, if there is one."""
        run = self._run
        return run.executor(label) if run is not None else None

    def release(self, label: str) -> None:
        """Give up the interest of a label, whose futures are all done."""
        with self._lock:
            self._users.discard(label)
            if self._users or self._run is None:
                return
            self._run.inbox.put(None)
            self._ended, self._run = self._run, None

    def join(self) -> None:
        """Wait for the end of the run that was released last, if any."""
        ended = self._ended
        if ended is not None and ended.thread is not threading.current_thread():
            ended.thread.join()


class _Run:
    """One thread that starts a DataFlowKernel, feeds it, and cleans it up.

    It lives as long as the kernel, since the system ends the interchange together with
    the very thread that has started it.
    """

    def __init__(self, config: Config, run_dir: Path, private: bool) -> None:
        self.thread = threading.Thread(
            target=self._live, name=f"academy-parsl-{run_dir.name}", daemon=True
        )
        self.inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._config = config
        self._run_dir = run_dir
        self._private = private
        self._kernel: DataFlowKernel | None = None
        self._stopping = False
        # Labels of executors that have started, so that others may look at them.
        self._ready: set[str] = set()
        # What Parsl has been given and has not answered.
        self._outstanding: set[Future[Any]] = set()

    def executor(self, label: str) -> Any | None:
        kernel = self._kernel
        if kernel is None or label not in self._ready:
            return None
        return kernel.executors.get(label)

    def _live(self) -> None:
        # A program that ends without a shutdown still cancels its blocks.
        atexit.register(self._stop)
        try:
            for task in iter(self._next, None):
                self._hand_over(task)
        finally:
            self._close()
            atexit.unregister(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        self.inbox.put(None)
        self.thread.join()

    def _next(self) -> _Task | None:
        while not self._stopping:
            try:
                return self.inbox.get(timeout=LOOK_INTERVAL)
            except queue.Empty:
                _logged(self._look)
        return None

    def _hand_over(self, task: _Task) -> None:
        future = task.future
        self._outstanding.add(future)
        future.add_done_callback(self._outstanding.discard)
        kwargs = {NATIVE: task.specification} if task.specification else {}
        try:
            kernel = None if future.cancelled() else self._started(task.label)
            if not future.given_to(self.executor(task.label)) or kernel is None:
                return
            answer = kernel.submit(
                run_task,
                app_args=(task.packed,),
                executors=[task.label],
                cache=False,
                ignore_for_cache=None,
                app_kwargs=kwargs,
            )
        except Exception as e:  # For the one who waits for the future.
            _settle(future, e)
        else:
            answer.add_done_callback(partial(_pass_on, future))

    def _started(self, label: str) -> DataFlowKernel:
        """Return the kernel with an executor of this label that takes tasks."""
        kernel, executor = self._kernel, self.executor(label)
        if kernel is not None and executor is not None:
            if not getattr(executor, "bad_state_is_set", False):
                return kernel
            # Parsl would refuse this task and all later ones.
            logger.warning("Parsl executor %s has failed and starts anew", label)
            self._ready.discard(label)
            _remove_executor(kernel, executor)
        [executor] = (e for e in self._config.executors if e.label == label)
        fresh = fresh_executor(executor)
        if kernel is None:
            if self._private:
                private_directory(self._run_dir)
            kernel = _start_kernel(fresh_config(self._config, [fresh], self._run_dir))
            self._kernel = kernel
        else:
            _add_executor(kernel, fresh)
        _bound_commands(fresh)
        self._ready.add(label)
        logger.info("started Parsl executor %s in %s", label, kernel.run_dir)
        return kernel

    def _look(self) -> None:
        """Fail the tasks of an executor whose interchange has died."""
        executors = self._kernel.executors if self._kernel is not None else {}
        for executor in list[Any](executors.values()):
            interchange = getattr(executor, "interchange_proc", None)
            if interchange is None or interchange.poll() is None:
                continue
            if executor.bad_state_is_set:
                continue
            executor.command_client.ok = False  # Commands fail instead of waiting.
            executor.set_bad_state_and_fail_all(
                BrokenExecutor(
                    f"The interchange of Parsl executor {executor.label!r} (process "
                    f"{interchange.pid}) ended with status {interchange.returncode}; "
                    f"its log is {executor.logdir}/interchange.log"
                )
            )

    def _close(self) -> None:
        kernel = self._kernel
        if kernel is not None:
            blocks = LocalBlocks(kernel.executors.values())
            _logged(self._look)
            is_clean = _logged(kernel.cleanup)
            _finish(kernel, is_clean)
            _logged(blocks.end)
        for future in list(self._outstanding):
            _settle(
                future, BrokenExecutor("The task was cut off by the executor's end.")
            )


# --- starting and ending Parsl


def _start_kernel(config: Config) -> DataFlowKernel:
    """Start a DataFlowKernel, or leave nothing of it."""
    while True:
        kernel = DataFlowKernel.__new__(DataFlowKernel)
        try:
            # Its parts are needed if it fails.
            kernel.__init__(config)  # type: ignore[misc]
            return kernel
        except BaseException as e:
            if isinstance(e, FileExistsError) and not hasattr(kernel, "run_dir"):
                continue  # Another kernel took the same number for its directory.
            if (poller := getattr(kernel, "job_status_poller", None)) is not None:
                _logged(poller.close)
            for executor in getattr(kernel, "executors", {}).values():
                _logged(partial(_discard, executor))
            raise


def _add_executor(kernel: DataFlowKernel, executor: ParslEngine) -> None:
    try:
        kernel.add_executors([executor])
    except BaseException:
        kernel.executors.pop(executor.label, None)
        _logged(partial(_discard, executor))
        raise


def _discard(executor: Any) -> None:
    """End what there is of an executor that did not start."""
    if getattr(executor, "interchange_proc", executor) is not None:
        executor.shutdown()
        return
    # Without an interchange its shutdown does nothing.
    executor._result_queue_thread_exit.set()
    if executor._result_queue_thread is not None:
        executor._result_queue_thread.join()
    for part in ("outgoing_q", "command_client"):
        if hasattr(executor, part):
            getattr(executor, part).close()


def _bound_commands(executor: Any) -> None:
    """Let an interchange that hangs fail what asks it, instead of hanging that too."""
    client = getattr(executor, "command_client", None)
    if client is not None:
        client.zmq_socket.rcvtimeo = int(COMMAND_TIMEOUT * 1000)
        client.zmq_socket.sndtimeo = int(COMMAND_TIMEOUT * 1000)


def _remove_executor(kernel: DataFlowKernel, executor: Any) -> None:
    """End an executor in its bad state, of which Parsl would keep the jobs."""
    blocks = LocalBlocks([executor])
    with contextlib.suppress(ValueError):
        kernel.job_status_poller._executors.remove(executor)
    _logged(partial(_cancel_jobs, executor))
    client = getattr(executor, "command_client", None)
    # The poller may be asking the interchange right now.
    with client._lock if client is not None else contextlib.nullcontext():
        _logged(executor.shutdown)
    _logged(blocks.end)
    del kernel.executors[executor.label]


def _cancel_jobs(executor: Any) -> None:
    status = executor.status_facade
    jobs = [
        job
        for block, job in executor.blocks_to_job_id.items()
        if block not in status or not status[block].terminal
    ]
    if jobs:
        executor.provider.cancel(jobs)


def _finish(kernel: DataFlowKernel, is_clean: bool) -> None:
    """Do what a clean-up did not, since it ends at its first error.

    It leaves the jobs of an executor in its bad state on purpose, and those that the
    scheduler was too busy to cancel.
    """
    for executor in list[Any](kernel.executors.values()):
        if hasattr(executor, "blocks_to_job_id"):
            _logged(partial(_cancel_jobs, executor))
        interchange = getattr(executor, "interchange_proc", None)
        has_ended = interchange is not None and interchange.poll() is not None
        if not is_clean and not has_ended:
            _logged(executor.shutdown)
    kernel._task_launch_pool.shutdown()
    atexit.unregister(kernel.atexit_cleanup)


# --- futures


def _pass_on(future: Future[Any], answer: Future[Any]) -> None:
    error = answer.exception()
    if error is not None:
        _settle(future, error)
    else:
        with contextlib.suppress(InvalidStateError):
            future.set_result(answer.result())


def _settle(future: Future[Any], error: BaseException) -> None:
    """Fail a future, unless somebody was faster."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def _logged(step: Callable[[], object]) -> bool:
    """Take a step of a clean-up that goes on whatever happens; tell if it succeeded."""
    try:
        step()
    except Exception:
        logger.exception("while ending Parsl")
        return False
    return True
