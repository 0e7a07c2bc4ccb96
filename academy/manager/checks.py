"""What is refused before anything is registered or submitted."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from academy.agent import Agent
from academy.executors import base
from academy.launch import LaunchOptions

if TYPE_CHECKING:
    from academy.manager.launched import LaunchedAgent, LaunchRequest

EVENT_LOOP = "event_loop"
"""Name of the executor that is always there: the manager's own event loop."""

Executors = Mapping[str, Executor | None]


def checked_executors(executors: Any) -> dict[str, Executor | None]:
    """Return the executors by name, the event loop among them.

    Raises:
        ValueError: one of them is no executor.
    """
    if executors is None:
        executors = {}
    if not isinstance(executors, Mapping):
        raise ValueError(
            f"Invalid executors parameter: {executors!r}. Give one "
            "concurrent.futures.Executor, a mapping of names to executors, or None."
        )
    for name, executor in executors.items():
        if not isinstance(name, str) or not isinstance(executor, Executor | None):
            raise ValueError(
                f"Invalid executors parameter: {name!r} is {executor!r}. A name stands "
                "for a concurrent.futures.Executor, or None for this event loop."
            )
    return {EVENT_LOOP: None, **executors}


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which name may have been meant, and which there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Known: {', '.join(names)}."


def find_executor(name: str, executors: Executors) -> Executor | None:
    """Return an executor by name.

    Raises:
        ValueError: there is none of that name; names the nearest one.
    """
    if name not in executors:
        raise ValueError(f'No executor named "{name}". {nearest(name, executors)}')
    return executors[name]


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that a launch does not have, which types cannot do at run time.

    Raises:
        TypeError: names the option and the nearest one.
    """
    known = LaunchOptions.__annotations__
    for key in options:
        if key not in known:
            raise TypeError(f'There is no launch option "{key}". {nearest(key, known)}')


def check_request(request: LaunchRequest) -> None:
    """Refuse what the agent's constructor or the executor would refuse later.

    Raises:
        TypeError: this is no agent, or its type does not take these arguments.
        ValueError: the executor does not take these `submit_kwargs`.
    """
    _check_agent(request.agent, request.args, request.kwargs)
    if request.executor is not None:
        base.validate(request.executor, request.submit_kwargs)
    elif request.submit_kwargs:
        keys = ", ".join(map(repr, request.submit_kwargs))
        raise ValueError(
            f'Executor "{request.executor_name}" is this event loop, which takes no '
            f"submit_kwargs, but was given {keys}."
        )


def _check_agent(agent: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    if isinstance(agent, Agent):
        if args or kwargs:
            raise TypeError(
                f"args and kwargs are for a type that is made on the worker; {agent!r} "
                "has been made already."
            )
        return
    if not isinstance(agent, type) or not issubclass(agent, Agent):
        raise TypeError(f"An Agent, or a subclass of it, is launched; not {agent!r}.")
    try:
        signature = inspect.signature(agent)
    except ValueError:  # written in C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"{agent.__name__}{signature} does not take the args and kwargs of this "
            f"launch: {error}."
        ) from None


def warn_of_overload(
    request: LaunchRequest, launched: Collection[LaunchedAgent]
) -> None:
    """Warn when this launch gives an executor more agents than it has workers."""
    workers = None if request.executor is None else base.max_workers(request.executor)
    if workers is None or len(launched) < workers:
        return
    name = request.executor_name
    agents = 1 + sum(
        one.executor_name == name and not one.task.done() for one in launched
    )
    if agents > workers:
        warnings.warn(
            f'Executor overload: "{name}" has {workers} workers for {agents} agents. '
            "An agent keeps its worker until it ends, so the others wait. Raise the "
            "number of workers, or share them with EventLoopExecutor.",
            RuntimeWarning,
            stacklevel=4,
        )
