"""What a caller chooses for a launch, what travels, and what a worker runs.

`AgentSpec` is all that goes to a worker, and `run_agent` is the only function that a
worker runs, whichever executor it belongs to.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from academy.exception import AcademyError, AcademyRemoteError
from academy.logging.helpers import log_context
from academy.runtime import Runtime, RuntimeConfig
from academy.serialize import dumps

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.transport import AgentRegistration
    from academy.logging.configs.base import LogConfig


PARENT_CHECK_INTERVAL = 2.0
"""Seconds between two looks of a worker whether its parent lives."""

ORPHAN_GRACE = 30.0
"""Seconds that an agent has to shut down when its worker's parent is dead."""

ORPHANED = "the death of its parent process"


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


class WorkerMismatchError(AcademyError):
    """A worker's Python or academy-hpc does not fit that of the launching program."""

    def __init__(self, what: str, here: str, there: str, host: str) -> None:
        super().__init__(what, here, there, host)
        self.what = what
        self.here = here
        self.there = there
        self.host = host

    def __str__(self) -> str:
        return (
            f"The worker on {self.host} runs {self.what} {self.there}, the program "
            f"that launched the agent {self.what} {self.here}. Activate the same "
            "environment there, for example with the executor's worker_init."
        )


class AgentInterruptedError(AcademyError):
    """An agent was ended from outside, unasked: by a signal, or by SystemExit."""

    def __init__(self, cause: str, host: str) -> None:
        super().__init__(cause, host)
        self.cause = cause
        self.host = host

    def __str__(self) -> str:
        return f"The agent's worker on {self.host} was ended by {self.cause}."


@dataclass(frozen=True)
class AgentSpec:
    """All that a worker needs to run one agent.

    Attributes:
        agent: an agent, a type to be instantiated on the worker, or either with its
            arguments as `pack_agent` has packed them.
        exchange_factory: makes the agent's client.
        registration: opens the agent's mailbox.
        config: how the agent runs.
        log_config: how its worker logs.
        args: positional arguments of a type.
        kwargs: keyword arguments of a type.
    """

    agent: Agent | type[Agent] | bytes
    exchange_factory: ExchangeFactory
    registration: AgentRegistration[Any]
    config: RuntimeConfig
    log_config: LogConfig | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Encode for `run_agent`; the agent stays a packed piece of its own.

        Raises:
            PicklingError: names the part that does not pickle.
        """
        agent = self.agent
        if not isinstance(agent, bytes):
            agent = pack_agent(agent, self.args, self.kwargs)
        check_pickles(self.exchange_factory, "the exchange")
        check_pickles(self.log_config, "log_config")
        packed = dumps(replace(self, agent=agent, args=(), kwargs={}))
        return pickle.dumps((_versions(), packed), 5)

    @classmethod
    def unpack(cls, packed: bytes) -> AgentSpec:
        """Decode what `pack` has encoded; the agent itself stays packed.

        Raises:
            WorkerMismatchError: it was packed by a Python or academy-hpc that does
                not fit this one.
        """
        versions, spec = pickle.loads(packed)
        for what, here in _versions().items():
            if versions[what] != here:
                raise WorkerMismatchError(
                    what, versions[what], here, socket.gethostname()
                )
        return cast("AgentSpec", pickle.loads(spec))

    def build(self) -> Agent:
        """Make the agent, or return the one that was given."""
        agent, args, kwargs = self.agent, self.args, self.kwargs
        if isinstance(agent, bytes):
            try:
                agent, args, kwargs = pickle.loads(agent)
            except Exception as error:
                error.add_note(
                    f"{self.registration.agent_id} was being unpacked on "
                    f"{socket.gethostname()}, with {sys.executable}. What it imports "
                    "must be installed there."
                )
                raise
        return agent(*args, **kwargs) if isinstance(agent, type) else agent

    def runtime(self) -> Runtime[Any]:
        """Make the runtime of this agent."""
        return Runtime(
            self.build(),
            exchange_factory=self.exchange_factory,
            registration=self.registration,
            config=self.config,
        )


def pack_agent(
    agent: Agent | type[Agent], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bytes:
    """Encode an agent with its arguments.

    Raises:
        PicklingError: names the argument or attribute that does not pickle.
    """
    try:
        return dumps((agent, args, dict(kwargs)))
    except Exception as error:
        for i, value in enumerate(args):
            check_pickles(value, f"argument args[{i}]")
        for key, value in kwargs.items():
            check_pickles(value, f'argument kwargs["{key}"]')
        if not isinstance(agent, type):
            for name, value in getattr(agent, "__dict__", {}).items():
                check_pickles(value, f"the agent instance's attribute {name}")
        raise pickle.PicklingError(
            f"the agent {agent!r} does not pickle: {error}"
        ) from error


def check_pickles(value: Any, name: str) -> None:
    """Make sure that a part of a launch can travel to a worker.

    Raises:
        PicklingError: it cannot; says which part, of which type, and why.
    """
    try:
        dumps(value)
    except Exception as error:
        kind = type(value)
        raise pickle.PicklingError(
            f"{name} (of type {kind.__module__}.{kind.__qualname__}) does not pickle, "
            f"so it cannot travel to a worker: {error}"
        ) from error


@functools.cache
def _versions() -> dict[str, str]:
    """Return what must be equal on both sides: patch releases may differ."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        academy = ".".join(version("academy-hpc").split(".")[:2])
    except PackageNotFoundError:  # run from a source tree that is not installed
        academy = "unknown"
    return {"Python": "{}.{}".format(*sys.version_info), "academy-hpc": academy}


