"""What is refused before anything is registered or submitted."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from academy.agent import Agent
from academy.executors import base
from academy.launch import LaunchOptions
from academy.manager.places import nearest
from academy.manager.request import LaunchRequest
from academy.runtime import RuntimeConfig

if TYPE_CHECKING:
    from academy.logging.configs.base import LogConfig
    from academy.manager.launched import LaunchedAgent
    from academy.manager.places import NamedExecutors

# Reading a signature takes longer than all the rest of a launch.
_signatures: WeakKeyDictionary[type[Agent], inspect.Signature] = WeakKeyDictionary()


def check_launch(
    agent: Any,
    options: Mapping[str, Any],
    executors: NamedExecutors,
    log_config: LogConfig | None,
) -> LaunchRequest:
    """Refuse all of a launch that is known to fail, and return the rest.

    Raises:
        TypeError: this is no agent, its type does not take these arguments, or there
            is no such option.
        ValueError: there is no such executor, or it does not take `submit_kwargs`.
    """
    check_options(options)
    name, executor = executors.find(options.get("executor"))
    request = LaunchRequest(
        agent,
        tuple(options.get("args") or ()),
        dict(options.get("kwargs") or {}),
        options.get("config") or RuntimeConfig(),
        name,
        executor,
        dict(options.get("submit_kwargs") or {}),
        options.get("name"),
        options.get("log_config") or log_config,
    )
    _check_agent(request.agent, request.args, request.kwargs)
    _check_submit_kwargs(request)
    return request


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that a launch does not have, which types cannot do at run time.

    Raises:
        TypeError: names the option and the nearest one.
    """
    known = LaunchOptions.__annotations__
    for key in options:
        if key not in known:
            raise TypeError(f'There is no launch option "{key}". {nearest(key, known)}')


def _check_submit_kwargs(request: LaunchRequest) -> None:
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
    signature = _signatures.get(agent)
    if signature is None:
        try:
            signature = _signatures[agent] = inspect.signature(agent)
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
