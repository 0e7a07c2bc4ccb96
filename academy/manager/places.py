"""The executors of a manager, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

EVENT_LOOP = "event_loop"
"""Name of the executor that is always there: the manager's own event loop."""


class NamedExecutors:
    """Executors by name, one of them the default; None is this event loop.

    Args:
        executors: a mapping, one executor (named "default", and the default), or None.
        default: name of the default, if there are several.

    Raises:
        ValueError: one of them is no executor, or the default is not one of them.
    """

    def __init__(self, executors: Any, default: str) -> None:
        if executors is None:
            executors = {}
        elif isinstance(executors, Executor):
            executors, default = {"default": executors}, "default"
        self._executors: dict[str, Executor | None] = {EVENT_LOOP: None}
        if not isinstance(executors, Mapping):
            raise ValueError(
                f"Invalid executors parameter: {executors!r}. Give one "
                "concurrent.futures.Executor, a mapping of names to executors, or None."
            )
        for name, executor in executors.items():
            self._set(name, executor)
        self.find(default)
        self._default = default

    def _set(self, name: Any, executor: Any) -> None:
        if not isinstance(name, str) or not isinstance(executor, Executor | None):
            raise ValueError(
                f"Invalid executors parameter: {name!r} is {executor!r}. A name stands "
                "for a concurrent.futures.Executor, or None for this event loop."
            )
        self._executors[name] = executor

    def add(self, name: str, executor: Executor | None) -> None:
        """Add an executor.

        Raises:
            ValueError: there is one of that name, or it is no executor.
        """
        if name in self._executors:
            raise ValueError(f'Executor named "{name}" already exists.')
        self._set(name, executor)

    def set_default(self, name: str) -> None:
        """Choose another default.

        Raises:
            ValueError: there is no such executor.
        """
        if name not in self._executors:
            known = nearest(name, self._executors)
            raise ValueError(f'An executor named "{name}" does not exist. {known}')
        self._default = name

    def find(self, name: str | None) -> tuple[str, Executor | None]:
        """Return the name and executor of that name, or of the default for None.

        Raises:
            ValueError: there is none of that name; names the nearest one.
        """
        name = self._default if name is None else name
        if name not in self._executors:
            known = nearest(name, self._executors)
            raise ValueError(f'No executor named "{name}". {known}')
        return name, self._executors[name]

    def give_up(self) -> list[Executor]:
        """Return all executors once, for them to be shut down."""
        executors = [e for e in self._executors.values() if e is not None]
        self._executors = dict.fromkeys(self._executors)
        return executors


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which name may have been meant, and which there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{hint}Known: {', '.join(names)}."
