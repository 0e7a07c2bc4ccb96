"""Logging for people who watch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from academy.logging.configs.base import LogConfig, level_number
from academy.logging.formats import TextFormatter
from academy.logging.root import attach


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is now: progress bars and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # the program must go on; logging reports it its own way
            self.handleError(record)


class ConsoleLogging(LogConfig):
    """Log to standard error.

    Args:
        level: Least level that is logged.
        color: Use colours if standard error is a terminal and `NO_COLOR` is not set.
        extra: Append process, thread, source line and the `extra=` of each call.
    """

    def __init__(
        self,
        level: int | str = logging.INFO,
        *,
        color: bool = True,
        extra: bool = False,
    ) -> None:
        self.level = level_number(level)
        self.color = color
        self.extra = extra

    def init_logging(self) -> Callable[[], None]:
        terminal = sys.stderr is not None and sys.stderr.isatty()
        color = self.color and terminal and not os.environ.get("NO_COLOR")
        handler = _StandardError(self.level)
        handler.setFormatter(TextFormatter(color=color, extra=self.extra))
        return attach(handler)
