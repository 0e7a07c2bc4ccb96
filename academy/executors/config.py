"""`executors.toml`: names for the places where agents may run."""

from __future__ import annotations

import multiprocessing
import os
import tomllib
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from academy.executors.base import unknown_key
from academy.executors.resources import ResourceSpec

if TYPE_CHECKING:
    from academy.executors.parsl import ParslExecutor


class Program:
    """The path of a program, or the name of one that is on the PATH."""


# What each kind of table may hold besides `kind`, and what it must hold. These are the
# parameters of its executor's class, by their names.
KEYS: Mapping[str, Mapping[str, type]] = {
    "parsl": {
        "config": Path,
        "label": str,
        "run_dir": Path,
        "max_pools": int,
        "resources": dict,
        "agents_per_worker": int,
    },
    "batch": {
        "scheduler": str,
        "config": Path,
        "label": str,
        "directory": Path,
        "python": Program,
        "share_job": bool,
        "resources": dict,
        "agents_per_worker": int,
    },
    "globus_compute": {
        "endpoint_id": str,
        "user_endpoint_config": dict,
        "resource_specification": dict,
        "directory": Path,
        "resources": dict,
        "agents_per_worker": int,
    },
    "process_pool": {"max_workers": int, "agents_per_worker": int},
    "thread_pool": {"max_workers": int, "agents_per_worker": int},
    "event_loop": {"inner": str, "agents_per_worker": int},
}
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "parsl": ("config",),
    "globus_compute": ("endpoint_id",),
    "event_loop": ("inner",),
}
_WORDS = {
    str: "a string",
    Path: "a string, a path",
    Program: "a string, a path",
    int: "a whole number of at least 1",
    bool: "true or false",
    dict: "a table",
}


