"""Agents: state, actions that others call, and loops that run by themselves."""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload
from weakref import WeakKeyDictionary

from academy.agent.description import ActionDescription, AgentDescription, describe
from academy.agent.methods import (
    ActionSpec,
    Members,
    check_context_parameter,
    collect,
    event_of,
    is_loop,
    name_of,
    not_a_coroutine,
    set_before,
    set_until,
)
from academy.exception import AgentNotInitializedError
from academy.handle import Handle

if TYPE_CHECKING:
    from academy.context import AgentContext
    from academy.exchange.client import AgentExchangeClient
    from academy.identifier import AgentId
    from academy.runtime import RuntimeConfig

__all__ = [
    "ActionDescription",
    "Agent",
    "AgentDescription",
    "action",
    "event",
    "loop",
    "timer",
]

AgentT = TypeVar("AgentT", bound="Agent")
SelfT = TypeVar("SelfT")
ActionMethod = TypeVar(
    "ActionMethod",
    bound=Callable[..., Coroutine[Any, Any, Any] | AsyncIterator[Any]],
)
LoopMethod = Callable[[SelfT, asyncio.Event], Coroutine[Any, Any, None]]
LoopMethodT = TypeVar(
    "LoopMethodT", bound=Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]]
)
ControlMethod = Callable[[SelfT], Coroutine[Any, Any, None]]
P = ParamSpec("P")
R = TypeVar("R")

_HOOKS = ("agent_on_startup", "agent_on_shutdown")
_PROTECTED_NAMES = frozenset(name for name in dir(Handle) if not name.startswith("_"))

# Not in the class: what is pickled by value would take it along.
_members: WeakKeyDictionary[type, Members] = WeakKeyDictionary()


@overload
def action(method: ActionMethod, /) -> ActionMethod: ...


@overload
def action(
    method: None = None,
    /,
    *,
    allow_protected_name: bool = False,
    context: bool = False,
    idempotent: bool = False,
) -> Callable[[ActionMethod], ActionMethod]: ...


def action(
    method: Any = None,
    /,
    *,
    allow_protected_name: bool = False,
    context: bool = False,
    idempotent: bool = False,
) -> Any:
    """Make a coroutine method an action, which others may call through a handle.

    An async generator is one whose callers get its items one by one, no faster than
    they take them: `async for item in handle.name(...)`.

    Args:
        method: the method, when used without arguments.
        allow_protected_name: do not warn of a name that a handle uses itself; such
            an action is called with `handle.action("name")`.
        context: give the method who has called, as its keyword-only parameter
            `context` (`ActionContext`).
        idempotent: the action may be run again when the agent's process ended in
            the midst of it; any other fails then (`ActionInterruptedError`). Of a
            generator that is run again, callers get the items that they have not had.

    Raises:
        TypeError: the method is neither a coroutine nor an async generator, or it
            takes no `context`.
    """

    def decorate(method: Any) -> Any:
        name = name_of(method)
        streams = inspect.isasyncgenfunction(method)
        if not streams and not inspect.iscoroutinefunction(method):
            raise not_a_coroutine("Action", method)
        if not allow_protected_name and name in _PROTECTED_NAMES:
            warnings.warn(
                f'The name of action "{name}" is also that of a method of Handle, so '
                f'it can only be called with handle.action("{name}"). Rename it, or '
                "say @action(allow_protected_name=True).",
                UserWarning,
                stacklevel=2 if given is None else 3,
            )
        if context:
            check_context_parameter(method)
        method._academy_action = ActionSpec(context, idempotent, streams)
        return method

    given = method
    return decorate if method is None else decorate(method)


def loop(method: LoopMethodT) -> LoopMethodT:
    """Make a coroutine method a loop, which runs as long as its agent.

    It is to return soon after `shutdown` is set, and is cancelled if it does not.

    Raises:
        TypeError: it is not `async def name(self, shutdown: asyncio.Event) -> None`.
    """
    if not is_loop(method):
        raise TypeError(
            f'Signature of loop method "{name_of(method)}" must be: async def '
            f"{name_of(method)}(self, shutdown: asyncio.Event) -> None. It is: "
            f"{'async ' if inspect.iscoroutinefunction(method) else ''}def "
            f"{name_of(method)}{inspect.signature(method)}."
        )
    method._academy_loop = True  # type: ignore[attr-defined]  # our mark
    return method


def event(
    name: str,
) -> Callable[[ControlMethod[SelfT]], LoopMethod[SelfT]]:
    """Run a coroutine method each time an `asyncio.Event` of the agent is set.

    The event is cleared when the method has run.

    Args:
        name: attribute of the agent that holds the event.

    Raises:
        TypeError: the method is not a coroutine. When the agent runs: the attribute
            is not an `asyncio.Event`.
        AttributeError: when the agent runs: it has no such attribute.
    """

    def decorate(method: ControlMethod[SelfT]) -> LoopMethod[SelfT]:
        if not inspect.iscoroutinefunction(method):
            raise not_a_coroutine("Event", method)

        @functools.wraps(method)
        async def run(self: SelfT, shutdown: asyncio.Event) -> None:
            awaited = event_of(self, name, name_of(method))
            while await set_before(awaited, shutdown):
                try:
                    await method(self)
                finally:
                    awaited.clear()

        run._academy_loop = True  # type: ignore[attr-defined]  # our mark
        return run

    return decorate


