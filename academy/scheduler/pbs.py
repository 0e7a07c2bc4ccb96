"""PBS Professional and OpenPBS: qstat, qdel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from academy.scheduler.base import Limits, Scheduler, no_such
from academy.scheduler.command import Answer, ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.times import c_time, seconds

# Source: https://github.com/openpbs/openpbs/blob/master/doc/man1/qstat.1B
_STATES = {
    "Q": JobState.PENDING,
    "H": JobState.PENDING,
    "W": JobState.PENDING,
    "T": JobState.PENDING,
    "M": JobState.PENDING,  # Moved to another server.
    "B": JobState.RUNNING,  # An array of jobs of which some run.
    "R": JobState.RUNNING,
    "E": JobState.RUNNING,
    "S": JobState.RUNNING,
    "U": JobState.RUNNING,
}
_OVER = ("F", "X")
# Source: https://github.com/openpbs/openpbs/blob/master/src/include/job.h
_TERMINATED = "91"
_STATUSES = {
    -9: (JobState.FAILED, "its output files could not be opened"),
    -20: (JobState.NODE_FAIL, "the connection to its first node failed"),
    -24: (JobState.FAILED, "it used more CPUs than it had asked for"),
    -25: (JobState.FAILED, "it used more CPUs than it had asked for"),
    -26: (JobState.OUT_OF_MEMORY, "it took more virtual memory than it had asked for"),
    -27: (JobState.OUT_OF_MEMORY, "it took more memory than it had asked for"),
    -28: (JobState.FAILED, "it took more CPU time than it had asked for"),
    -29: (JobState.TIMEOUT, "it reached its walltime"),
    -30: (JobState.NODE_FAIL, "its nodes could not be joined"),
}
# Exit statuses of the commands. Source: pbs_error.h of OpenPBS, less 15000.
_UNKNOWN_JOB = 153
_HAS_FINISHED = 35
_NO_HISTORY = 36

# What the scheduler writes into the comment of a job that waits.
# Source: https://github.com/openpbs/openpbs/blob/master/src/scheduler/job_info.cpp
_HOPELESS = re.compile(r"^Can Never Run|[Hh]eld, too many failed attempts")


class PBS(Scheduler):
    """PBS Professional 14.1 and later, of which OpenPBS is one."""

    name = "pbs"

    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        shown = self._show("Jobs", ["-x", "-f"], ids)
        return {
            wanted: self._job(wanted, shown[found])
            for wanted, found in _pairs(ids, shown)
        }

    def cancel(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        answer = ask("qdel", *wanted)
        if answer.status not in (0, _UNKNOWN_JOB, _HAS_FINISHED):
            raise answer.error()

    def limits(self, queue: str | None = None) -> Limits | None:
        queues = self._show("Queue", ["-Q", "-f"])
        if queue is None:
            servers = self._show("Server", ["-B", "-f"]).values()
            queue = next(
                (s["default_queue"] for s in servers if "default_queue" in s), ""
            )
            if queue not in queues:
                return None
        if queue not in queues:
            raise ValueError(no_such("queue", queue, queues))
        most = _part(queues[queue], "resources_max")
        return Limits(
            queue,
            seconds(str(most.get("walltime", ""))),
            _whole(most.get("nodect")),
        )

    def hopeless(self, reason: str) -> bool:
        return _HOPELESS.search(reason) is not None

    def _show(
        self, kind: str, options: Sequence[str], names: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        """Return the attributes of jobs, queues or servers by their names."""
        answer = ask("qstat", *options, "-F", "json", *names)
        if answer.status == _NO_HISTORY or "job history" in answer.stderr:
            options = [option for option in options if option != "-x"]
            answer = ask("qstat", *options, "-F", "json", *names)
        if answer.status in (_UNKNOWN_JOB, _HAS_FINISHED) and not answer.stdout:
            return {}
        try:
            shown: dict[str, dict[str, Any]] = json.loads(answer.stdout).get(kind, {})
        except ValueError:
            # It does not quote all that the environment of a job may contain.
            answer = ask("qstat", *options, *names)
            shown = dict(attributes(answer.stdout))
        self._check(answer)
        return shown

    def _check(self, answer: Answer) -> None:
        # That some are unknown is in the answer about the others.
        if answer.status not in (0, _UNKNOWN_JOB, _HAS_FINISHED):
            raise answer.error()

    def _job(self, job_id: str, job: Mapping[str, Any]) -> JobInfo:
        state, reason, code = self._end(job)
        started = c_time(str(job.get("stime", "")))
        used = seconds(str(_part(job, "resources_used").get("walltime", "")))
        most = seconds(str(_part(job, "Resource_List").get("walltime", "")))
        lasts = used if state.is_over else most
        ends = c_time(str(job.get("obittime", ""))) if state.is_over else None
        if ends is None and started is not None and lasts is not None:
            ends = started + timedelta(seconds=lasts)
        return JobInfo(
            self.name,
            job_id,
            state,
            reason or str(job.get("comment", "")),
            nodes(str(job.get("exec_host", ""))),
            c_time(str(job.get("ctime", job.get("qtime", "")))),
            started,
            ends,
            code,
            path(job.get("Output_Path")),
            path(job.get("Error_Path")),
        )

    def _end(self, job: Mapping[str, Any]) -> tuple[JobState, str, int | None]:
        """Return the state, its reason if another than the comment, the exit code."""
        letter = str(job.get("job_state", ""))
        if letter not in _OVER:
            return _STATES.get(letter, JobState.UNKNOWN), "", None
        status = _whole(job.get("Exit_status"))
        if status is None:  # It never ran.
            return JobState.CANCELLED, "", None
        if status < 0:
            state, reason = _STATUSES.get(
                status, (JobState.FAILED, f"PBS could not run it: Exit_status {status}")
            )
            return state, reason, None
        # Above 256 is a signal. Shells report theirs in the same way, less 128.
        code = 128 + status - 256 if status > 256 else status
        if str(job.get("substate")) == _TERMINATED:
            return JobState.CANCELLED, "", code
        return (JobState.FAILED if status else JobState.COMPLETED), "", code


def attributes(text: str) -> dict[str, dict[str, str]]:
    """Read what `qstat -f` shows without JSON: names, and `attribute = value` lines."""
    shown: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    # A long line is broken, and goes on after a tab.
    for line in text.replace("\n\t", "").splitlines():
        if (title := re.match(r"(?:Job Id|Queue|Server): *(\S+)", line)) is not None:
            current = shown.setdefault(title[1], {})
        elif (pair := re.match(r"\s+([\w.]+) = (.*)", line)) is not None:
            current[pair[1]] = pair[2]
    return shown


def nodes(exec_host: str) -> tuple[str, ...]:
    """Return the nodes of `n1/0*8+n2/0*8`, each once."""
    names = (part.partition("/")[0] for part in re.split(r"[+,]", exec_host))
    return tuple(dict.fromkeys(name for name in names if name))


def path(shown: Any) -> str | None:
    """Return the path of `host:/path`."""
    return str(shown).partition(":")[2] or str(shown) if shown else None


def _pairs(ids: Iterable[str], shown: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return which id that was asked for is which that is shown."""
    by_number = {name.partition(".")[0]: name for name in shown}
    for wanted in ids:
        found = wanted if wanted in shown else by_number.get(wanted.partition(".")[0])
        if found is not None:
            yield wanted, found


def _part(job: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an attribute that has parts, as JSON nests them or `name.part` does."""
    if isinstance(nested := job.get(name), Mapping):
        return nested
    prefix = f"{name}."
    return {key[len(prefix) :]: job[key] for key in job if key.startswith(prefix)}


def _whole(text: Any) -> int | None:
    try:
        return int(text)
    except (TypeError, ValueError):
        return None
