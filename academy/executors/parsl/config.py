"""Parsl configurations: read from files, made for a laptop, copied before use."""

from __future__ import annotations

import difflib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor as ParslEngine
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from academy.executors.parsl import interchange
from academy.executors.providers import clone

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
DEFAULT_RUN_DIR = inspect.signature(Config).parameters["run_dir"].default
DEFAULT_INTERCHANGE = ["interchange.py"]


# --- for a laptop, or the one node of a batch job


def local_config(label: str = "local", workers: int | None = None) -> Config:
    """Return a Parsl configuration for worker processes on this machine.

    A worker that dies is noticed within a second and replaced, a dead worker pool
    within ten. Ten seconds after a client was killed, its workers are gone.

    Args:
        label: The executor's label.
        workers: How many worker processes; as many as this process has cores if None.
    """
    if workers is None:
        workers = _cores()
    return Config(
        executors=[
            HighThroughputExecutor(
                label=label,
                address=LOOPBACK,
                max_workers_per_node=workers,
                # Agents mostly wait, so the number of cores is no limit.
                cores_per_worker=1e-6,
                heartbeat_period=1,
                heartbeat_threshold=10,
                provider=LocalProvider(  # type: ignore[no-untyped-call]  # Parsl's
                    init_blocks=1, min_blocks=1, max_blocks=1
                ),
                # One that ends is replaced, unless three in a row fail.
                block_error_handler=windowed_error_handler,
            )
        ],
        strategy="simple",
        strategy_period=0.2,
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- from a file


def read_config(path: str | os.PathLike[str]) -> Config:
    """Run a Parsl config file and return its `parsl.Config`.

    That is the one named `config`, or else the only one in the file, or else what its
    only function without parameters returns, as in Parsl's own examples.

    Raises:
        FileNotFoundError: There is no such file; names the nearest one.
        ValueError: There is no Config in it, or several; says what was found.
    """
    path = Path(path).expanduser()
    names = _run(path)
    found = {name: v for name, v in names.items() if isinstance(v, Config)}
    if "config" in found:
        return found["config"]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ValueError(
            f"{path} holds several parsl.Config objects ({', '.join(found)}) and none "
            "named config: name the one to use config."
        )
    return _made_by_function(path, names)


def _run(path: Path) -> dict[str, Any]:
    """Run a Python file and return its public names; write no bytecode beside it."""
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.py")]
        near = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f" Did you mean {path.parent / near[0]}?" if near else ""
        raise FileNotFoundError(
            f"There is no Parsl config file {path}.{hint}"
        ) from None
    module = types.ModuleType(f"parsl_config_{path.stem}")
    module.__file__ = str(path)
    # Dataclasses and pickle look for the module of a class here.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException as e:
        e.add_note(f"This happened in the Parsl config file {path}.")
        raise
    return {k: v for k, v in vars(module).items() if not k.startswith("_")}


def _made_by_function(path: Path, names: dict[str, Any]) -> Config:
    module = f"parsl_config_{path.stem}"
    functions: dict[str, Callable[[], Any]] = {
        name: value
        for name, value in names.items()
        if isinstance(value, types.FunctionType)
        and value.__module__ == module
        and not inspect.signature(value).parameters
    }
    chosen = functions.get("config")
    if chosen is None and len(functions) == 1:
        chosen = next(iter(functions.values()))
    made = chosen() if chosen is not None else None
    if isinstance(made, Config):
        return made
    own = {
        name: type(value).__name__
        for name, value in names.items()
        if not isinstance(value, types.ModuleType | type)
        and type(value).__module__ != "__future__"
        and not (isinstance(value, types.FunctionType) and value.__module__ != module)
    }
    what = ", ".join(f"{name} ({kind})" for name, kind in own.items())
    raise ValueError(
        f"{path} holds no parsl.Config, only {what or 'no names at all'}. It needs a "
        "line such as: config = Config(executors=[HighThroughputExecutor(...)])"
    )


# --- copied, since running a configuration writes into it


def fresh_config(
    config: Config, executors: list[ParslEngine], run_dir: str | os.PathLike[str]
) -> Config:
    """Return the configuration for one run of these executors.

    Usage tracking is off, and Parsl sets up logging only where it was given a log
    configuration, because log handlers and levels are the program's own. Nothing is
    memoized: an agent launched twice is two agents.
    """
    arguments = _arguments(config)
    if not isinstance(config.initialize_logging, bool):
        arguments["initialize_logging"] = config.initialize_logging
    else:
        arguments["initialize_logging"] = False
    arguments |= {
        "executors": executors,
        "memoizer": None,
        "run_dir": os.fspath(run_dir),
        "usage_tracking": 0,
    }
    return type(config)(**arguments)


def fresh_executor(executor: ParslEngine) -> ParslEngine:
    """Return an executor like this one, which can be started although this one was.

    Starting rewrites an executor's attributes, so it is made anew with the arguments
    that it keeps, as Parsl does to show it. One that does not keep all its
    arguments is returned as it is.

    Where the configuration leaves it open, a HighThroughputExecutor gets an
    interchange that ends with this process, workers that find this environment, and on
    this machine alone, an address that nobody else can reach.

    Raises:
        ValueError: The executor runs already, in a DataFlowKernel of somebody else.
    """
    try:
        if isinstance(executor, HighThroughputExecutor):
            return _fresh_htex(executor)
        return _again(executor)
    except _NotKeptError:
        return executor


class _NotKeptError(Exception):
    """An object does not keep an argument of its constructor."""


def _fresh_htex(executor: HighThroughputExecutor) -> HighThroughputExecutor:
    if executor.interchange_proc is not None:
        raise ValueError(
            f"Parsl executor {executor.label!r} is running already: give a Config that "
            "has not been loaded with parsl.load()."
        )
    provider = executor.provider
    assert provider is not None  # Without one given, the constructor makes one.
    workers = executor.max_workers_per_node
    fresh = _again(
        executor,
        provider=clone(provider),
        max_workers_per_node=None if math.isinf(workers) else workers,
        # Without an address the constructor asks the network for all there are.
        address=LOOPBACK,
        # MPIExecutor does not accept what it keeps.
        interchange_launch_cmd=None,
    )
    if executor.address is None and not _on_this_machine(provider):
        fresh.address = None
        fresh.all_addresses = executor.all_addresses
    elif executor.address is not None:
        fresh.address = executor.address
        fresh.all_addresses = {executor.address}
    if executor.interchange_launch_cmd == DEFAULT_INTERCHANGE:
        fresh.interchange_launch_cmd = [
            sys.executable,
            "-P",  # The script's directory holds a module of the name parsl.
            interchange.__file__,
            str(os.getpid()),
        ]
    else:
        fresh.interchange_launch_cmd = executor.interchange_launch_cmd
    return fresh


def _on_this_machine(provider: ExecutionProvider) -> bool:
    """Tell whether workers connect from here; inside a batch job they may not."""
    return (
        isinstance(provider, LocalProvider)
        and provider.nodes_per_block == 1
        and isinstance(provider.launcher, SingleNodeLauncher | SimpleLauncher)
    )


def _again(thing: T, **changes: Any) -> T:
    """Call the constructor of a thing with the arguments that it keeps."""
    arguments = _arguments(thing)
    arguments |= {k: v for k, v in changes.items() if k in arguments}
    return type(thing)(**arguments)


def _arguments(thing: object) -> dict[str, Any]:
    """Collect a constructor's arguments from the attributes of the same names.

    Raises:
        _NotKeptError: One of them is not kept.
    """
    arguments: dict[str, Any] = {}
    for cls in type(thing).__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is None:
            continue
        parameters = list(inspect.signature(constructor).parameters.values())
        for parameter in parameters[1:]:
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if not hasattr(thing, parameter.name):
                raise _NotKeptError(parameter.name)
            arguments[parameter.name] = getattr(thing, parameter.name)
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break  # Nothing is passed on to the next class.
    return arguments
