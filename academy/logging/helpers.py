"""Use of a logging set-up."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from academy.logging.configs.base import LogConfig
from academy.logging.root import lock


@dataclass(slots=True)
class _Use:
    users: int
    tear_down: Callable[[], None]


_in_use: dict[UUID, _Use] = {}


@contextmanager
def log_context(config: LogConfig | None) -> Generator[None]:
    """Log as a set-up says, for as long as the `with` block runs.

    Each set-up, known by its uuid, is set up once in a process, however many agents
    and threads use it, and torn down when the last of them leaves. None does nothing.

    Example:
        >>> import logging
        >>> from academy.logging.helpers import log_context
        >>> from academy.logging.recommended import recommended_logging
        >>> with log_context(recommended_logging("INFO")):
        ...     logging.getLogger("campaign").info("started")
    """
    if config is None:
        yield
        return
    with lock:
        use = _in_use.get(config.uuid)
        if use is None:
            use = _in_use[config.uuid] = _Use(0, config.init_logging())
        use.users += 1
    try:
        yield
    finally:
        with lock:
            use.users -= 1
            if not use.users:
                del _in_use[config.uuid]
                use.tear_down()
