"""All that travels to a worker, and how it is packed."""

from __future__ import annotations

import functools
import pickle
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from academy.failure import ExchangeUnreachableError, MissingModuleError, StartupError
from academy.runtime import Runtime, RuntimeConfig
from academy.scheduler.here import place
from academy.serialize import dumps

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exception import ExchangeConnectionError
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.transport import AgentRegistration
    from academy.logging.configs.base import LogConfig


class WorkerMismatchError(StartupError):
    """A worker's Python or academy-hpc does not fit that of the launching program.

    Attributes:
        what: "Python" or "academy-hpc".
        here: its version in the launching program.
        there: its version in the worker.
    """

    def __init__(
        self, what: str, here: str, there: str, host: str, job_id: str = ""
    ) -> None:
        reason = (
            f"the worker on {host} runs {what} {there}, the program that launched the "
            f"agent {what} {here}"
        )
        super().__init__(job_id, host, reason)
        self.args = (what, here, there, host, job_id)
        self.what = what
        self.here = here
        self.there = there

    def __str__(self) -> str:
        job = f" in job {self.job_id}" if self.job_id else ""
        return (
            f"The worker on {self.host}{job} runs {self.what} {self.there}, the "
            f"program that launched the agent {self.what} {self.here}. Activate the "
            "same environment there, for example with the executor's worker_init."
        )


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
        factory = self.exchange_factory.for_agents()
        packed = dumps(
            replace(self, agent=agent, args=(), kwargs={}, exchange_factory=factory)
        )
        return pickle.dumps((_versions(), packed), 5)

    @classmethod
    def unpack(cls, packed: bytes) -> AgentSpec:
        """Decode what `pack` has encoded; the agent itself stays packed.

        Raises:
            WorkerMismatchError: it was packed by a Python or academy-hpc that does
                not fit this one.
            MissingModuleError: what it needs is not installed here.
        """
        versions, spec = pickle.loads(packed)
        for what, here in _versions().items():
            if versions[what] != here:
                at = place()
                raise WorkerMismatchError(
                    what, versions[what], here, at.host, at.job_id
                )
        try:
            return cast("AgentSpec", pickle.loads(spec))
        except ModuleNotFoundError as error:
            raise missing_module(error, "the exchange or log_config") from error

    def build(self) -> Agent:
        """Make the agent, or return the one that was given.

        Raises:
            MissingModuleError: what it imports is not installed here.
        """
        agent, args, kwargs = self.agent, self.args, self.kwargs
        try:
            if isinstance(agent, bytes):
                agent, args, kwargs = self._unpacked(agent)
            return agent(*args, **kwargs) if isinstance(agent, type) else agent
        except ModuleNotFoundError as error:
            missing = missing_module(error, str(self.registration.agent_id))
            raise missing from error

    def _unpacked(self, agent: bytes) -> Any:
        try:
            return pickle.loads(agent)
        except ModuleNotFoundError:
            raise
        except Exception as error:
            error.add_note(_unpacking(str(self.registration.agent_id)))
            raise

    def runtime(self) -> Runtime[Any]:
        """Make the runtime of this agent."""
        return Runtime(
            self.build(),
            exchange_factory=self.exchange_factory,
            registration=self.registration,
            config=self.config,
        )


def missing_module(error: ModuleNotFoundError, what: str) -> MissingModuleError:
    """Return the error for a module that is not to be had on this worker."""
    at = place()
    missing = MissingModuleError(at.job_id, at.host, str(error))
    missing.name = error.name
    missing.add_note(_unpacking(what))
    return missing


def _unpacking(what: str) -> str:
    return (
        f"{what} was being unpacked on {socket.gethostname()}, with "
        f"{sys.executable}. What it imports must be installed there."
    )


def unreachable(error: ExchangeConnectionError) -> ExchangeUnreachableError:
    """Return the error for an exchange that this worker cannot connect to."""
    at = place()
    return ExchangeUnreachableError(at.job_id, at.host, str(error))


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
