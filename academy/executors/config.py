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

if TYPE_CHECKING:
    from academy.executors.parsl import ParslExecutor

# What each kind of table may hold besides `kind`, and what it must hold.
KEYS: Mapping[str, Mapping[str, type]] = {
    "parsl": {"config": str, "label": str, "run_dir": str},
    "process_pool": {"max_workers": int},
    "thread_pool": {"max_workers": int},
    "event_loop": {"inner": str, "agents_per_worker": int},
}
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "parsl": ("config",),
    "event_loop": ("inner",),
}
_WORDS = {str: "a string", int: "a whole number of at least 1"}


def load_executors(path: str | os.PathLike[str]) -> dict[str, Executor]:
    """Make the executors that a TOML file names, ready for a Manager.

    Each table is one executor, of one kind::

        [cpu]
        kind = "parsl"
        config = "parsl/slurm.py"      # relative to this file
        label = "cpu"                  # if the config has several executors

        [many]
        kind = "event_loop"            # many agents in one worker of another executor
        inner = "cpu"
        agents_per_worker = 100

        [pool]
        kind = "process_pool"          # or "thread_pool"
        max_workers = 4

    Tables with the same Parsl config file (and run_dir) share one DataFlowKernel.
    Nothing is started until something is submitted.

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
        _check(table, f"[{name}] of {path}")
    loader = _Loader(path, tables)
    return {name: loader.executor(name) for name in tables}


def _check(table: Any, where: str) -> None:
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


def _fits(value: Any, expected: type) -> bool:
    if expected is int:  # For Python a bool is one, for TOML it is not.
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
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
        workers = table.get("max_workers")
        match table["kind"]:
            case "parsl":
                return self._parsl(table)
            case "process_pool":
                # A forked copy of a process with threads and an event loop may hang.
                spawn = multiprocessing.get_context("spawn")
                return ProcessPoolExecutor(workers, mp_context=spawn)
            case "thread_pool":
                return ThreadPoolExecutor(workers)
            case _:
                return self._event_loop(name, table)

    def _parsl(self, table: Mapping[str, Any]) -> Executor:
        from academy.executors.parsl import ParslExecutor, choose

        config = self._path.parent / Path(table["config"]).expanduser()
        run_dir = table.get("run_dir")
        if run_dir is not None:
            run_dir = str(self._path.parent / Path(run_dir).expanduser())
        key = config.resolve(), run_dir
        if key not in self._configs:
            self._configs[key] = ParslExecutor.from_config(config, run_dir=run_dir)
        return choose(
            self._configs[key], table.get("label"), f"the Parsl config {config}"
        )

    def _event_loop(self, name: str, table: Mapping[str, Any]) -> Executor:
        from academy.executors.event_loop import EventLoopExecutor

        inner = table["inner"]
        if inner not in self._tables:
            raise unknown_key(inner, self._tables, f"inner of [{name}] in {self._path}")
        if inner in self._making:
            circle = " -> ".join([*self._making, inner])
            raise ValueError(f"Executors of {self._path} contain each other: {circle}.")
        options = {k: v for k, v in table.items() if k not in ("kind", "inner")}
        return EventLoopExecutor(self.executor(inner), **options)
