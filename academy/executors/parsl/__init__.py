"""Agents in Parsl's pilot jobs: many agents share the workers of an allocation.

Workers import a module of this package to run an agent, so Parsl is imported with the
first use of a name from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from academy.executors.parsl.config import local_config, read_config
    from academy.executors.parsl.executor import ParslExecutor, choose

__all__ = ["ParslExecutor", "choose", "local_config", "read_config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from academy.executors.parsl import config, executor

    return getattr(config if name.endswith("_config") else executor, name)
