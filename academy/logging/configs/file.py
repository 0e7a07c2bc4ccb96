"""Logging to a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from academy.logging.configs.base import LogConfig, level_number
from academy.logging.formats import TextFormatter
from academy.logging.root import attach


class FileLogging(LogConfig):
    """Append to a file; missing directories are made.

    Many processes may write to one file on one machine. Over a network file system
    their lines can mix: use `JSONPoolLogging` there.

    Args:
        logfile: A relative path starts where this object is made, as with a batch
            job's output, and not where a worker happens to run. A path that begins
            with `~` starts in the home directory on the machine of the worker.
        level: Least level that is logged.
        extra: Append process, thread, source line and the `extra=` of each call.
    """

    def __init__(
        self,
        logfile: str | os.PathLike[str],
        level: int | str = logging.INFO,
        *,
        extra: bool = False,
    ) -> None:
        self.logfile = travelling_path(logfile)
        self.level = level_number(level)
        self.extra = extra

    def init_logging(self) -> Callable[[], None]:
        path = self.logfile.expanduser()
        make_log_directory(path.parent)
        try:
            handler = logging.FileHandler(
                path, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as exc:
            raise OSError(
                exc.errno, f"Cannot write the log file ({exc.strerror})", str(path)
            ) from exc
        handler.setLevel(self.level)
        handler.setFormatter(TextFormatter(extra=self.extra))
        return attach(handler)


def travelling_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that means the same in a worker, or its own home directory."""
    path = Path(path)
    return path if path.parts[:1] and path.parts[0][0] == "~" else path.absolute()


def make_log_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
        OSError: It cannot be made; names the nearest parent that exists.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        there = next((p for p in path.parents if p.exists()), path)
        raise OSError(
            exc.errno,
            f"Cannot make a directory for log files in {there} ({exc.strerror})",
            str(path),
        ) from exc
