"""The job scripts that Parsl's providers write: shown, and submitted as shown."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from parsl.jobs.states import JobState, JobStatus
from parsl.providers import CondorProvider, LocalProvider
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException

from academy.home import write_private


@dataclass(frozen=True)
class Script:
    """A job script, and the command that submits it.

    Attributes:
        text: all of the file.
        command: what the provider would run, such as "sbatch /path/of/the/script".
        path: of the file.
        stdout: path of what the job prints.
        stderr: path of what the job prints as errors.
    """

    text: str
    command: str
    path: str
    stdout: str
    stderr: str


def script_of(
    provider: Any, command: str, tasks_per_node: int, name: str, directory: str
) -> Script:
    """Return what `submit_script` submits, without submitting it.

    Args:
        provider: of a cluster, or of this machine; not changed.
        command: what the job runs.
        tasks_per_node: as for the provider's `submit`.
        name: of the job; the script says exactly this, without a time stamp.
        directory: where its script and outputs are.

    Raises:
        ValueError: A name or directory that does not fit into a command.
    """
    recorder = _named(provider, name, directory)
    with contextlib.suppress(Recorded):
        recorder.provider.submit(command, tasks_per_node, name)
    return recorder.script


def submit_script(
    provider: Any, command: str, tasks_per_node: int, name: str, directory: str
) -> str:
    """Submit the very script that `script_of` returns; return the job's id.

    Only its owner can read the script's file. The provider knows the job afterwards.

    Raises:
        ValueError: The scheduler refuses it; in its words.
        OSError: Its command cannot be run, or the script not be written.
    """
    recorder = _named(provider, name, directory)
    recorder.is_rehearsal = False
    try:
        job_id = recorder.provider.submit(command, tasks_per_node, name)
    except Recorded:
        return _start(provider, recorder.script)
    except subprocess.TimeoutExpired as e:
        raise TimeoutError(
            f"{recorder.script.command!r} said nothing for {e.timeout:g} s, which is "
            f"the cmd_timeout of {type(provider).__name__}; the job may be submitted."
        ) from e
    except SubmitException as e:
        raise recorder.refusal() from e
    if not job_id:
        raise recorder.refusal()
    known = provider.resources.get(job_id, {})
    for output in ("stdout", "stderr"):
        if f"job_{output}_path" in known:
            known[f"job_{output}_path"] = getattr(recorder.script, output)
    return str(job_id)


# Names and directories become part of commands for a shell and, unquoted, of
# directives. In paths, Slurm replaces what follows a %.
_PLAIN = re.compile(r"[\w.@+=:,/-]+")


def _named(provider: Any, name: str, directory: str) -> Recorder:
    for what, text in (("name", name), ("directory", directory)):
        if not _PLAIN.fullmatch(text):
            raise ValueError(
                f"A job script's {what} must consist of letters, digits and "
                f"{' '.join('_.@+=:,/-')}, unlike {text!r}."
            )
    recorder = Recorder(provider, name)
    recorder.provider.script_dir = os.path.abspath(directory)
    return recorder


def _write(script: Script) -> None:
    """Write a script's file at once or not at all."""
    os.makedirs(os.path.dirname(script.path), exist_ok=True)
    write_private(script.path, script.text)


# As LocalProvider does it, and with its files: "-" is the exit status of what runs.
_RUN = """
echo - >"$0.ec" && {
    { bash "$0" >"$0.out" 2>"$0.err"; echo $? >"$0.ec"; } </dev/null >/dev/null 2>&1 &
    echo $!
}
"""


