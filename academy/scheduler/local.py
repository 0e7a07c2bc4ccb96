"""This machine: a job is a process, as Parsl's LocalProvider starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from academy.scheduler.base import Limits, Scheduler
from academy.scheduler.command import ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.times import c_time

# LocalProvider runs `bash SCRIPT 1>SCRIPT.out 2>SCRIPT.err ; echo $? > SCRIPT.ec`.
_COMMAND = re.compile(r"\bbash (?P<script>\S.*?) 1>(?P=script)\.out 2>")


@dataclass(frozen=True)
class _Seen:
    """What a process was when it was seen alive, for it leaves nothing behind."""

    started: datetime | None
    script: str | None


class Local(Scheduler):
    """Processes of this machine, each with its process group.

    Unlike others it remembers: which process had an id when it was asked about first,
    since ids come again, and where that one writes its exit code.
    """

    name = "local"

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        pids = [job for job in ids if job.isdigit()]
        alive = _processes(pids)
        return {job: self._job(job, alive.get(job)) for job in pids}

    def cancel(self, ids: Iterable[str]) -> None:
        pids = [job for job in ids if job.isdigit()]
        for job, process in _processes(pids).items():
            if self._seen.get(job, process).started == process.started:
                with contextlib.suppress(ProcessLookupError):
                    group = os.getpgid(int(job))
                    if group != os.getpgrp():
                        os.killpg(group, signal.SIGTERM)
                    else:
                        os.kill(int(job), signal.SIGTERM)

    def limits(self, queue: str | None = None) -> Limits | None:
        # Of nodes there is none: in a batch job, launchers reach its other nodes.
        return Limits("", cpus_per_node=os.cpu_count())

    def _job(self, job_id: str, process: _Seen | None) -> JobInfo:
        seen = self._seen.get(job_id, process)
        if seen is None:
            # Nobody knows what it was, but it is no more.
            return JobInfo("local", job_id, JobState.COMPLETED, "the process has ended")
        self._seen[job_id] = seen
        state, code = JobState.RUNNING, None
        if process is None or process.started != seen.started:
            state, code = _end(seen.script)
        return JobInfo(
            "local",
            job_id,
            state,
            "killed" if state is JobState.CANCELLED else "",
            (socket.gethostname(),),
            seen.started,
            seen.started,
            None,
            code,
            f"{seen.script}.out" if seen.script else None,
            f"{seen.script}.err" if seen.script else None,
        )


def _processes(pids: Sequence[str]) -> dict[str, _Seen]:
    """Return those of the processes that are alive."""
    if not pids:
        return {}
    # The start is always 24 characters: "Sun Nov 22 17:35:00 2026".
    answer = ask("ps", "-ww", "-o", "pid=,stat=,lstart=,command=", "-p", ",".join(pids))
    alive = {}
    for line in answer.stdout.splitlines():
        pid, state, rest = line.split(maxsplit=2)
        if not state.startswith("Z"):  # Ended, and its parent has not looked yet.
            match = _COMMAND.search(rest[24:])
            alive[pid] = _Seen(c_time(rest[:24]), match["script"] if match else None)
    return alive


def _end(script: str | None) -> tuple[JobState, int | None]:
    if script is None:
        return JobState.COMPLETED, None
    try:
        written = Path(f"{script}.ec").read_text().strip()
    except OSError:
        return JobState.COMPLETED, None
    if not written.isdigit():  # Killed together with the shell that would write it.
        return JobState.CANCELLED, None
    return (JobState.FAILED if int(written) else JobState.COMPLETED), int(written)
