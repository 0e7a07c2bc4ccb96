"""What the service, the endpoint and its engine say, as errors of ours.

They say it in words, so this is about words. They are Parsl's, for the most part: its
errors travel as the text of a traceback, whose last line names the cause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from academy.executors.globus_compute.limits import MAX_RESULT_BYTES
from academy.failure import (
    AgentLostError,
    JobFailedError,
    MissingModuleError,
    NeverStartedError,
    OutOfMemoryError,
    StartupError,
    WalltimeReachedError,
    WorkerDiedError,
)

SHOWN_LINES = 15
"""How many of the last lines of a remote text an error shows."""

SHOWN_CHARACTERS = 1000
"""How much of an error's message is shown as the reason."""


class EndpointRefusedError(NeverStartedError, ValueError):
    """The service, the endpoint or its engine does not take what was asked for."""

    what = "The agent was refused"


class ResultTooLargeError(StartupError, ValueError):
    """What a task returned is more than the service carries."""

    what = "The result did not come back"


_INSTALL = (
    "Install academy-hpc where the endpoint's workers run: in the environment that "
    "worker_init activates, or else that of the endpoint itself."
)

# The first that is found in the text says what has happened.
_CAUSES: tuple[tuple[str, type[AgentLostError], str], ...] = (
    (r"No module named '?academy\b", MissingModuleError, _INSTALL),
    (r"Can't get attribute '\w+' on <module 'academy\.", MissingModuleError, _INSTALL),
    (
        r"MaxResultSizeExceeded",
        ResultTooLargeError,
        f"The service carries {MAX_RESULT_BYTES:,} bytes of a result, encoded.",
    ),
    (r"InvalidResourceSpecification", EndpointRefusedError, ""),
    (
        r"DUE TO TIME LIMIT|walltime \d+ exceeded limit|\bTIMEOUT\b",
        WalltimeReachedError,
        "",
    ),
    (r"oom.kill|OUT_OF_MEMORY|out.of.memory", OutOfMemoryError, ""),
    (r"ManagerLost", AgentLostError, ""),
    (r"WorkerLost", WorkerDiedError, ""),
    (r"BadStateException|bad state", JobFailedError, ""),
    (r"service does not know the task", AgentLostError, ""),
    (r"User endpoint failed", NeverStartedError, ""),
    (
        r"Failed to set result or exception",
        AgentLostError,
        "The task has ended, and the service does not keep its result any more.",
    ),
)


def cause_of(text: str) -> AgentLostError:
    """Return the error that an endpoint's text stands for."""
    # Parsl frames tracebacks with lines of dashes and pluses.
    lines = [line.rstrip() for line in text.splitlines() if line.strip(" -+")]
    host = re.search(r"\bon host (\S+)", text)
    where = host[1].rstrip(".,") if host else ""
    output = "" if _TRACEBACK in text else "\n".join(lines[-SHOWN_LINES:])
    if len(lines) < 2:  # It is the reason already.
        output = ""
    reason = _message(lines) or "the endpoint gives no reason"
    for pattern, error, advice in _CAUSES:
        if re.search(pattern, text):
            return error("", where, _sentences(reason, advice), output)
    return JobFailedError("", where, reason, output)


_TRACEBACK = "Traceback (most recent call last)"


def _message(lines: Sequence[str]) -> str:
    """Return what the last error in a text says, in one line."""
    starts = [n for n, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*:", line)]
    last = starts[-1] if starts else len(lines) - 1
    words = " ".join(" ".join(lines[last:]).split())
    return words[:SHOWN_CHARACTERS]


def _sentences(*parts: str) -> str:
    said = [part.rstrip(". ") for part in parts if part]
    return ". ".join(said) + ("." if len(said) > 1 else "")


_ADVICE = {
    401: "Log in again, or set GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_"
    "SECRET.",
    403: "Its owner decides who may use it; see with which identity you are logged in.",
    404: "See its id with `globus-compute-endpoint list`, where it runs.",
    413: "Submit less at once.",
    422: "What its user_config_schema.json and template take is its administrator's "
    "choice; configs/globus-compute/ has those that take all fields of a "
    "ResourceSpec.",
    429: "Launch more agents at once, with launch_batch().",
}


def refusal(error: BaseException, endpoint_id: str) -> NeverStartedError:
    """Return the error that a failed request stands for.

    Args:
        error: an error of `globus_sdk` with the service's answer, or another.
        endpoint_id: to whom the request was.
    """
    if isinstance(error, NeverStartedError):
        return error
    status: int | None = getattr(error, "http_status", None)
    if status is None:
        reason = f"the Globus Compute service was not reached: {_words(error)}"
        return NeverStartedError(reason=reason)
    said = f"{_reason(error)} (HTTP {status})"
    if status < 500:
        advice = _ADVICE.get(status, "")
        said = _sentences(f"endpoint {endpoint_id}: {said}", advice)
        return EndpointRefusedError(reason=said)
    reason = f"the Globus Compute service failed on endpoint {endpoint_id}: {said}"
    return NeverStartedError(reason=reason)


def _reason(error: Any) -> str:
    """Return the service's own words."""
    answer = getattr(error, "raw_json", None)
    reason = answer.get("reason") if isinstance(answer, dict) else None
    words = str(reason or getattr(error, "message", None) or error)
    return " ".join(words.split()).rstrip(".")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