def load_executors(path: str | os.PathLike[str]) -> dict[str, Executor]:
    """Make the executors that a TOML file names, ready for a Manager.

    Each table is one executor, of one kind::

        [cpu]
        kind = "parsl"                 # workers in pilot jobs
        config = "parsl/slurm.py"      # relative to this file
        label = "cpu"                  # if the config has several executors
        [cpu.resources]                # for launches which do not say otherwise
        walltime = "01:00:00"

        [jobs]
        kind = "batch"                 # a job for each agent
        scheduler = "slurm"            # or config =, for its provider

        [polaris]
        kind = "globus_compute"
        endpoint_id = "4b116d3c-1703-4f8f-9f6f-39921e5864df"

        [many]
        kind = "parsl"
        config = "parsl/slurm.py"
        agents_per_worker = 100        # in each worker's event loop, in any table

        [pool]
        kind = "process_pool"          # or "thread_pool"
        max_workers = 4

    Tables with the same Parsl config file (and run_dir) share one DataFlowKernel,
    unless they have resources or max_pools. Nothing is started until something is
    submitted.

    Raises:
        ValueError: Names the table and the key that is wrong, and what would be right.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path} is not valid TOML: {e}") from e
    for name, table in tables.items():
        _check(name, table, path)
    loader = _Loader(path, tables)
    return {name: loader.executor(name) for name in tables}


def _check(name: str, table: Any, path: Path) -> None:
    where = f"[{name}] of {path}"
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table with a key kind, not {table!r}.")
    if "kind" not in table:
        raise ValueError(f"{where} needs a kind: {', '.join(sorted(KEYS))}.")
    kind = table["kind"]
    if kind not in KEYS:
        raise unknown_key(str(kind), KEYS, f"kind in {where}")
    for key, value in table.items():
        if key == "kind":
            continue
        if key not in KEYS[kind]:
            raise unknown_key(key, [*KEYS[kind], "kind"], f"{where} ({kind})")
        expected = KEYS[kind][key]
        if not _fits(value, expected):
            raise ValueError(
                f"{key} in {where} must be {_WORDS[expected]}, not {value!r}."
            )
    for key in REQUIRED.get(kind, ()):
        if key not in table:
            raise ValueError(f"{where} ({kind}) needs {key}.")
    if kind == "batch":
        _check_batch(table, where)
    ResourceSpec.parse(table.get("resources", {}), f"[{name}.resources] of {path}")


def _check_batch(table: Mapping[str, Any], where: str) -> None:
    if ("scheduler" in table) == ("config" in table):
        raise ValueError(
            f'{where} (batch) needs either scheduler = "slurm" (or another one) or '
            "config = with the path of a Parsl config file, whose provider submits."
        )
    if "label" in table and "config" not in table:
        raise ValueError(f"label in {where} chooses an executor of config =.")


def _fits(value: Any, expected: type) -> bool:
    if expected is int:  # For Python a bool is one, for TOML it is not.
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if expected in (Path, Program):
        return isinstance(value, str) and value != ""
    return isinstance(value, expected)


class _Loader:
    """Makes each executor of one file once, in whatever order they need each other."""

    def __init__(self, path: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
        self._path = path
        self._tables = tables
        self._made: dict[str, Executor] = {}
        self._making: list[str] = []
        self._configs: dict[tuple[Path, str | None], dict[str, ParslExecutor]] = {}

    def executor(self, name: str) -> Executor:
        if name not in self._made:
            self._making.append(name)
            try:
                self._made[name] = self._make(name, self._tables[name])
            except Exception as e:
                e.add_note(f"This is [{name}] of {self._path}.")
                raise
            self._making.remove(name)
        return self._made[name]

    def _make(self, name: str, table: Mapping[str, Any]) -> Executor:
        kind = table["kind"]
        options = {
            key: self._value(value, KEYS[kind][key])
            for key, value in table.items()
            if key != "kind"
        }
        if kind == "event_loop":
            return self._event_loop(name, **options)
        packed = options.pop("agents_per_worker", None)
        executor = self._engine(kind, options)
        if packed is None:
            return executor
        from academy.executors.event_loop import EventLoopExecutor

        return EventLoopExecutor(executor, packed)

    def _value(self, value: Any, expected: type) -> Any:
        """Take paths as relative to the file, wherever the program runs."""
        if expected is Program and "/" not in value:
            return value
        if expected in (Path, Program):
            return str(self._path.parent.absolute() / Path(value).expanduser())
        return value

    def _engine(self, kind: str, options: dict[str, Any]) -> Executor:
        match kind:
            case "parsl":
                return self._parsl(**options)
            case "batch":
                from academy.executors.batch import BatchExecutor

                config = options.pop("config", None)
                return BatchExecutor(config or options.pop("scheduler"), **options)
            case "globus_compute":
                from academy.executors.globus_compute import GlobusComputeExecutor

                return GlobusComputeExecutor(**options)
            case "process_pool":
                # A forked copy of a process with threads and an event loop may hang.
                spawn = multiprocessing.get_context("spawn")
                return ProcessPoolExecutor(mp_context=spawn, **options)
            case _:
                return ThreadPoolExecutor(**options)

    def _parsl(
        self,
        config: str,
        label: str | None = None,
        run_dir: str | None = None,
        **options: Any,
    ) -> Executor:
        from academy.executors.parsl import ParslExecutor, choose

        if options:
            return ParslExecutor(config, label=label, run_dir=run_dir, **options)
        key = Path(config).resolve(), run_dir
        if key not in self._configs:
            self._configs[key] = ParslExecutor.from_config(config, run_dir=run_dir)
        return choose(self._configs[key], label, f"the Parsl config {config}")

    def _event_loop(self, name: str, inner: str, **options: Any) -> Executor:
        from academy.executors.event_loop import EventLoopExecutor

        if inner not in self._tables:
            raise unknown_key(inner, self._tables, f"inner of [{name}] in {self._path}")
        if inner in self._making:
            circle = " -> ".join([*self._making, inner])
            raise ValueError(f"Executors of {self._path} contain each other: {circle}.")
        return EventLoopExecutor(self.executor(inner), **options)
