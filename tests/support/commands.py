"""Commands that say what they are told to, for schedulers that are not to be had."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest


class Commands:
    """A directory of commands that is the first on PATH.

    Attributes:
        directory: where they are.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)

    def script(self, name: str, script: str) -> None:
        """Make a command of a shell script; its calls are noted."""
        log = shlex.quote(str(self._log(name)))
        path = self.directory / name
        # Written beside and moved, since it may be running.
        new = path.with_suffix(".new")
        new.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{script}\n')
        new.chmod(0o755)
        new.rename(path)

    def says(
        self, name: str, stdout: str = "", stderr: str = "", status: int = 0
    ) -> None:
        """Make a command that always says the same."""
        for stream, text in (("out", stdout), ("err", stderr)):
            (self.directory / f"{name}.{stream}").write_text(text)
        here = shlex.quote(str(self.directory))
        self.script(
            name, f"cat {here}/{name}.out; cat {here}/{name}.err >&2; exit {status}"
        )

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call of a command."""
        log = self._log(name)
        return log.read_text().splitlines() if log.exists() else []

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"