def timer(
    interval: float | timedelta,
) -> Callable[[ControlMethod[SelfT]], LoopMethod[SelfT]]:
    """Run a coroutine method at a fixed interval until the agent shuts down.

    The first run is one interval after the agent's start. A run that takes longer
    than the interval delays the next one to the next multiple of it.

    Args:
        interval: seconds, or a timedelta.

    Raises:
        TypeError: the method is not a coroutine.
        ValueError: the interval is not positive.
    """
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
    if not seconds > 0:
        raise ValueError(f"The interval of a timer must be positive, not {interval}.")

    def decorate(method: ControlMethod[SelfT]) -> LoopMethod[SelfT]:
        if not inspect.iscoroutinefunction(method):
            raise not_a_coroutine("Timer", method)

        @functools.wraps(method)
        async def run(self: SelfT, shutdown: asyncio.Event) -> None:
            now = asyncio.get_running_loop().time
            due = now() + seconds
            while not await set_until(shutdown, due):
                await method(self)
                due += seconds * max(1, -((due - now()) // seconds))

        run._academy_loop = True  # type: ignore[attr-defined]  # our mark
        return run

    return decorate


class Agent:
    """Base of all agents.

    A subclass holds state, and has `@action` methods, which others call, and `@loop`
    methods, which run as long as the agent. It needs not call `super().__init__()`.
    """

    _agent_context: AgentContext | None = None

    def __init__(self) -> None:
        if type(self) is Agent:
            raise TypeError(
                "Agent is the base of agents and does nothing: instantiate a subclass."
            )
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hook in _HOOKS:
            if not inspect.iscoroutinefunction(getattr(cls, hook)):
                raise TypeError(
                    f"{cls.__name__}.{hook} is not a coroutine: declare it with "
                    "async def."
                )

    # --- what the class has

    @classmethod
    def _agent_members(cls) -> Members:
        members = _members.get(cls)
        if members is None:
            members = _members[cls] = collect(cls)
        return members

    @classmethod
    def _agent_actions(cls) -> Mapping[str, ActionSpec]:
        return cls._agent_members().actions

    @classmethod
    def _agent_action_names(cls) -> frozenset[str]:
        return cls._agent_members().names

    @classmethod
    def _agent_loops(cls) -> tuple[str, ...]:
        return cls._agent_members().loops

    @classmethod
    def _agent_mro(cls) -> tuple[str, ...]:
        """Return qualified names from this class down to, without, `Agent`."""
        bases = cls.__mro__[: cls.__mro__.index(Agent)]
        return tuple(f"{base.__module__}.{base.__qualname__}" for base in bases)

    # --- hooks

    async def agent_on_startup(self) -> None:
        """Prepare to serve; requests that come earlier wait until this returns."""

    async def agent_on_shutdown(self) -> None:
        """Release what the agent holds; its loops and actions still run."""

    # --- for the agent's own code

    @property
    def agent_context(self) -> AgentContext:
        """What the agent has while it runs.

        Raises:
            AgentNotInitializedError: it is not running yet.
        """
        context = self._agent_context
        if context is None:
            raise AgentNotInitializedError()
        return context

    @property
    def agent_id(self) -> AgentId[Any]:
        """The id under which this agent runs.

        Raises:
            AgentNotInitializedError: it is not running yet.
        """
        return self.agent_context.agent_id

    @property
    def agent_exchange_client(self) -> AgentExchangeClient:
        """The client through which this agent talks.

        Raises:
            AgentNotInitializedError: it is not running yet.
        """
        return self.agent_context.exchange_client

    def agent_shutdown(self) -> None:
        """Shut this agent down; returns at once.

        Raises:
            AgentNotInitializedError: it is not running yet.
        """
        self.agent_context.shutdown_event.set()

    async def agent_run_sync(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a blocking function in a thread of this agent and return its result.

        Raises:
            AgentNotInitializedError: the agent is not running yet.
            Exception: what the function raised.

        Cancellation:
            A function that has started runs to its end, unheard.
        """
        return await self.agent_context.run_sync(function, *args, **kwargs)

    async def agent_launch_alongside(
        self,
        agent: AgentT | type[AgentT],
        *,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        config: RuntimeConfig | None = None,
        name: str | None = None,
    ) -> Handle[AgentT]:
        """Start another agent in this event loop; it shuts down with this one.

        Args:
            agent: an agent, or a type to be instantiated.
            args: positional arguments of a type.
            kwargs: keyword arguments of a type.
            config: how the agent runs; None is the default configuration.
            name: for people, in logs and listings.

        Raises:
            AgentNotInitializedError: this agent is not running yet.
            TypeError: arguments were given for an instance.
        """
        return await self.agent_context.launch_alongside(
            agent, args=args, kwargs=kwargs, config=config, name=name
        )

    @action
    async def agent_describe(self) -> AgentDescription:
        """Tell what this agent is and which actions it has."""
        return describe(type(self), self._agent_actions())
