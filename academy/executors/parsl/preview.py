"""What Parsl would submit for a block of workers, before it does."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from glob import glob
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.providers import CondorProvider, LocalProvider
from parsl.providers.cluster_provider import ClusterProvider

from academy.executors.parsl.config import fresh_executor
from academy.executors.parsl.tasks import NATIVE

UNKNOWN_PORT = "PORT"


def preview(
    executor: Any, running: Any | None, run_dir: Path, specification: dict[str, Any]
) -> str:
    """Show the batch script of the next block, and what goes with each task.

    Parsl writes the script: its executor composes the launch command, its provider
    fills its own template, and the file it writes is read back. Only the command that
    would submit it is kept from running. The script of a real block differs in the
    time stamp of its name, and before the executor has started, in the interchange's
    port, which nobody knows (shown as PORT).

    Args:
        executor: The Parsl executor as configured.
        running: The same executor as started, if it is.
        run_dir: Where Parsl makes the numbered directory of a run.
        specification: What goes with the task.
    """
    lines = [f"# Parsl executor {executor.label!r}: {type(executor).__name__}"]
    if isinstance(executor, HighThroughputExecutor):
        lines += _block(executor, running, run_dir)
    elif getattr(executor, "provider", None) is not None:
        lines.append(f"# blocks from: {executor.provider!r}")
    lines.append(f"# with each task: {NATIVE}={specification!r}")
    return "\n".join(lines) + "\n"


def _block(executor: Any, running: Any | None, run_dir: Path) -> list[str]:
    if isinstance(executor.worker_port, int):
        port: object = executor.worker_port
    else:
        port = UNKNOWN_PORT
    block = "0"
    fresh: Any = fresh_executor(executor)
    if running is not None:
        fresh.run_dir = running.run_dir
        fresh.launch_cmd = running.launch_cmd
        block = str(running._block_id_counter.count)
    else:
        fresh.run_dir = _next_run(run_dir)
        fresh.cert_dir = f"{fresh.logdir}/certificates" if fresh.encrypted else None
        fresh.logconf_path = None
        fresh.worker_port = port
        fresh.initialize_scaling()
    provider = fresh.provider
    if not isinstance(provider, ClusterProvider | LocalProvider) or isinstance(
        provider, CondorProvider
    ):
        # There is no script, or writing it is not all that comes before submitting.
        return [f"# blocks from: {provider!r}", fresh._get_launch_command(block)]
    recorder = _recorder(provider)
    recorder.script_dir = os.path.join(fresh.run_dir, "submit_scripts")
    fresh._provider = recorder
    with contextlib.suppress(_Recorded):
        fresh._launch_block(block)
    return [f"# {recorder.command}", recorder.script]


def _next_run(run_dir: Path) -> str:
    """Predict the directory that Parsl makes for its next run."""
    taken = [int(Path(p).name) for p in glob(f"{run_dir}/[0-9]*[0-9]")]
    return str(run_dir.absolute() / f"{max(taken, default=-1) + 1:03}")


class _Recorded(BaseException):
    """A provider has come as far as it may, and handles exceptions no more."""


class _Recorder(ClusterProvider):
    """Stands between a provider's class and the scheduler's commands."""

    def execute_wait(self, cmd: str, timeout: float | None = None) -> None:
        self.command = cmd
        raise _Recorded


def _recorder(provider: Any) -> Any:
    """Return a copy of a provider that keeps the script and the submit command.

    A provider of a cluster calls execute_wait, its own or its ancestor's; others have
    no step between writing the script and submitting it.
    """
    recorder = copy.copy(provider)
    kind = type(provider)
    if isinstance(provider, ClusterProvider):
        recorder.__class__ = type(kind.__name__, (kind, _Recorder), {})
        recorder.execute_wait = _Recorder.execute_wait.__get__(recorder)

    def write(content: str, path: str, *arguments: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="academy-") as directory:
            file = Path(directory, "script")
            kind._write_submit_script(provider, content, str(file), *arguments)
            recorder.script = file.read_text()
        if not isinstance(provider, ClusterProvider):
            recorder.command = f"bash {path}"
            raise _Recorded

    recorder._write_submit_script = write
    return recorder
