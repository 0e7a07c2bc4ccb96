"""A wall clock that a test sets, for the processes that it starts with it."""

from __future__ import annotations

from pathlib import Path

import pytest

LIBRARIES = Path("/usr/lib")


class Clock:
    """The time of day of some processes, `set` seconds ahead or behind.

    Their monotonic clock, which waiting has to go by, stays as it is. Done by
    libfaketime (the Debian package of this name), which reads the difference from a
    file at most once a second.

    Args:
        path: of that file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0)

    def set(self, ahead: float) -> None:
        """Set it so many seconds ahead of the time of day, or behind."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{ahead:+}\n")
        new.rename(self._path)

    def environment(self) -> dict[str, str]:
        """Return what a process has to be started with."""
        found = sorted(LIBRARIES.glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            pytest.skip("no libfaketime here: apt-get install libfaketime")
        return {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