def run_agent(spec: AgentSpec | bytes) -> None:
    """Run one agent in this thread until it ends: what an executor's worker does.

    In a process's main thread, SIGTERM and SIGINT shut the agent down in order; a
    second one stops waiting for it. Handlers are as before when this returns.

    Args:
        spec: a packed spec, or the spec itself for a worker that shares our memory.

    Raises:
        WorkerMismatchError: this worker does not fit the launching program.
        AgentInterruptedError: a signal or SystemExit ended the agent.
        Exception: whatever ended the agent; it is sure to pickle.
    """
    try:
        if isinstance(spec, bytes):
            spec = AgentSpec.unpack(spec)
        with log_context(spec.log_config), _runner() as runner:
            # A forked worker must not inherit the exchange client of its parent.
            runner.run(_serve(spec), context=contextvars.Context())
    except BaseException as error:
        if isinstance(error, AgentInterruptedError) and error.cause == ORPHANED:
            os._exit(1)  # a worker without a parent would wait for work for ever
        raised = portable_error(error)
        if raised is error:
            raise
        raise raised from None


async def run_agent_here(spec: AgentSpec) -> None:
    """Run one agent in the running event loop until it ends."""
    with log_context(spec.log_config):
        await spec.runtime().run_until_complete()


async def _serve(spec: AgentSpec) -> None:
    runtime = spec.runtime()
    with shutdown_from_outside(runtime, expected=False) as causes:
        await runtime.run_until_complete()
    if causes:
        raise AgentInterruptedError(causes[0], socket.gethostname())


@contextmanager
def shutdown_from_outside(
    runtime: Runtime[Any], *, expected: bool
) -> Iterator[list[str]]:
    """Shut an agent down at SIGTERM, SIGINT, or the death of who made this process.

    In other threads than the main one, which gets no signals, this does nothing.
    Yields the causes met; a second one cancels the current task.
    """
    causes: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield causes
        return
    task = asyncio.current_task()

    def end(cause: str) -> None:
        causes.append(cause)
        if len(causes) == 1:
            runtime.signal_shutdown(expected=expected)
        elif task is not None:
            task.cancel()

    with _on_signals(end), _on_orphaning(end):
        yield causes


@contextmanager
def _on_signals(end: Callable[[str], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, end, number.name)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextmanager
def _on_orphaning(end: Callable[[str], None]) -> Iterator[None]:
    """Tell when the parent dies, if this process is a worker of multiprocessing."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        yield
        return
    watch = asyncio.create_task(_watch_parent(end))
    try:
        yield
    finally:
        watch.cancel()


async def _watch_parent(end: Callable[[str], None]) -> None:
    # The parent's sentinel would tell at once, but sibling workers may hold it open.
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_CHECK_INTERVAL)
    # The exchange may have died with the parent, and nobody else waits for us.
    asyncio.get_running_loop().call_later(ORPHAN_GRACE, os._exit, 1)
    end(ORPHANED)


def _runner() -> asyncio.Runner:
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    return asyncio.Runner(loop_factory=new_event_loop)


def portable_error(error: BaseException) -> Exception:
    """Return the error, or what stands for it where it cannot travel or must not.

    SystemExit, KeyboardInterrupt and CancelledError would end the launching program.
    """
    if not isinstance(error, Exception):
        return AgentInterruptedError(repr(error), socket.gethostname())
    try:
        pickle.loads(dumps(error))
    except Exception:
        text = "".join(traceback.format_exception(error))
        return AcademyRemoteError(f"{error!r}, which does not pickle:\n{text}")
    return error
