"""Decorators that make methods actions and loops of an agent."""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, overload

from academy.handle import Handle

SelfT = TypeVar("SelfT")
ActionMethod = TypeVar("ActionMethod", bound=Callable[..., Coroutine[Any, Any, Any]])
LoopMethod = Callable[[SelfT, asyncio.Event], Coroutine[Any, Any, None]]
LoopMethodT = TypeVar(
    "LoopMethodT", bound=Callable[[Any, asyncio.Event], Coroutine[Any, Any, None]]
)
ControlMethod = Callable[[SelfT], Coroutine[Any, Any, None]]

_PROTECTED_NAMES = frozenset(name for name in dir(Handle) if not name.startswith("_"))


class ActionSpec(NamedTuple):
    """What `@action` was told about an action.

    Attributes:
        context: give it an `ActionContext`.
        idempotent: running it twice is as good as running it once.
    """

    context: bool = False
    idempotent: bool = False


def _not_a_coroutine(kind: str, method: Any) -> TypeError:
    return TypeError(
        f'{kind} method "{_name(method)}" is not a coroutine: declare it with '
        "async def."
    )


def _name(method: Any) -> str:
    return str(getattr(method, "__name__", method))


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

    Args:
        method: the method, when used without arguments.
        allow_protected_name: do not warn of a name that a handle uses itself; such
            an action is called with `handle.action("name")`.
        context: give the method who has called, as its keyword-only parameter
            `context` (`ActionContext`).
        idempotent: the action may be run again when the agent's process ended in
            the midst of it; any other fails then (`ActionInterruptedError`).

    Raises:
        TypeError: the method is not a coroutine, or takes no `context`.
    """

    def decorate(method: Any) -> Any:
        name = _name(method)
        if not inspect.iscoroutinefunction(method):
            raise _not_a_coroutine("Action", method)
        if not allow_protected_name and name in _PROTECTED_NAMES:
            warnings.warn(
                f'The name of action "{name}" is also that of a method of Handle, so '
                f'it can only be called with handle.action("{name}"). Rename it, or '
                "say @action(allow_protected_name=True).",
                UserWarning,
                stacklevel=2 if given is None else 3,
            )
        if context:
            _check_context_parameter(method)
        method._academy_action = ActionSpec(context, idempotent)
        return method

    given = method
    return decorate if method is None else decorate(method)


def _check_context_parameter(method: Any) -> None:
    parameter = inspect.signature(method).parameters.get("context")
    if parameter is None:
        raise TypeError(
            f'Action method "{_name(method)}" must accept a "context" keyword '
            "argument: it is declared with @action(context=True)."
        )
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(
            f'The "context" argument to action method "{_name(method)}" must be a '
            "keyword only argument."
        )


def loop(method: LoopMethodT) -> LoopMethodT:
    """Make a coroutine method a loop, which runs as long as its agent.

    It is to return soon after `shutdown` is set, and is cancelled if it does not.

    Raises:
        TypeError: it is not `async def name(self, shutdown: asyncio.Event) -> None`.
    """
    if not _is_loop(method):
        raise TypeError(
            f'Signature of loop method "{_name(method)}" must be: async def '
            f"{_name(method)}(self, shutdown: asyncio.Event) -> None. It is: "
            f"{'async ' if inspect.iscoroutinefunction(method) else ''}def "
            f"{_name(method)}{inspect.signature(method)}."
        )
    method._academy_loop = True  # type: ignore[attr-defined]  # our mark
    return method


def _is_loop(method: Any) -> bool:
    if not inspect.iscoroutinefunction(method):
        return False
    try:
        signature = inspect.signature(method, eval_str=True)
    except Exception:  # annotations may name what only type checkers import
        signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    return (
        len(parameters) == 2
        and parameters[1].name == "shutdown"
        and parameters[1].annotation in (asyncio.Event, "asyncio.Event", "Event")
        and signature.return_annotation in (None, "None")
    )


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
            raise _not_a_coroutine("Event", method)

        @functools.wraps(method)
        async def run(self: SelfT, shutdown: asyncio.Event) -> None:
            awaited = _event_of(self, name, _name(method))
            while await _set_before(awaited, shutdown):
                try:
                    await method(self)
                finally:
                    awaited.clear()

        run._academy_loop = True  # type: ignore[attr-defined]  # our mark
        return run

    return decorate


def _event_of(agent: object, name: str, method: str) -> asyncio.Event:
    try:
        found = getattr(agent, name)
    except AttributeError:
        raise AttributeError(
            f'{type(agent).__name__} has no attribute "{name}", which event method '
            f'"{method}" waits for. Set it in __init__ or agent_on_startup.',
            name=name,
        ) from None
    if not isinstance(found, asyncio.Event):
        raise TypeError(
            f'Attribute "{name}" of {type(agent).__name__}, which event method '
            f'"{method}" waits for, is of type {type(found).__name__}, not '
            "asyncio.Event."
        )
    return found


async def _set_before(awaited: asyncio.Event, shutdown: asyncio.Event) -> bool:
    """Wait for either event; whether shutdown was not the one."""
    if not (awaited.is_set() or shutdown.is_set()):
        waits = [asyncio.ensure_future(e.wait()) for e in (awaited, shutdown)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
    return not shutdown.is_set()


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
            raise _not_a_coroutine("Timer", method)

        @functools.wraps(method)
        async def run(self: SelfT, shutdown: asyncio.Event) -> None:
            now = asyncio.get_running_loop().time
            due = now() + seconds
            while not await _set_until(shutdown, due):
                await method(self)
                due += seconds * max(1, -((due - now()) // seconds))

        run._academy_loop = True  # type: ignore[attr-defined]  # our mark
        return run

    return decorate


async def _set_until(shutdown: asyncio.Event, deadline: float) -> bool:
    try:
        async with asyncio.timeout_at(deadline):
            return await shutdown.wait()
    except TimeoutError:
        return False
