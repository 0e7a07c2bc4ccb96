"""Slurm: squeue, sacct, scancel, sinfo, sbatch --test-only."""

from __future__ import annotations

import fnmatch
import os
import pwd
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from academy.scheduler.base import Limits, Scheduler, no_such
from academy.scheduler.command import ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.times import expand, iso_time, seconds

# Source: https://slurm.schedmd.com/squeue.html (job state codes)
_STATES = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "SPECIAL_EXIT": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    # It hides what became of the job until its processes are gone, which may take as
    # long as they are given to end (KillWait), and the cleaning of its nodes.
    "COMPLETING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "PREEMPTED": JobState.PREEMPTED,
}

# What can be told of a job that is COMPLETING by its reason.
_ENDING = {"TimeLimit": JobState.TIMEOUT, "OutOfMemory": JobState.OUT_OF_MEMORY}

# Reasons to wait that no passing of time ends: the request itself would have to change,
# or an administrator's mind. Not here are those which end when other jobs end
# (`QOSMax…PerUser`, `AssocGrp…`), when a node is repaired (`ReqNodeNotAvail`), or when
# the user wants it (`JobHeldUser`).
# `PartitionNodeLimit` may be due to nodes that are down for now, but Slurm shows it
# for jobs that ask for more nodes than there are, and does not tell the two apart.
# Source: https://slurm.schedmd.com/job_reason_codes.html
_HOPELESS = (
    *("AccountNotAllowed", "BadConstraints", "BurstBufferOperation", "DeadLine"),
    *("DependencyNeverSatisfied", "InvalidAccount", "InvalidQOS", "JobHeldAdmin"),
    *("JobHoldMaxRequeue", "MaxMemPerLimit", "PartitionConfig", "PartitionNodeLimit"),
    *("PartitionTimeLimit", "QOSMin*", "QOSNotAllowed", "ReservationDeleted"),
    *("launch failed requeued held", "launch_failed_*"),
    *("job requeued in held state", "job_requeued_in_held_state"),
    *("AssocMax*PerJob", "AssocMax*PerJobLimit", "AssocMax*PerNode"),
    *("QOSMax*PerJob", "QOSMax*PerJobLimit", "QOSMax*PerNode"),
)

_FIELDS = (
    *("JobArrayID", "JobID", "State", "NodeList", "SubmitTime", "StartTime", "EndTime"),
    *("exit_code", "Name", "UserName", "StdOut", "StdErr", "Reason"),
)
_HISTORY = "JobID,JobIDRaw,State,NodeList,Submit,Start,End,ExitCode"
# Between fields; names of jobs may contain anything that can be typed.
_MARK = "\x1f"
# What Slurm takes for the number of a task outside of an array.
_NO_TASK = "4294967294"
_ACCOUNTING = ((), ("--completion",))


