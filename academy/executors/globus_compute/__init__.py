"""Agents on Globus Compute endpoints: on clusters that one need not log in to."""

from academy.executors.globus_compute.causes import (
    EndpointRefusedError,
    ResultTooLargeError,
)
from academy.executors.globus_compute.executor import GlobusComputeExecutor
from academy.executors.globus_compute.future import TaskFuture
from academy.executors.globus_compute.limits import PayloadTooLargeError

__all__ = [
    "EndpointRefusedError",
    "GlobusComputeExecutor",
    "PayloadTooLargeError",
    "ResultTooLargeError",
    "TaskFuture",
]
