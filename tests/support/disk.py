"""A file system of its own that a test fills to the last byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

KEEP = """
mount -t tmpfs -o "$1" none "$2" && echo mounted && cat
umount -l "$2"
"""
"""Keeps it mounted until its input ends, be it because the test was killed."""
CHUNK = bytes(65_536)


class SmallDisk:
    """A file system in memory, mounted for the time of a block.

    Args:
        path: where; it is made.
        megabytes: how large it is.
    """

    def __init__(self, path: Path, megabytes: int = 128) -> None:
        self.path = path
        self._size = f"size={megabytes}m"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system takes root")
        self.path.mkdir()
        self._keeper = subprocess.Popen(
            ["sh", "-c", KEEP, "sh", self._size, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"mounted\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._keeper.communicate()
        assert not os.path.ismount(self.path)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no byte of it free."""
        ballast = self.path / "ballast"
        file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        try:
            with suppress(OSError):
                while os.write(file, CHUNK):
                    pass
            yield
        finally:
            os.close(file)
            ballast.unlink()
