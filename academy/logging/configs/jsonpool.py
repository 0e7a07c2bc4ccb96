"""Logging for programs that read logs of many processes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from academy.home import get_academy_home
from academy.logging.configs.base import LogConfig, level_number
from academy.logging.configs.file import make_log_directory, travelling_path
from academy.logging.formats import JSONFormatter
from academy.logging.root import attach


class JSONPoolLogging(LogConfig):
    """Write JSON lines to a directory, one file `HOST.PID.jsonl` per process.

    No two processes write to the same file, so nothing mixes and nothing is locked,
    on any file system. A process that is killed can leave an incomplete last line.

    Args:
        directory: Where the files go, made if missing; relative and `~` as for
            `FileLogging`. None is `logs/UUID` in the Academy home of each worker.
        level: Least level that is logged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        level: int | str = logging.INFO,
    ) -> None:
        self.directory = None if directory is None else travelling_path(directory)
        self.level = level_number(level)

    def init_logging(self) -> Callable[[], None]:
        directory = self.directory or get_academy_home() / "logs" / str(self.uuid)
        directory = directory.expanduser()
        make_log_directory(directory)
        handler = _FileOfProcess(directory)
        handler.setLevel(self.level)
        handler.setFormatter(JSONFormatter())
        return attach(handler)


class _FileOfProcess(logging.FileHandler):
    """A file named after its process; a forked child starts one of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pid = os.getpid()
        try:
            super().__init__(self.path(), encoding="utf-8")
        except OSError as exc:
            raise OSError(
                exc.errno, f"Cannot write a log file ({exc.strerror})", self.path()
            ) from exc

    def path(self) -> str:
        return str(self.directory / f"{socket.gethostname()}.{self.pid}.jsonl")

    def emit(self, record: logging.LogRecord) -> None:
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.baseFilename = self.path()
            if self.stream:
                self.stream.close()  # its buffer is empty: each record is flushed
            self.stream = None  # the base class opens it again
        super().emit(record)
