"""What endpoints and the service say, as errors of ours."""

from __future__ import annotations

import pickle
import textwrap

import pytest

from academy.executors.globus_compute import EndpointRefusedError, ResultTooLargeError
from academy.executors.globus_compute.causes import cause_of, refusal
from academy.failure import (
    AgentLostError,
    JobFailedError,
    MissingModuleError,
    NeverStartedError,
    OutOfMemoryError,
    WalltimeReachedError,
    WorkerDiedError,
)


def framed(last: str) -> str:
    """Return a traceback as endpoints send them."""
    return (
        "+" * 68 + "\nTraceback (most recent call last):\n"
        '  File ".../concurrent/futures/_base.py", line 401, in __get_result\n'
        f"    raise self._exception\n{last}\n" + "-" * 68
    )


# As a real endpoint sends them, shortened.
TEXTS = {
    "parsl.executors.high_throughput.errors.WorkerLost: Task failure due to loss of "
    "worker 0 on host n1": (WorkerDiedError, "loss of worker 0 on host n1"),
    "parsl.executors.high_throughput.errors.ManagerLost: Task failure due to loss of "
    "manager b'5f' on host n1": (AgentLostError, "loss of manager"),
    "ModuleNotFoundError: No module named 'academy'": (
        MissingModuleError,
        "Install academy-hpc where",
    ),
    "ModuleNotFoundError: No module named 'academy.executors.globus_compute'": (
        MissingModuleError,
        "Install academy-hpc where",
    ),
    "parsl.executors.errors.InvalidResourceSpecification: Invalid Resource "
    "Specification Supplied: {'num_nodes'}.": (EndpointRefusedError, "num_nodes"),
    "parsl.executors.errors.BadStateException: Executor GlobusComputeEngine-"
    "HighThroughputExecutor failed due to: Error 1:\n\tJob is marked as MISSING\n"
    "\tEXIT CODE: 3": (JobFailedError, "failed due to.*MISSING.*EXIT CODE: 3"),
    "parsl.executors.errors.BadStateException: failed due to: Error 1:\n"
    "\tslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***": (
        WalltimeReachedError,
        "TIME LIMIT",
    ),
    "parsl.executors.errors.BadStateException: failed due to: Error 1:\n"
    "\tslurmstepd: error: Detected 1 oom-kill event(s)": (OutOfMemoryError, "oom-kill"),
    "ZeroDivisionError: division by zero": (JobFailedError, "division by zero"),
}


@pytest.mark.parametrize("last", TEXTS)
def test_the_text_of_an_endpoint_becomes_its_cause(last: str) -> None:
    kind, reason = TEXTS[last]
    error = cause_of(framed(last))
    assert type(error) is kind
    with pytest.raises(kind, match=f"(?s){reason}"):
        raise error
    assert error.host == ("n1" if "on host n1" in last else "")
    assert error.output == ""


def test_a_result_that_is_too_large_is_not_a_failure_of_the_agent() -> None:
    error = cause_of("MaxResultSizeExceeded(10807063, 10485760)")
    assert isinstance(error, ResultTooLargeError)
    assert "10807063" in str(error)


def test_a_text_that_is_no_traceback_is_shown() -> None:
    text = "".join(f"line {n}\n" for n in range(100))
    error = cause_of(text)
    assert error.reason == "line 99"
    assert error.output.splitlines()[0] == "line 85"


@pytest.mark.parametrize("text", ["", "\n", "-----\n"])
def test_an_endpoint_may_give_no_reason(text: str) -> None:
    assert "gives no reason" in str(cause_of(text))


class ServiceError(Exception):
    """What errors of globus_sdk have."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.http_status = status
        self.raw_json = {"code": "CODE", "reason": reason}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429])
def test_a_refusal_names_the_endpoint_the_reason_and_a_way(status: int) -> None:
    error = refusal(ServiceError(status, "for\n  a reason."), "the-endpoint")
    assert isinstance(error, EndpointRefusedError)
    assert isinstance(error, ValueError)
    assert f"endpoint the-endpoint: for a reason (HTTP {status})" in str(error)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failure_of_the_service_is_nobodys_refusal(status: int) -> None:
    error = refusal(ServiceError(status, "oops"), "the-endpoint")
    assert type(error) is NeverStartedError
    assert f"oops (HTTP {status})" in str(error)


def test_a_service_that_is_not_there_is_said_to_be_so() -> None:
    error = refusal(OSError("no route to host"), "the-endpoint")
    assert type(error) is NeverStartedError
    assert "not reached: OSError: no route to host" in str(error)


def test_a_cause_that_is_known_already_stays() -> None:
    error = NeverStartedError(reason="not logged in")
    assert refusal(error, "the-endpoint") is error


def test_errors_travel() -> None:
    for error in (cause_of(framed("X: y")), refusal(ServiceError(403, "no"), "e")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)


def test_long_messages_are_cut() -> None:
    text = textwrap.fill("SomeError: " + "word " * 10_000)
    assert len(cause_of(text).reason) <= 1000
