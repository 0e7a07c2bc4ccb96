"""IBM Spectrum LSF: bjobs, bkill, bqueues."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from academy.scheduler.base import Scheduler
from academy.scheduler.command import ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.times import c_time

# Source: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=execution-about-job-states
_STATES = {
    "PEND": JobState.PENDING,
    "PROV": JobState.PENDING,
    "PSUSP": JobState.PENDING,
    "WAIT": JobState.PENDING,
    "RUN": JobState.RUNNING,
    "USUSP": JobState.RUNNING,
    "SSUSP": JobState.RUNNING,
    "DONE": JobState.COMPLETED,
    "EXIT": JobState.FAILED,
    "ZOMBI": JobState.NODE_FAIL,  # Killed while nobody could reach its node.
    "UNKWN": JobState.UNKNOWN,
}
# Source: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=ends-lsf-termination-reasons
_TERMINATION = {
    "TERM_RUNLIMIT": JobState.TIMEOUT,
    "TERM_DEADLINE": JobState.TIMEOUT,
    "TERM_WINDOW": JobState.TIMEOUT,
    "TERM_MEMLIMIT": JobState.OUT_OF_MEMORY,
    "TERM_SWAP": JobState.OUT_OF_MEMORY,
    "TERM_PREEMPT": JobState.PREEMPTED,
    "TERM_OWNER": JobState.CANCELLED,
    "TERM_ADMIN": JobState.CANCELLED,
    "TERM_FORCE_OWNER": JobState.CANCELLED,
    "TERM_FORCE_ADMIN": JobState.CANCELLED,
    "TERM_BUCKET_KILL": JobState.CANCELLED,
    "TERM_REMOVE_HUNG_JOB": JobState.NODE_FAIL,
    "TERM_ZOMBIE": JobState.NODE_FAIL,
}
_FIELDS = (
    *("jobid", "jobindex", "stat", "exit_code", "exit_reason", "pend_reason"),
    *("exec_host", "submit_time", "start_time", "finish_time"),
    *("output_file", "error_file"),
)
_HOPELESS = re.compile(
    r"no host.* satisf|dependency condition (?:invalid|never satisfied)|"
    r"requirements? .*never",
    re.IGNORECASE,
)


class LSF(Scheduler):
    """IBM Spectrum LSF 10.1, which shows ended jobs for an hour (CLEAN_PERIOD)."""

    name = "lsf"

    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        answer = ask("bjobs", "-a", "-o", " ".join(_FIELDS), "-json", *ids)
        # It may say "Please wait …" before.
        _, brace, text = answer.stdout.partition("{")
        try:
            records = json.loads(brace + text)["RECORDS"]
        except (ValueError, KeyError):
            raise answer.error() from None
        found: dict[str, JobInfo] = {}
        wanted = set(ids)
        for record in records:
            index = record.get("JOBINDEX", "0")
            job = record.get("JOBID", "").partition("[")[0]
            names = {job, f"{job}[{index}]"} if index not in ("", "0") else {job}
            if "ERROR" not in record:
                found |= {name: _job(name, record) for name in names & wanted}
        return found

    def cancel(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        answer = ask("bkill", *wanted)
        over = re.compile(
            "already finished|is not found|No matching job", re.IGNORECASE
        )
        said = [line for line in answer.stderr.splitlines() if not over.search(line)]
        if answer.status and said:
            raise answer.error()

    def hopeless(self, reason: str) -> bool:
        return _HOPELESS.search(reason) is not None


def _job(job_id: str, record: Mapping[str, str]) -> JobInfo:
    state = _STATES.get(record.get("STAT", ""), JobState.UNKNOWN)
    why = record.get("EXIT_REASON", "")
    if state is JobState.FAILED:
        state = _TERMINATION.get(why.partition(":")[0].strip(), state)
    waits = state is JobState.PENDING
    code = record.get("EXIT_CODE", "")
    if state.is_over:
        exit_code = int(code) if code.isdigit() else None
        exit_code = 0 if state is JobState.COMPLETED else exit_code
    else:
        exit_code = None
    # "16*node1:node2": slots and hosts.
    hosts = record.get("EXEC_HOST", "").strip("-").split(":")
    nodes = dict.fromkeys(host.rpartition("*")[2] for host in hosts if host)
    return JobInfo(
        "lsf",
        job_id,
        state,
        (record.get("PEND_REASON", "") if waits else why).strip("-; "),
        tuple(nodes),
        c_time(record.get("SUBMIT_TIME", "")),
        c_time(record.get("START_TIME", "")),
        c_time(record.get("FINISH_TIME", "")),
        exit_code,
        _path(record.get("OUTPUT_FILE", ""), job_id),
        _path(record.get("ERROR_FILE", ""), job_id),
    )


def _path(shown: str, job_id: str) -> str | None:
    number, _, index = job_id.rstrip("]").partition("[")
    path = shown.replace("%J", number).replace("%I", index or "0")
    return path if path not in ("", "-", "/dev/null") else None
