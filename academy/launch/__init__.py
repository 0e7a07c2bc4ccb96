"""What a caller chooses for a launch, what travels, and what a worker runs.

`AgentSpec` is all that goes to a worker, and `run_agent` is the only function that a
worker runs, whichever executor it belongs to.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Mapping
from socket import gethostname
from typing import TYPE_CHECKING, Any, TypedDict

from academy.exception import ExchangeConnectionError
from academy.launch.ending import (
    ORPHANED,
    AgentInterruptedError,
    portable_error,
    shutdown_from_outside,
)
from academy.launch.spec import AgentSpec, WorkerMismatchError, unreachable
from academy.logging.helpers import log_context

if TYPE_CHECKING:
    from academy.logging.configs.base import LogConfig
    from academy.runtime import RuntimeConfig

__all__ = [
    "AgentInterruptedError",
    "AgentSpec",
    "LaunchOptions",
    "WorkerMismatchError",
    "new_runner",
    "run_agent",
    "run_agent_here",
]


class LaunchOptions(TypedDict, total=False):
    """What a caller may choose about a launch; all of it is optional.

    Attributes:
        args: positional arguments, when a type is launched.
        kwargs: keyword arguments, when a type is launched.
        config: how the agent runs.
        executor: name of the executor; None is the manager's default.
        submit_kwargs: what the executor's `submit` takes: nodes, walltime, …
        name: for people, in logs and listings.
        log_config: how the worker logs; None is the manager's.
    """

    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any] | None
    config: RuntimeConfig | None
    executor: str | None
    submit_kwargs: Mapping[str, Any] | None
    name: str | None
    log_config: LogConfig | None


def run_agent(spec: AgentSpec | bytes) -> None:
    """Run one agent in this thread until it ends: what an executor's worker does.

    In a process's main thread, SIGTERM and SIGINT shut the agent down in order; a
    second one stops waiting for it. Handlers are as before when this returns.

    Args:
        spec: a packed spec, or the spec itself for a worker that shares our memory.

    Raises:
        WorkerMismatchError: this worker does not fit the launching program.
        MissingModuleError: what the agent imports is not installed here.
        ExchangeUnreachableError: its exchange does not answer for a minute, or for
            `request_timeout_s` of its factory.
        AgentInterruptedError: a signal or SystemExit ended the agent.
        Exception: whatever ended the agent; it is sure to pickle.
    """
    try:
        _check_no_loop_is_running()
        if isinstance(spec, bytes):
            spec = AgentSpec.unpack(spec)
        with log_context(spec.log_config), new_runner() as runner:
            # A forked worker must not inherit the exchange client of its parent.
            runner.run(_serve(spec), context=contextvars.Context())
    except BaseException as error:
        if isinstance(error, AgentInterruptedError) and error.cause == ORPHANED:
            os._exit(1)  # a worker without a parent would wait for work for ever
        raised = portable_error(error)
        if raised is error:
            raise
        raise raised from None


def _check_no_loop_is_running() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "run_agent needs a thread of its own, and in this one an event loop is running."
    )


async def run_agent_here(spec: AgentSpec) -> None:
    """Run one agent in the running event loop until it ends."""
    with log_context(spec.log_config):
        await spec.runtime().run_until_complete()


async def _serve(spec: AgentSpec) -> None:
    runtime = spec.runtime()
    with shutdown_from_outside(runtime, expected=False) as causes:
        try:
            await runtime.run_until_complete()
        except ExchangeConnectionError as error:
            if runtime.was_connected:
                raise
            raise unreachable(error) from error
    if causes:
        raise AgentInterruptedError(causes[0], gethostname())


def new_runner() -> asyncio.Runner:
    """Make an event loop for a process of ours: uvloop, where that installs."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    return asyncio.Runner(loop_factory=new_event_loop)
