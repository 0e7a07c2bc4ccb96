"""Grid Engine, of any make: qstat, qacct, qdel."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from datetime import datetime

from academy.scheduler.base import Scheduler
from academy.scheduler.command import ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.times import c_time, iso_time, seconds


class GridEngine(Scheduler):
    """Sun, Son of, Univa and Altair Grid Engine; one qacct for each ended job."""

    name = "grid_engine"

    def _described(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        answer = ask("qstat", "-xml", "-r", "-s", "prs")
        if answer.status:
            raise answer.error()
        found = _from_queue(answer.stdout, set(ids))
        for job in ids:
            if job not in found and (over := _from_accounts(job)) is not None:
                found[job] = over
        return found

    def cancel(self, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        answer = ask("qdel", ",".join(wanted))
        said = answer.stdout + answer.stderr
        if answer.status and "does not exist" not in said and "denied: job" not in said:
            raise answer.error()

    def hopeless(self, reason: str) -> bool:
        # E: an error of its last start, until somebody clears it.
        return re.match(r"E\w*qw\b", reason) is not None


def _from_queue(text: str, wanted: set[str]) -> dict[str, JobInfo]:
    found = {}
    for row in ET.fromstring(text).iter("job_list"):
        number, tasks = row.findtext("JB_job_number", ""), row.findtext("tasks", "")
        letters = row.findtext("state", "")
        waits = "q" in letters
        node = row.findtext("queue_name", "").partition("@")[2]
        for job_id in {number, f"{number}.{tasks}"} & wanted:
            found[job_id] = JobInfo(
                "grid_engine",
                job_id,
                JobState.PENDING if waits else JobState.RUNNING,
                # The letters are all that it tells; of a job that runs they say "r".
                letters if waits else "",
                (node,) if node else (),
                iso_time(row.findtext("JB_submission_time", "")),
                None if waits else iso_time(row.findtext("JAT_start_time", "")),
            )
    return found


def _from_accounts(job_id: str) -> JobInfo | None:
    number, _, task = job_id.partition(".")
    answer = ask("qacct", "-j", number, *(("-t", task) if task else ()))
    # A job that was run several times has as many records.
    *_, record = re.split(r"^=+$", answer.stdout, flags=re.MULTILINE)
    lines = (line.partition(" ") for line in record.strip().splitlines())
    job = {name: value.strip() for name, _, value in lines}
    if answer.status or "exit_status" not in job:
        return None  # Not yet, or not any more.
    failed, code = _number(job.get("failed", "")), _number(job["exit_status"])
    state, reason = _end(job, failed, code)
    return JobInfo(
        "grid_engine",
        job_id,
        state,
        reason,
        (job["hostname"],) if job.get("hostname") else (),
        _time(job.get("qsub_time", "")),
        _time(job.get("start_time", "")),
        _time(job.get("end_time", "")),
        code,
    )


def _end(job: dict[str, str], failed: int, code: int) -> tuple[JobState, str]:
    """Return the state of an ended job, and its reason."""
    what = job["failed"].partition(":")[2].strip() if failed else ""
    by = job.get("deleted_by", "NONE")
    if by != "NONE":
        return JobState.CANCELLED, f"deleted by {by}"
    asked = re.search(r"\bh_rt=([\d:]+)", job.get("category", ""))
    limit = seconds(asked[1] if ":" in asked[1] else f"0:{asked[1]}") if asked else None
    took = float(re.sub(r"[^\d.]", "", job.get("ru_wallclock", "")) or 0)
    if limit is not None and took >= limit and (failed or code > 128):
        return JobState.TIMEOUT, what or "it ran as long as it had asked for (h_rt)"
    return (JobState.FAILED if failed or code else JobState.COMPLETED), what


def _number(text: str) -> int:
    """Return the number that a text begins with, or 0."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _time(text: str) -> datetime | None:
    """Read "Sun Nov 22 17:00:00 2026", or "11/22/2026 17:00:00.123" of newer makes."""
    match = re.match(r"(\d\d)/(\d\d)/(\d{4}) ([\d:]{8})", text)
    if match is None:
        return c_time(text)
    month, day, year, clock = match.groups()
    return iso_time(f"{year}-{month}-{day}T{clock}")
