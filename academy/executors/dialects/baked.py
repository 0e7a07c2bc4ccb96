"""Providers whose constructors add directives to those that they are given."""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar

from academy.executors.dialects.base import Dialect


class Baked(Dialect):
    """Of a provider whose constructor adds directives to its scheduler_options."""

    # The class whose constructor does it.
    parsl: ClassVar[Any]

    def own_lines(self) -> list[str]:
        options = str(self.fresh.scheduler_options)
        baked = self.bake().scheduler_options
        if options.endswith(baked):
            return options.removesuffix(baked).splitlines()
        # Somebody has changed them since.
        lines = options.splitlines()
        for line in filter(None, baked.splitlines()):
            if line in lines:
                lines.remove(line)
        return lines

    def write_lines(self, added: list[str]) -> None:
        own, new = "\n".join(self.own), "".join(f"{line}\n" for line in added)
        self.fresh.scheduler_options = f"{own}{self.bake().scheduler_options}{new}"

    def bake(self) -> Any:
        """Construct the provider anew, with what it has and no options."""
        arguments = {
            name: getattr(self.fresh, name) for name in _parameters(self.parsl)
        }
        baked = _quiet(self.parsl)(**arguments)
        return baked


@functools.cache
def _parameters(provider: Any) -> list[str]:
    given = inspect.signature(provider.__init__).parameters
    return [name for name in given if name not in ("self", "scheduler_options")]


@functools.cache
def _quiet(provider: Any) -> Any:
    """Return a provider's class without its habit of asking the scheduler first."""

    class Quiet(provider):  # type: ignore[misc]  # It is not known to be a class.
        def execute_wait(
            self, cmd: str, timeout: float | None = None
        ) -> tuple[int, str, str]:
            return 1, "", ""

    return Quiet
