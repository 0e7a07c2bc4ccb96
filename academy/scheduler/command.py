"""Running a scheduler's commands: no shell, no locale, never for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from academy.exception import AcademyError

# What people set to see tables in their own way; everything else is left as it is.
# Source: https://slurm.schedmd.com/squeue.html (environment variables)
# Source: https://slurm.schedmd.com/sacct.html (environment variables)
# Source: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=variables-environment-variable-reference
_FORMATTING = (
    *("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "LSB_BJOBS_"),
    *("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN"),
)


class SchedulerError(AcademyError):
    """A command of a scheduler did not do what it was asked.

    Attributes:
        command: its name.
        reason: what it printed, or why it could not be run.
    """

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(command, reason)
        self.command = command
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.command}: {self.reason}"


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Attributes:
        command: its name.
        status: its exit status.
        stdout: all that it printed.
        stderr: the same of its errors, without white space around it.
    """

    command: str
    status: int
    stdout: str
    stderr: str

    def error(self) -> SchedulerError:
        """Return the error to raise if this is not the answer to its question."""
        said = self.stderr or self.stdout.strip() or "it printed nothing"
        return SchedulerError(self.command, f"status {self.status}: {said[-2000:]}")


def ask(*command: str, stdin: str = "", timeout: float = 60.0) -> Answer:
    """Run a command, and return what it says, whatever its exit status.

    Args:
        command: its name, to be found on PATH, and its arguments.
        stdin: what it reads.
        timeout: seconds after which it is killed, with all that it has started.

    Raises:
        SchedulerError: It cannot be run, or did not end in time.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FORMATTING)
    }
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,  # To be killed together with what it starts.
        )
    except OSError as error:
        raise SchedulerError(command[0], _why_not(command, error)) from error
    try:
        stdout, stderr = process.communicate(stdin, timeout)
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(
            command[0], f"no answer within {timeout:g} s, so it was killed"
        ) from error
    finally:
        _end(process)
    return Answer(command[0], process.returncode, stdout, stderr.strip())


def _why_not(command: Sequence[str], error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            "there is no such command on PATH. Is this a login node of the cluster, "
            "and does its scheduler need a module to be loaded?"
        )
    return str(error)


def _end(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
