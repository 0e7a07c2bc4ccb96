"""Agents: state, actions that others call, and loops that run by themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from academy.agent.decorators import ActionSpec, action, event, loop, timer
from academy.agent.description import ActionDescription, AgentDescription, describe
from academy.exception import AgentNotInitializedError

if TYPE_CHECKING:
    from academy.context import AgentContext
    from academy.exchange.client import AgentExchangeClient
    from academy.handle import Handle
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
P = ParamSpec("P")
R = TypeVar("R")

_HOOKS = ("agent_on_startup", "agent_on_shutdown")


class _Members(NamedTuple):
    actions: Mapping[str, ActionSpec]
    names: frozenset[str]
    loops: tuple[str, ...]


# Not in the class: what is pickled by value would take it along.
_members: WeakKeyDictionary[type, _Members] = WeakKeyDictionary()


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
    def _agent_members(cls) -> _Members:
        members = _members.get(cls)
        if members is None:
            members = _members[cls] = _collect(cls)
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


def _collect(cls: type[Agent]) -> _Members:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    actions = {}
    loops = []
    for name, member in found.items():
        spec = getattr(member, "_academy_action", None)
        if isinstance(spec, ActionSpec):
            actions[name] = spec
        elif getattr(member, "_academy_loop", None) is True:
            loops.append(name)
    return _Members(actions, frozenset(actions), tuple(loops))
