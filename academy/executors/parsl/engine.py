"""Parsl executors, copied before use, since running one writes into it."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import os
import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from parsl.executors import HighThroughputExecutor
from parsl.executors.base import ParslExecutor as ParslEngine
from parsl.executors.errors import ScalingFailed
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from parsl.providers.cluster_provider import ClusterProvider

from academy.executors import dialects
from academy.executors.parsl import interchange
from academy.executors.providers import Script, clone, script_of, submit_script
from academy.executors.units import parse_walltime
from academy.socket import is_loopback, reachable_addresses

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
DEFAULT_INTERCHANGE = ["interchange.py"]


class NotKeptError(Exception):
    """An object does not keep an argument of its constructor."""


def fresh_executor(
    executor: ParslEngine,
    changes: Mapping[str, Any] | None = None,
    first_block: int = 0,
) -> ParslEngine:
    """Return an executor like this one, which can be started although this one was.

    Starting rewrites an executor's attributes, so it is made anew with the arguments
    that it keeps, as Parsl does to show it. One that does not keep all its
    arguments is returned as it is.

    Where the configuration leaves it open, a HighThroughputExecutor gets an
    interchange that ends with this process, workers that find this environment, and the
    addresses of this machine's interfaces, or on this machine alone, an address that
    nobody else can reach. Its jobs have names without a time stamp.

    Args:
        executor: which may have been started, if not by somebody else.
        changes: arguments of its constructor that are to be others.
        first_block: the number of its first block.

    Raises:
        ValueError: The executor runs already, in a DataFlowKernel of somebody else.
        NotKeptError: There are changes, and it does not keep all its arguments.
    """
    try:
        if isinstance(executor, HighThroughputExecutor):
            return _fresh_htex(executor, changes or {}, first_block)
        return again(executor, changes or {})
    except NotKeptError:
        if changes:
            raise
        return executor


def _fresh_htex(
    executor: HighThroughputExecutor, changes: Mapping[str, Any], first_block: int
) -> HighThroughputExecutor:
    if executor.interchange_proc is not None:
        raise ValueError(
            f"Parsl executor {executor.label!r} is running already: give a Config that "
            "has not been loaded with parsl.load()."
        )
    provider: Any = changes.get("provider", executor.provider)
    workers = executor.max_workers_per_node
    ours = {
        "max_workers_per_node": None if math.isinf(workers) else workers,
        # Without an address the constructor asks the network for all there are.
        "address": LOOPBACK,
        # MPIExecutor does not accept what it keeps.
        "interchange_launch_cmd": None,
    }
    own = clone(provider)
    if isinstance(own, ClusterProvider):
        # Parsl would make no limit of less than a minute, and knows no days.
        with contextlib.suppress(ValueError):
            own.walltime = parse_walltime(own.walltime)
    fresh: Any = again(executor, {**ours, **changes, "provider": own})
    fresh.address, fresh.all_addresses = addresses(executor.address, provider)
    if executor.interchange_launch_cmd == DEFAULT_INTERCHANGE:
        fresh.interchange_launch_cmd = [
            sys.executable,
            "-P",  # The script's directory holds a module of the name parsl.
            interchange.__file__,
            str(os.getpid()),
        ]
    else:
        fresh.interchange_launch_cmd = executor.interchange_launch_cmd
    fresh._block_id_counter.count = first_block
    if has_script(provider):
        fresh.launching = threading.Lock()
        fresh._launch_block = partial(_launch_block, fresh)
    return fresh  # type: ignore[no-any-return]  # it is one


# --- addresses


def addresses(address: str | None, provider: Any) -> tuple[str | None, list[str]]:
    """Return where an interchange listens (None: everywhere), and where workers try.

    They try all at once, and take the first at which it answers.
    """
    if address is not None:
        return address, [address]
    if on_this_machine(provider):
        return LOOPBACK, [LOOPBACK]
    return None, reachable_addresses() or [LOOPBACK]


def check_address(executor: Any, taker: str) -> None:
    """Refuse an address at which workers on other machines find nobody.

    They would end at once, and whoever waits for them would see nothing of it.
    """
    address = getattr(executor, "address", None)
    if address is None or not is_loopback(address):
        return
    if not isinstance(executor.provider, ClusterProvider):
        return
    here = reachable_addresses()
    raise ValueError(
        f"{taker} has address={address!r}, where only workers on this machine could "
        f"connect to it, and blocks from {type(executor.provider).__name__}. Leave "
        "address= out, and workers find the way by trying, or name one of this "
        f"machine's: {', '.join(here) or 'it has none but loopback'}."
    )


def on_this_machine(provider: Any) -> bool:
    """Tell whether workers connect from here; inside a batch job they may not."""
    return (
        isinstance(provider, LocalProvider)
        and provider.nodes_per_block == 1
        and isinstance(provider.launcher, SingleNodeLauncher | SimpleLauncher)
    )


# --- jobs


def has_script(provider: Any) -> bool:
    """Tell whether all that is submitted is a script (not so for Condor, clouds)."""
    return dialects.find(provider) is not None


def job_name(engine: Any, block: str) -> str:
    """Return the name of a block's job, which no other run has.

    Launchers put files of this name where others see them.
    """
    run = hashlib.sha256(os.fspath(engine.run_dir).encode()).hexdigest()[:8]
    return f"parsl.{engine.label}.{run}.block-{block}"


def job_script(engine: Any, block: str) -> Script:
    """Return what is submitted for a block."""
    return script_of(*_submission(engine, block))


def _launch_block(engine: Any, block: str) -> str:
    """Submit the job of a block, in place of Parsl's method, and return its id."""
    submission = _submission(engine, block)
    with engine.launching:
        if engine.bad_state_is_set:
            raise ScalingFailed(engine, "it is being ended")
        return submit_script(*submission)


def _submission(engine: Any, block: str) -> tuple[Any, str, int, str, str]:
    """Return what `script_of` and `submit_script` take for a block."""
    command = engine._get_launch_command(block)
    directory = os.path.join(engine.run_dir, "submit_scripts")
    return engine.provider, command, 1, job_name(engine, block), directory


# --- copies


def again(thing: T, changes: Mapping[str, Any]) -> T:
    """Call the constructor of a thing with the arguments that it keeps.

    Raises:
        NotKeptError: One of them is not kept.
    """
    arguments = arguments_of(thing)
    arguments |= {k: v for k, v in changes.items() if k in arguments}
    return type(thing)(**arguments)


def arguments_of(thing: object) -> dict[str, Any]:
    """Collect a constructor's arguments from the attributes of the same names.

    Raises:
        NotKeptError: One of them is not kept.
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
                raise NotKeptError(parameter.name)
            arguments[parameter.name] = getattr(thing, parameter.name)
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break  # Nothing is passed on to the next class.
    return arguments