def _start(provider: Any, script: Script) -> str:
    """Start a script on this machine; return the id of its process.

    It has a session of its own, so that it goes on when the one of this process ends.
    """
    command = ["/bin/bash", "-c", _RUN, script.path]
    done = subprocess.run(
        command, start_new_session=True, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{script.command!r} could not be started: {done.stderr.strip()}")
    job_id = done.stdout.strip()
    provider.resources[job_id] = {
        "job_id": job_id,
        "status": JobStatus(JobState.RUNNING),
        "remote_pid": int(job_id),
        "script_path": script.path,
    }
    return job_id


# --- between a provider and the scheduler's commands


class Recorded(BaseException):
    """A provider has come as far as it may, and handles exceptions no more."""


class _Interceptor(ClusterProvider):
    """Comes after a provider's class, which may ask its ancestors to run a command."""

    def execute_wait(self, cmd: str, timeout: float | None = None) -> Any:
        return vars(self)["execute_wait"](cmd, timeout)


@functools.cache
def _intercepted(kind: Any) -> Any:
    if issubclass(kind, ClusterProvider):
        return type(kind.__name__, (kind, _Interceptor), {})
    return kind


class Recorder:
    """A copy of a provider, whose submitting goes as far as it may and is kept.

    Args:
        provider: of a cluster, or of this machine.
        name: of the job, in place of that with a time stamp which Parsl makes.

    Attributes:
        provider: the copy. Its `submit` raises `Recorded` instead of submitting.
        script: what it would have submitted.
        is_rehearsal: set it to False to have the script written, and on a cluster
            submitted. On this machine `Recorded` is raised when it is written.

    Raises:
        ValueError: This kind of provider does more than submit a script.
    """

    script: Script

    def __init__(self, provider: Any, name: str | None = None) -> None:
        kind: Any = type(provider)
        self._is_cluster = issubclass(kind, ClusterProvider)
        if issubclass(kind, CondorProvider) or not (
            self._is_cluster or issubclass(kind, LocalProvider)
        ):
            raise ValueError(f"{kind.__name__} submits no script that could be shown.")
        self._original = provider
        self._name = name
        self._stamped = ""
        self._answer = (0, "", "")
        self.is_rehearsal = True
        self.provider = copy.copy(provider)
        self.provider.__class__ = _intercepted(kind)
        self.provider._write_submit_script = self._write_submit_script
        if self._is_cluster:
            self.provider.execute_wait = self._execute_wait

    def _rename(self, text: str) -> str:
        if self._name is None or not self._stamped:
            return text
        return text.replace(self._stamped, self._name)

    def _write_submit_script(self, content: str, path: str, *arguments: Any) -> None:
        rename = self._rename
        stdout, stderr = f"{path}.out", f"{path}.err"
        if self._is_cluster:
            self._stamped, configs = arguments
            stdout = configs.get("job_stdout_path", f"{path}.stdout")
            stderr = configs.get("job_stderr_path", f"{path}.stderr")
            configs = {
                k: rename(v) if isinstance(v, str) else v for k, v in configs.items()
            }
            arguments = rename(self._stamped), configs
        else:
            self._stamped = Path(path).stem
        with _nameless_file() as file:
            here = f"/dev/fd/{file.fileno()}"
            self._original._write_submit_script(rename(content), here, *arguments)
            file.seek(0)
            text = file.read()
        path = rename(path)
        self.script = Script(text, f"bash {path}", path, rename(stdout), rename(stderr))
        if not self.is_rehearsal:
            _write(self.script)
        if not self._is_cluster:
            # It has no step between writing and submitting.
            raise Recorded

    def _execute_wait(self, command: str, timeout: float | None = None) -> Any:
        command = self._rename(command)
        self.script = replace(self.script, command=command)
        if self.is_rehearsal:
            raise Recorded
        self._answer = self._original.execute_wait(command, timeout)
        return self._answer

    def refusal(self) -> Exception:
        """Make the error for a job that got no id."""
        status, stdout, stderr = self._answer
        words = stderr.strip() or stdout.strip() or f"status {status}, without a word"
        command = self.script.command
        if status in _NOT_RUN:
            return _NOT_RUN[status](f"{command!r} could not be run: {words}")
        if status == 0:
            return ValueError(f"{command!r} answered with no job id: {words}")
        return ValueError(f"The job was refused: {words} ({command})")


def _nameless_file() -> IO[str]:
    """Open a file that has no name, in memory where the system can do that.

    On a disk it would take longer than all the rest of a preview.
    """
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("script"), "w+")
    return tempfile.TemporaryFile("w+")


# What a shell's exit status says of its command.
# Source: https://www.gnu.org/software/bash/manual/html_node/Exit-Status.html
_NOT_RUN = {126: PermissionError, 127: FileNotFoundError}
