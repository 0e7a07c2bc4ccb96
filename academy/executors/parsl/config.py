"""Parsl configurations: read from files, made for a laptop, copied before use."""

from __future__ import annotations

import contextlib
import difflib
import errno
import inspect
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor as ParslEngine
from parsl.executors.high_throughput import executor as _htex
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import LocalProvider

from academy.executors.parsl.engine import LOOPBACK, arguments_of
from academy.socket import reachable_addresses

# One config file at a time, for what is changed while it runs.
_LOOKING = threading.RLock()

DEFAULT_RUN_DIR = inspect.signature(Config).parameters["run_dir"].default


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
        with _asking_nobody():
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException as e:
        e.add_note(f"This happened in the Parsl config file {path}.")
        if isinstance(e, OSError) and e.errno == errno.ENODEV:
            # As from address_by_interface, which does not say which.
            names = ", ".join(sorted(psutil.net_if_addrs()))
            e.add_note(f"It may name a network interface; this machine has {names}.")
        raise
    return {k: v for k, v in vars(module).items() if not k.startswith("_")}


@contextlib.contextmanager
def _asking_nobody() -> Iterator[None]:
    """Find addresses without the web service that Parsl asks, which may take long.

    A HighThroughputExecutor that is made without an address looks for all there are.
    """
    htex: Any = _htex
    with _LOOKING:
        looks = htex.get_all_addresses
        htex.get_all_addresses = lambda: set(reachable_addresses())
        try:
            yield
        finally:
            htex.get_all_addresses = looks


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
    with _asking_nobody():
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
    memoized: an agent launched twice is two agents. Nothing is retried: the manager
    does that, and knows the cause of each failure, which Parsl keeps to itself.
    """
    arguments = arguments_of(config)
    if not isinstance(config.initialize_logging, bool):
        arguments["initialize_logging"] = config.initialize_logging
    else:
        arguments["initialize_logging"] = False
    arguments |= {
        "executors": executors,
        "memoizer": None,
        "retries": 0,
        "run_dir": os.fspath(run_dir),
        "usage_tracking": 0,
    }
    return type(config)(**arguments)
