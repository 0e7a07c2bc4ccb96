"""Handles: references to agents, through which their actions are called."""

from __future__ import annotations

import functools
import pickle
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)

from academy.exception import AgentTerminatedError
from academy.handle.call import BoundAction, Call
from academy.handle.naming import action_name, unknown_action, wrong_use
from academy.handle.timeouts import check_timeout, chosen, timed

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.client import ExchangeClient
    from academy.exchange.mailbox_status import MailboxStatus
    from academy.identifier import AgentId
    from academy.serialize import SerializationStrategy
    from academy.stats import AgentStats

AgentT_co = TypeVar("AgentT_co", bound="Agent", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_POLLING_INTERVAL = 60.0


class Handle(Generic[AgentT_co]):
    """Reference to an agent: `await handle.name(...)` calls its action `name`.

    One that yields is called with `async for item in handle.name(...)`.

    A handle is a value. It may be stored, compared, pickled and used anywhere: it
    finds the exchange client of the context in which it is used.

    Args:
        agent_id: whom it refers to; None until `Manager.launch_batch` submits.
        exchange: client to use where the context has none.
        ignore_context: use `exchange` always; such a handle does not pickle.
        request_serializer: how arguments are encoded (`default_serializer` if None).
        result_serializer: how the result is wanted (as the arguments if None).
        exception_serializer: how exceptions are wanted (as the result if None).
        polling_interval: has no effect: the exchange tells when an agent goes (and
            one of protocol v1 is asked once per heartbeat interval).
        reject_on_inactive: fail the actions of an agent that missed its heartbeats: its
            connection has been gone for longer than `config.stale_after` of the client.
        timeout: seconds that a call may take, or of a stream the wait for each item;
            None is the default of the exchange client's configuration.

    Raises:
        ValueError: `ignore_context` without `exchange`.
    """

    __slots__ = (
        "_actions",
        "_agent_id",
        "_exception_serializer",
        "_exchange",
        "_ignore_context",
        "_polling_interval",
        "_reject_on_inactive",
        "_request_serializer",
        "_result_serializer",
        "_streams",
        "_timeout",
    )

    def __init__(
        self,
        agent_id: AgentId[AgentT_co] | None = None,
        *,
        exchange: ExchangeClient | None = None,
        ignore_context: bool = False,
        request_serializer: SerializationStrategy | None = None,
        result_serializer: SerializationStrategy | None = None,
        exception_serializer: SerializationStrategy | None = None,
        polling_interval: float = DEFAULT_POLLING_INTERVAL,
        reject_on_inactive: bool = False,
        timeout: float | None = None,
    ) -> None:
        if ignore_context and exchange is None:
            raise ValueError(
                "ignore_context=True pins a handle to one exchange client: "
                "give it as exchange=."
            )
        self._agent_id = agent_id
        self._actions: frozenset[str] | None = None
        self._streams: frozenset[str] = frozenset()
        self._exchange = exchange
        self._ignore_context = ignore_context
        self._request_serializer = request_serializer
        self._result_serializer = result_serializer
        self._exception_serializer = exception_serializer
        self._polling_interval = polling_interval
        self._reject_on_inactive = reject_on_inactive
        self._timeout = check_timeout(timeout)

    @classmethod
    def _of(
        cls, agent_id: AgentId[Any] | None, agent_type: type[Agent], **options: Any
    ) -> Handle[Any]:
        """Make a handle that knows its agent's class, so refuses unknown names."""
        handle = cls(agent_id, **options)
        handle._knows(agent_type)
        return handle

    def _knows(self, agent_type: type[Agent]) -> None:
        members = agent_type._agent_members()
        self._actions, self._streams = members.names, members.streams

    def _bind(self, agent_id: AgentId[Any]) -> None:
        """Tell a handle of `launch_batch` whom it refers to."""
        self._agent_id = agent_id

    @property
    def agent_id(self) -> AgentId[AgentT_co]:
        """Whom this handle refers to.

        Raises:
            RuntimeError: the handle is not bound to an agent yet.
        """
        agent_id = self._agent_id
        if agent_id is None:
            raise RuntimeError(
                "This handle is not bound to an agent yet: handles of launch_batch() "
                "are bound when the batch is submitted."
            )
        return agent_id

    # --- a value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return NotImplemented
        if self._agent_id is None or other._agent_id is None:
            return self is other
        return self._agent_id == other._agent_id

    def __hash__(self) -> int:
        return hash(self.agent_id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._agent_id or 'unbound'})"

    def __reduce__(self) -> tuple[Any, ...]:
        agent_id = self._agent_id
        if agent_id is None:
            raise pickle.PicklingError(
                "A handle that is unbound does not pickle: it refers to nobody before "
                "its batch is submitted."
            )
        if self._ignore_context:
            raise pickle.PicklingError(
                f"The handle to {agent_id} is pinned to an exchange client of this "
                "process (ignore_context=True), so it does not pickle."
            )
        options = (
            self._request_serializer,
            self._result_serializer,
            self._exception_serializer,
            self._polling_interval,
            self._reject_on_inactive,
            self._timeout,
        )
        arguments = (agent_id.uid.bytes, agent_id.name, self._actions)
        if options != _DEFAULTS:
            return _restore_handle, (*arguments, self._streams, options)
        if self._streams:
            return _restore_handle, (*arguments, self._streams)
        return _restore_handle, arguments

    # --- calls

    def with_timeout(self, seconds: float | None) -> Self:
        """Return this handle with another timeout: `handle.with_timeout(9).solve(x)`.

        Args:
            seconds: that a call may take, or of a stream the wait for each item;
                `math.inf` is for ever, None the default.
        """
        self.agent_id  # noqa: B018  # a copy would never be bound
        other = object.__new__(type(self))
        if own := getattr(self, "__dict__", None):  # of a subclass without slots
            other.__dict__.update(own)
        for kind in type(self).__mro__:
            for name in getattr(kind, "__slots__", ()):
                setattr(other, name, getattr(self, name))
        other._timeout = check_timeout(seconds)
        return other

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"Handle has no attribute {name!r}.", name=name)
        if self._actions is not None and name not in self._actions:
            raise unknown_action(self._agent_id, name, self._actions)
        return BoundAction(self, name)

    @overload
    def action(
        self,
        action: Callable[Concatenate[AgentT_co, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def action(
        self,
        action: Callable[Concatenate[AgentT_co, P], AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> AsyncIterator[R]: ...

    @overload
    def action(self, action: str, /, *args: Any, **kwargs: Any) -> Call[Any]: ...

    def action(self, action: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run an action of the agent: await its result, or iterate over its results.

        Args:
            action: its name, or the method itself (`Counter.add`), with which type
                checkers know the arguments and the result.
            *args: positional arguments of the action.
            **kwargs: keyword arguments of the action.

        Raises:
            AgentTerminatedError: the agent is gone for good.
            AgentInactiveError: it missed its heartbeats (`reject_on_inactive`).
            ActionCancelledError: it shut down before the action was done.
            ActionInterruptedError: its process died; the outcome is unknown.
            TimeoutError: the handle's timeout has passed; the action is cancelled.
            AttributeError: it has no such action.
            TypeError: the action yields and was awaited, or the other way round.
            ExchangeClientNotFoundError: there is no exchange client here.
            Exception: what the action raised.

        Cancellation:
            Cancels the action in the agent. So does leaving a loop over it early.
        """
        return Call(self, action, args, kwargs)

    def _call(
        self, action: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        return _caller()(self, action, args, kwargs)

    def _iterate(
        self, action: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        from academy.handle.streams import iterate

        return iterate(self, self._name_of(action, streams=True), args, kwargs)

    def _name_of(self, action: Any, *, streams: bool = False) -> str:
        """Return the name of an action; what is known to be wrong is refused here."""
        name = action if isinstance(action, str) else action_name(action)
        if self._actions is not None:
            if name not in self._actions:
                raise unknown_action(self._agent_id, name, self._actions)
            if (name in self._streams) is not streams:
                raise wrong_use(name, streams=not streams)
        return name

    async def ping(self, timeout: float | None = None) -> float:
        """Return the seconds that a message to the agent and back takes.

        An agent that is still starting answers when it has started.

        Raises:
            TimeoutError: no answer came within `timeout` seconds.
            PingCancelledError: the agent ended before it started.
            AgentTerminatedError: the agent is gone for good.
        """
        from academy.handle.calls import ping

        return await ping(self, timeout)

    async def shutdown(self, terminate: bool | None = None) -> None:
        """Ask the agent to shut down; returns when the request is on its way.

        Args:
            terminate: whether its mailbox ends with it (as it is configured if None).

        Raises:
            AgentTerminatedError: the agent is gone already.
        """
        from academy.handle.calls import shutdown

        await shutdown(self, terminate)

    async def agent_status(self) -> MailboxStatus:
        """Return the state of the agent's mailbox."""
        from academy.handle.calls import client_for

        return await client_for(self).status(self.agent_id)

    async def agent_stats(self) -> AgentStats:
        """Return the counts of the agent's messages."""
        from academy.handle.calls import client_for

        return await client_for(self).agent_stats(self.agent_id)


@functools.cache
def _caller() -> Callable[..., Coroutine[Any, Any, Any]]:
    # An import statement takes half a microsecond each time it is passed.
    from academy.handle.calls import call

    return call


class ProxyHandle(Handle[AgentT_co]):
    """Calls a local agent object as if it were remote, to test agents by themselves.

    There is no exchange and no runtime: hooks and loops do not run.
    """

    __slots__ = ("_completed", "_shut_down", "agent")

    def __init__(self, agent: AgentT_co) -> None:
        from academy.identifier import AgentId

        super().__init__(AgentId.new())
        self.agent = agent
        self._knows(type(agent))
        self._completed = 0
        self._shut_down = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.agent,)

    async def _call(
        self, action: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self._name_of(action)
        method, given = self._prepare(name, kwargs)
        try:
            seconds = chosen(self._timeout, None)
            return await timed(method(*args, **given), seconds, self.agent_id, name)
        finally:
            self._completed += 1

    async def _iterate(
        self, action: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        name = self._name_of(action, streams=True)
        method, given = self._prepare(name, kwargs)
        seconds = chosen(self._timeout, None)
        end = object()
        try:
            async with aclosing(method(*args, **given)) as items:
                while True:
                    coming = anext(items, end)
                    item = await timed(coming, seconds, self.agent_id, name)
                    if item is end:
                        break
                    yield item
        finally:
            self._completed += 1

    def _prepare(
        self, name: str, kwargs: dict[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return an action's method and keyword arguments."""
        self._check_running()
        if self.agent._agent_actions()[name].context:
            from academy.context import ActionContext
            from academy.identifier import UserId

            kwargs = {**kwargs, "context": ActionContext(UserId.new(), None)}
        return getattr(self.agent, name), kwargs

    def _check_running(self) -> None:
        if self._shut_down:
            raise AgentTerminatedError(self.agent_id)

    async def ping(self, timeout: float | None = None) -> float:
        self._check_running()
        return 0.0

    async def shutdown(self, terminate: bool | None = None) -> None:
        self._check_running()
        self._shut_down = True

    async def agent_status(self) -> MailboxStatus:
        from academy.exchange.mailbox_status import MailboxStatus

        return MailboxStatus.TERMINATED if self._shut_down else MailboxStatus.ACTIVE

    async def agent_stats(self) -> AgentStats:
        from academy.stats import AgentStats

        done = self._completed
        return AgentStats(done, done, done, 0, 0)


_DEFAULTS = (None, None, None, DEFAULT_POLLING_INTERVAL, False, None)


def _restore_handle(
    uid: bytes,
    name: str | None,
    actions: frozenset[str] | None,
    streams: frozenset[str] = frozenset(),
    options: tuple[Any, ...] = _DEFAULTS,
) -> Handle[Any]:
    from academy.identifier import entity_id

    agent_id: Any = entity_id(True, uid, name)
    handle: Handle[Any] = Handle(agent_id)
    handle._actions, handle._streams = actions, streams
    (
        handle._request_serializer,
        handle._result_serializer,
        handle._exception_serializer,
        handle._polling_interval,
        handle._reject_on_inactive,
        handle._timeout,
    ) = options
    return handle
