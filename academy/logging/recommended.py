"""The logging set-up that suits most programs."""

from __future__ import annotations

import logging
import os

from academy.logging.configs.base import LogConfig
from academy.logging.configs.console import ConsoleLogging
from academy.logging.configs.file import FileLogging
from academy.logging.configs.multi import MultiLogging


def recommended_logging(
    level: int | str = logging.INFO,
    *,
    logfile: str | os.PathLike[str] | None = None,
    logfile_level: int | str | None = None,
    color: bool = True,
    extra: bool = False,
) -> LogConfig:
    """Return a set-up for the console and, if one is named, a file.

    Args:
        level: Least level on the console.
        logfile: File to append to as well; see `FileLogging` for relative paths.
        logfile_level: Least level in the file; None is the console's.
        color: Use colours on a terminal.
        extra: Append process, thread, source line and the `extra=` of each call.

    Raises:
        ValueError: There is no such level.
    """
    console = ConsoleLogging(level, color=color, extra=extra)
    if logfile is None:
        return console
    file_level = level if logfile_level is None else logfile_level
    return MultiLogging([console, FileLogging(logfile, file_level, extra=extra)])
