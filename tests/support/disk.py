"""A file system of its own that a test fills to the last byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

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
        mount = ["mount", "-t", "tmpfs", "-o", self._size, "none", str(self.path)]
        subprocess.run(mount, check=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        subprocess.run(["umount", str(self.path)], check=True)

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