class Slurm(Scheduler):
    """Slurm 20.11 and later."""

    name = "slurm"

    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        found = self._in_queue(ids)
        gone = [job for job in ids if job not in found]
        return found | self._in_history(gone)

    def _in_queue(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        # With a user, slurmctld does not have to send all jobs of the cluster. Ended
        # ones are in the answer for as long as it remembers them (MinJobAge).
        answer = ask(
            *("squeue", "--noheader", "--states=all", f"--user={os.getuid()}"),
            *(f"--jobs={','.join(ids)}", "--array"),
            "--Format=" + ",".join(f"{field}:{_MARK}" for field in _FIELDS),
        )
        if answer.status and "Invalid job id" not in answer.stderr:
            raise answer.error()
        found = {}
        wanted = set(ids)
        for line in answer.stdout.splitlines():
            values = line.split(_MARK)
            if len(values) <= len(_FIELDS):
                continue
            job = dict(zip(_FIELDS, map(str.strip, values), strict=False))
            for job_id in {job["JobArrayID"], job["JobID"]} & wanted:
                found[job_id] = _queued(job_id, job)
        return found

    def _in_history(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        for source in _ACCOUNTING if ids else ():
            answer = ask(
                *("sacct", *source, "--noheader", "--parsable2", "--allocations"),
                *(f"--jobs={','.join(ids)}", f"--format={_HISTORY}"),
            )
            # A cluster may keep no accounts, or a text file only.
            if answer.status == 0 and answer.stdout.strip():
                return _from_accounts(answer.stdout, set(ids))
        return {}

    def cancel(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        # `--quiet`: that a job is over already is no error.
        answer = ask("scancel", "--quiet", *wanted)
        if answer.status and not re.search("[Ii]nvalid job id|already", answer.stderr):
            raise answer.error()

    def limits(self, queue: str | None = None) -> Limits | None:
        answer = ask("sinfo", "--noheader", "--all", "--format=%P|%l|%D|%s|%c|%m|%G")
        if answer.status:
            raise answer.error()
        rows = [line.split("|", 6) for line in answer.stdout.splitlines()]
        if queue is None:
            ours = [row for row in rows if row[0].endswith("*")]
        else:
            ours = [row for row in rows if row[0].rstrip("*") == queue]
        if not ours:
            if queue is None:
                return None
            names = {row[0].rstrip("*") for row in rows}
            raise ValueError(no_such("partition", queue, names))
        return _limits(ours)

    def estimate(self, script: str) -> datetime | None:
        answer = ask("sbatch", "--test-only", stdin=script)
        match = re.search(r"to start at (\S+)", answer.stderr)
        if answer.status == 0:
            return iso_time(match[1]) if match else None
        said = re.sub(
            r"^(sbatch: error|sbatch|allocation failure): ", "", answer.stderr
        )
        raise ValueError(said.strip() or f"sbatch ended with status {answer.status}")

    def hopeless(self, reason: str) -> bool:
        word = reason.strip("()").partition(",")[0]
        return any(fnmatch.fnmatchcase(word, pattern) for pattern in _HOPELESS)


def _queued(job_id: str, job: dict[str, str]) -> JobInfo:
    state = _STATES.get(job["State"], JobState.UNKNOWN)
    reason = "" if job["Reason"] == "None" else job["Reason"]
    ending = job["State"] == "COMPLETING"
    if ending:
        state = _ENDING.get(reason, state)
        reason = reason if state.is_over else f"COMPLETING {reason}".strip()
    raw = int(job["exit_code"] or 0)
    return JobInfo(
        "slurm",
        job_id,
        state,
        reason,
        expand(job["NodeList"]),
        iso_time(job["SubmitTime"]),
        # An estimate, as long as it waits.
        None if state is JobState.PENDING else iso_time(job["StartTime"]),
        None if state is JobState.PENDING else iso_time(job["EndTime"]),
        _exit_code(raw) if state.is_over and not ending else None,
        _path(job["StdOut"], job),
        _path(job["StdErr"], job),
    )


def _exit_code(raw: int) -> int:
    """Read a status as `wait` returns it: an exit status, or a signal."""
    return 128 + (raw & 0x7F) if raw & 0x7F else raw >> 8


# Source: https://slurm.schedmd.com/sbatch.html (filename pattern)
def _path(pattern: str, job: dict[str, str]) -> str | None:
    """Fill in the name of an output file, which squeue shows as it was asked for."""
    array, _, task = job["JobArrayID"].partition("_")
    first_node = next(iter(expand(job["NodeList"])), "").partition(".")[0]
    words = {
        "A": array.partition("+")[0],
        "a": task or _NO_TASK,
        "J": job["JobID"],
        "j": job["JobID"],
        "u": job["UserName"],
        "x": job["Name"],
        "N": first_node,
        "n": "0",
        "t": "0",
        "s": "batch",
        "%": "%",
    }

    def word(match: re.Match[str]) -> str:
        width, letter = match.groups()
        return words[letter].rjust(int(width or 0), "0")

    return re.sub(r"%(\d*)([AajJuxNnts%])", word, pattern) or None


def _from_accounts(table: str, wanted: set[str]) -> dict[str, JobInfo]:
    found = {}
    for line in table.splitlines():
        names = _HISTORY.split(",")
        job = dict(zip(names, line.split("|"), strict=False))
        # "CANCELLED by 1000" tells who has done it.
        state, _, by = job.get("State", "").partition(" ")
        if state not in _STATES:
            continue
        status, _, sent = job["ExitCode"].partition(":")
        for job_id in {job["JobID"], job["JobIDRaw"]} & wanted:
            found[job_id] = JobInfo(
                "slurm",
                job_id,
                _STATES[state],
                f"cancelled {_user(by)}" if by else "",
                expand(job["NodeList"]) if "None" not in job["NodeList"] else (),
                iso_time(job["Submit"]),
                iso_time(job["Start"]),
                iso_time(job["End"]),
                128 + int(sent) if sent not in ("", "0") else int(status or 0),
            )
    return found


def _user(by: str) -> str:
    number = by.removeprefix("by ")
    try:
        return f"by {pwd.getpwuid(int(number)).pw_name}"
    except (KeyError, ValueError):
        return by


def _limits(rows: Sequence[Sequence[str]]) -> Limits:
    """Put the rows of one partition together: a row for each kind of nodes."""
    nodes = sum(int(row[2]) for row in rows)
    most = rows[0][3].rpartition("-")[2]
    return Limits(
        rows[0][0].rstrip("*"),
        seconds(rows[0][1]),
        min(nodes, int(most)) if most.isdigit() else nodes,
        max(_number(row[4]) for row in rows),
        max(_number(row[5]) for row in rows) / 1024,
        max(_gpus(row[6]) for row in rows),
    )


def _number(text: str) -> int:
    return int(re.sub(r"\D.*", "", text) or 0)


def _gpus(gres: str) -> int:
    """Count those of `gpu:a100:4(S:0-1),gpu:2,nic:1`."""
    return sum(
        int(match[1]) for match in re.finditer(r"\bgpu(?::[^:,()]+)?:(\d+)", gres)
    )
