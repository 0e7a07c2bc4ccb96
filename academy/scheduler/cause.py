"""Why an agent is gone, by what became of its batch job and what that printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from academy import failure
from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.output import tail_of

# What the state of a job says by itself.
_BY_STATE: dict[JobState, type[failure.AgentLostError]] = {
    JobState.OUT_OF_MEMORY: failure.OutOfMemoryError,
    JobState.TIMEOUT: failure.WalltimeReachedError,
    JobState.PREEMPTED: failure.PreemptedError,
    JobState.NODE_FAIL: failure.NodeFailedError,
    JobState.CANCELLED: failure.JobCancelledError,
}


@dataclass(frozen=True)
class _Sign:
    """What a job prints when it ends of a cause.

    Attributes:
        error: the cause.
        pattern: found in a line of the output; its first group, if it has one, is
            put into the reason.
        reason: in our words; the line itself if it is "".
    """

    error: type[failure.AgentLostError]
    pattern: re.Pattern[str]
    reason: str = ""


def _signs(
    error: type[failure.AgentLostError], *patterns: str, reason: str = ""
) -> Iterable[_Sign]:
    return (_Sign(error, re.compile(pattern), reason) for pattern in patterns)


# Lines that schedulers, kernels and shells write. Several schedulers end jobs for
# different causes in the same way, so these come before the state CANCELLED or FAILED.
# Source: https://github.com/SchedMD/slurm/blob/master/src/slurmd/slurmstepd/req.c
# Source: https://github.com/openpbs/openpbs/blob/master/src/resmom/mom_main.c
# Source: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=ends-lsf-termination-reasons
_FROM_OUTSIDE = (
    *_signs(
        failure.OutOfMemoryError,
        r"\boom[-_ ]kill",
        r"[Ee]xceeded (?:job|step) memory limit",
        r"(?:[Ee]xceeded|over) memory limit",
        r"job killed: (?:v|p)?mem\b",
        r"\bTERM_MEMLIMIT\b",
        r"Out [Oo]f [Mm]emory",
    ),
    *_signs(
        failure.WalltimeReachedError,
        r"DUE TO TIME LIMIT",
        r"job killed: walltime",
        r"\bTERM_RUNLIMIT\b",
    ),
    *_signs(failure.PreemptedError, r"DUE TO PREEMPTION", r"\bTERM_PREEMPT\b"),
    *_signs(failure.NodeFailedError, r"DUE TO NODE FAILURE"),
)

# What Slurm writes as soon as it begins to end a job, which then is COMPLETING for a
# while before it shows what became of it.
_WHILE_ENDING = (
    *_FROM_OUTSIDE,
    *_signs(failure.JobCancelledError, r"\*\*\* JOB \S+ ON \S+ CANCELLED AT"),
)

# Lines that are written when an agent cannot begin.
# Source: https://lmod.readthedocs.io (errors of Lmod), https://modules.readthedocs.io
_AT_START = (
    *_signs(
        failure.MissingModuleError,
        r"ModuleNotFoundError: No module named '([\w.]+)'",
        r"python[\w.]*: No module named '?([\w.]+)",
        reason="Python has no module {0!r} where the job ran",
    ),
    *_signs(
        failure.StartupError,
        r"\bmodule: (?:command )?not found",
        r"Lmod has detected the following error",
        r"ModuleCmd_\w+\.c\(\d+\):ERROR",
        r"ERROR: Unable to locate a modulefile for",
        r"(?:conda|mamba|micromamba): (?:command )?not found",
        r"EnvironmentNameNotFound|EnvironmentLocationNotFound",
        r"/activate: No such file or directory",
        r"python[\w.]*: (?:command )?not found",
        r"python[\w.]*: No such file or directory",
        r"(?:srun|mpiexec|mpirun|jsrun|aprun)\w*: (?:command )?not found",
        r"execve\(\): .*(?:No such file|Permission denied)",
        r"unrecognized option|illegal option",
    ),
)

# The traceback of one of our own errors ends so.
_OURS = re.compile(r"^academy\.failure\.(\w+): ?(.*)$")

# What a shell ends with that cannot find, or may not run, its last command.
# Source: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html
_NOT_RUN = {126: "a command may not be executed", 127: "a command was not found"}


def cause_of(
    job: JobInfo,
    *,
    host: str = "",
    started: bool,
    error: BaseException | None = None,
) -> failure.AgentLostError | None:
    """Say why the agent of a job is gone, or will never come.

    It reads the end of the job's output files, so it may take a moment.

    Args:
        job: what is known of it.
        host: where the agent ran.
        started: whether the agent ever was there.
        error: what an engine said of the loss, if one did.

    Returns:
        None as long as nothing is wrong with the job: it waits, or runs, or nobody
        knows.
    """
    if job.state is JobState.PENDING:
        return _never(job) if _is_hopeless(job) else None
    if not job.state.is_over:
        return _while_it_goes_on(job, host, error)
    output = tail_of(job)
    found = _cause(job, started, output)
    if isinstance(found, failure.NeverStartedError):
        return found
    return type(found)(job.job_id, _where(job, host), found.reason, output)


def _where(job: JobInfo, host: str) -> str:
    return host or ", ".join(job.nodes[:3])


def _is_hopeless(job: JobInfo) -> bool:
    try:
        return get_scheduler(job.scheduler).hopeless(job.reason)
    except ValueError:  # An executor may have a scheduler of its own.
        return False


def _never(job: JobInfo) -> failure.NeverStartedError:
    return failure.NeverStartedError(job.job_id, "", job.reason)


def _while_it_goes_on(
    job: JobInfo, host: str, error: BaseException | None
) -> failure.AgentLostError | None:
    """Look for signs that a job is about to end, or has lost a process."""
    ending = job.reason.startswith("COMPLETING")
    if not ending and error is None:
        return None
    output = tail_of(job)
    found = _sign_in(output, _WHILE_ENDING if ending else _FROM_OUTSIDE)
    # A job may go on without the process that the kernel has killed in it.
    if found is None or not (ending or isinstance(found, failure.OutOfMemoryError)):
        return None
    return type(found)(job.job_id, _where(job, host), found.reason, output)


def _cause(job: JobInfo, started: bool, output: str) -> failure.AgentLostError:
    """Return the cause with its reason; job, host and output are still missing."""
    if job.started is None and _is_hopeless(job):
        return _never(job)  # Some schedulers cancel such jobs.
    surely = _BY_STATE.get(job.state)
    if surely is not None and surely is not failure.JobCancelledError:
        return surely(reason=job.reason)
    said = _sign_in(f"{job.reason}\n{output}", _FROM_OUTSIDE)
    if said is not None:
        return said
    if surely is not None:
        return surely(reason=job.reason)
    return _failed(job, started, output)


def _failed(job: JobInfo, started: bool, output: str) -> failure.AgentLostError:
    if (own := _own_error_in(output)) is not None:
        return own
    if started:
        return failure.JobFailedError(reason=_how_it_ended(job))
    if (said := _sign_in(output, _AT_START)) is not None:
        return said
    return failure.StartupError(reason=_how_it_ended(job))


def _sign_in(output: str, signs: Iterable[_Sign]) -> failure.AgentLostError | None:
    """Return the cause of which the output has the last sign."""
    for line in reversed(output.splitlines()):
        for sign in signs:
            if (match := sign.pattern.search(line)) is not None:
                reason = sign.reason.format(*match.groups()) or line.strip()
                return sign.error(reason=reason)
    return None


def _own_error_in(output: str) -> failure.AgentLostError | None:
    for line in reversed(output.splitlines()):
        if (match := _OURS.match(line)) is not None:
            kind = getattr(failure, match[1], None)
            if isinstance(kind, type) and issubclass(kind, failure.AgentLostError):
                what, _, reason = match[2].partition(": ")
                return kind(reason=reason or what)
    return None


def _how_it_ended(job: JobInfo) -> str:
    """Describe the end of a job in words."""
    code = job.exit_code
    if code is None:
        how = "it is over"
    elif code in _NOT_RUN:
        how = f"it ended with status {code}: {_NOT_RUN[code]}"
    elif code > 128:
        how = f"its script was killed by signal {code - 128}"
        if code == 128 + 9:
            how += ", as happens to the one that takes too much memory"
    else:
        how = f"it ended with status {code}"
    if job.reason == "JobLaunchFailure":
        how = (
            f"its output {job.stdout or ''} could not be opened, or its script not run"
        )
    return f"{how} ({job.reason})" if job.reason else how
