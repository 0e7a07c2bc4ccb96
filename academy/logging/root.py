"""How handlers are attached to the root logger and leave no trace afterwards.

Agents log through loggers of any name, so only the root logger sees them all, and its
level decides whether their records are made at all. While a handler is attached the
level is as low as the handler needs. Handlers of the program itself get no more than
before, and when the last of ours leaves, the level is what it was.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from academy.logging.context import EntityFilter

lock = threading.RLock()
"""Guards every change of the logging set-up."""

if hasattr(os, "register_at_fork"):
    # A child forked while another thread changes the set-up would inherit a lock that
    # nobody releases.
    os.register_at_fork(
        before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
    )


class _Root(logging.Filter):
    """The root logger's state before ours, and the filter that preserves it."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.getLogger()
        self.attached: list[logging.Handler] = []
        self.filtered: list[logging.Handler] = []
        self.lowered: tuple[int, int] | None = None  # (level before, level we set)

    def level_before(self) -> int:
        """Return the level the program wants, though ours may be in force."""
        if self.lowered and self.logger.level == self.lowered[1]:
            return self.lowered[0]
        return self.logger.level  # not lowered, or the program has changed it since

    def settle(self) -> None:
        """Make level and filters fit the attached handlers."""
        before = self.level_before()
        level = min([before, *(handler.level for handler in self.attached)])
        if level != self.logger.level:
            self.logger.setLevel(level)
        self.lowered = (before, level) if level < before else None
        for handler in self.filtered:
            handler.removeFilter(self)
        self.filtered = [
            handler
            for handler in self.logger.handlers
            if self.lowered and handler not in self.attached
        ]
        for handler in self.filtered:
            handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep from the program's handlers what exists only because of ours."""
        if record.levelno >= self.level_before():
            return True
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger is not self.logger:
            if logger.level:
                return True  # decided below the root logger
            logger = logger.parent
        return False


_root = _Root()


def attach(handler: logging.Handler) -> Callable[[], None]:
    """Give a handler all records from its level on, until the result is called."""
    handler.addFilter(EntityFilter())

    def detach() -> None:
        with lock:
            if handler not in _root.attached:
                return
            _root.attached.remove(handler)
            _root.logger.removeHandler(handler)
            _root.settle()
        handler.close()

    with lock:
        _root.attached.append(handler)
        _root.logger.addHandler(handler)
        _root.settle()
    return detach
