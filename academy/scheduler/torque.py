"""Torque: qstat, qdel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from academy.scheduler.command import ask
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.pbs import PBS, attributes

# Source: https://docs.adaptivecomputing.com/torque/6-1-2/adminGuide/Content/topics/torque/2-jobs/jobExitStatus.htm
_STATUSES = {
    -9: (JobState.FAILED, "its output files could not be opened"),
    -10: (JobState.OUT_OF_MEMORY, "it took more memory than it had asked for"),
    -11: (JobState.TIMEOUT, "it reached its walltime"),
    -12: (JobState.FAILED, "it took more CPU time than it had asked for"),
}
_KILLED = (256 + 15, 256 + 9)


class Torque(PBS):
    """Torque 4 and later, which shows ended jobs for some minutes."""

    name = "torque"

    def _show(
        self, kind: str, options: Sequence[str], names: Sequence[str] = ()
    ) -> dict[str, dict[str, Any]]:
        # It has no JSON, and no history to ask for.
        answer = ask("qstat", *(o for o in options if o != "-x"), *names)
        self._check(answer)
        return dict(attributes(answer.stdout))

    def _job(self, job_id: str, job: Mapping[str, Any]) -> JobInfo:
        names = {"start_time": "stime", "comp_time": "obittime"}
        return super()._job(job_id, {names.get(key, key): job[key] for key in job})

    def _end(self, job: Mapping[str, Any]) -> tuple[JobState, str, int | None]:
        if job.get("job_state") != "C":
            return super()._end(job)
        status = int(job.get("exit_status", _KILLED[0]))
        if status in _STATUSES:
            return *_STATUSES[status], None
        if status < 0:
            return (
                JobState.FAILED,
                f"Torque could not run it: exit_status {status}",
                None,
            )
        if status in _KILLED:
            return JobState.CANCELLED, "", status - 128
        code = status - 128 if status > 256 else status
        return (JobState.FAILED if status else JobState.COMPLETED), "", code
