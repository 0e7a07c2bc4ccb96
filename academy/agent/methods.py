"""What an agent's class has: its actions and loops, and how they must look."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple


class ActionSpec(NamedTuple):
    """What `@action` was told about an action.

    Attributes:
        context: give it an `ActionContext`.
        idempotent: running it twice is as good as running it once.
        streams: it is an async generator.
    """

    context: bool = False
    idempotent: bool = False
    streams: bool = False


class Members(NamedTuple):
    """The actions by name, and names: of all, of those that yield, and of the loops."""

    actions: Mapping[str, ActionSpec]
    names: frozenset[str]
    streams: frozenset[str]
    loops: tuple[str, ...]


def collect(cls: type) -> Members:
    """Find what a class has; the most derived definition of a name decides."""
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
    streams = frozenset(name for name, spec in actions.items() if spec.streams)
    return Members(actions, frozenset(actions), streams, tuple(loops))


def not_a_coroutine(kind: str, method: Any) -> TypeError:
    """Return the error for a method that is not `async def`."""
    return TypeError(
        f'{kind} method "{name_of(method)}" is not a coroutine: declare it with '
        "async def."
    )


def name_of(method: Any) -> str:
    """Return the name of what was decorated, for people."""
    return str(getattr(method, "__name__", method))


def check_context_parameter(method: Any) -> None:
    """Refuse an action with `context=True` that cannot be given one."""
    parameter = inspect.signature(method).parameters.get("context")
    if parameter is None:
        raise TypeError(
            f'Action method "{name_of(method)}" must accept a "context" keyword '
            "argument: it is declared with @action(context=True)."
        )
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(
            f'The "context" argument to action method "{name_of(method)}" must be a '
            "keyword only argument."
        )


def is_loop(method: Any) -> bool:
    """Whether it is `async def name(self, shutdown: asyncio.Event) -> None`."""
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


def event_of(agent: object, name: str, method: str) -> asyncio.Event:
    """Return the event that an event method waits for."""
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


async def set_before(awaited: asyncio.Event, shutdown: asyncio.Event) -> bool:
    """Wait for one event or the other; whether shutdown is not set."""
    if not (awaited.is_set() or shutdown.is_set()):
        waits = [asyncio.ensure_future(e.wait()) for e in (awaited, shutdown)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
    return not shutdown.is_set()


async def set_until(shutdown: asyncio.Event, deadline: float) -> bool:
    """Wait for shutdown until a time of the event loop; whether it was set."""
    try:
        async with asyncio.timeout_at(deadline):
            return await shutdown.wait()
    except TimeoutError:
        return False
