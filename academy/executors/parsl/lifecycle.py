"""Starting Parsl, and ending it whatever happens."""

from __future__ import annotations

import atexit
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel

from academy.executors.parsl.leftovers import LocalBlocks

logger = logging.getLogger(__name__)

# How long an interchange may take to answer.
COMMAND_TIMEOUT = 10.0


def start_kernel(config: Config) -> DataFlowKernel:
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
                logged(poller.close)
            for executor in getattr(kernel, "executors", {}).values():
                logged(partial(_discard, executor))
            raise


def add_executor(kernel: DataFlowKernel, executor: Any) -> None:
    """Start another executor in a kernel that runs, or leave nothing of it."""
    try:
        kernel.add_executors([executor])
    except BaseException:
        kernel.executors.pop(executor.label, None)
        logged(partial(_discard, executor))
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


def bound_commands(executor: Any) -> None:
    """Let an interchange that hangs fail what asks it, instead of hanging that too."""
    client = getattr(executor, "command_client", None)
    if client is not None:
        client.zmq_socket.rcvtimeo = int(COMMAND_TIMEOUT * 1000)
        client.zmq_socket.sndtimeo = int(COMMAND_TIMEOUT * 1000)


def remove_executor(kernel: DataFlowKernel, executor: Any) -> None:
    """End one executor of a kernel that goes on, with its jobs."""
    blocks = LocalBlocks([executor])
    with contextlib.suppress(ValueError):
        kernel.job_status_poller._executors.remove(executor)
    if hasattr(executor, "blocks_to_job_id"):
        # The poller may be about to submit one more.
        executor._executor_bad_state.set()
        logged(partial(_cancel_jobs, executor))
    client = getattr(executor, "command_client", None)
    # The poller may be asking the interchange right now.
    with client._lock if client is not None else contextlib.nullcontext():
        logged(executor.shutdown)
    logged(blocks.end)
    del kernel.executors[executor.label]


def _cancel_jobs(executor: Any) -> None:
    with getattr(executor, "launching", contextlib.nullcontext()):
        jobs = _open_jobs(executor)
    for _ in range(2):  # A scheduler that is busy is asked again.
        if not jobs or all(executor.provider.cancel(jobs)):
            return


def _open_jobs(executor: Any) -> list[str]:
    blocks = executor.status_facade
    over = {
        job
        for block, job in executor.blocks_to_job_id.items()
        if block in blocks and blocks[block].terminal
    }
    jobs = set(executor.blocks_to_job_id.values())
    if executor.provider is not None:
        # Where a job is noted first.
        jobs |= getattr(executor.provider, "resources", {}).keys()
    return sorted(jobs - over)


def end_kernel(kernel: DataFlowKernel) -> None:
    """Clean a kernel up, and do what its clean-up does not."""
    blocks = LocalBlocks(kernel.executors.values())
    is_clean = logged(kernel.cleanup)
    _finish(kernel, is_clean)
    logged(blocks.end)


def _finish(kernel: DataFlowKernel, is_clean: bool) -> None:
    """Do what a clean-up did not, since it ends at its first error.

    It leaves the jobs of an executor in its bad state on purpose, and those that the
    scheduler was too busy to cancel.
    """
    for executor in list[Any](kernel.executors.values()):
        if hasattr(executor, "blocks_to_job_id"):
            logged(partial(_cancel_jobs, executor))
        interchange = getattr(executor, "interchange_proc", None)
        has_ended = interchange is not None and interchange.poll() is not None
        if not is_clean and not has_ended:
            logged(executor.shutdown)
    kernel._task_launch_pool.shutdown()
    atexit.unregister(kernel.atexit_cleanup)


def logged(step: Callable[[], object]) -> bool:
    """Take a step of a clean-up that goes on whatever happens; tell if it succeeded."""
    try:
        step()
    except Exception:
        logger.exception("while ending Parsl")
        return False
    return True
