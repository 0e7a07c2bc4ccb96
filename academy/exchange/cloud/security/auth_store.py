"""Where keys and revocations lie, which servers and operators share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from academy.home import locked, write_private

KEYS, REVOKED = "keys", "revoked"
"""Names of the texts that are kept."""

Change = Callable[[str | None], str]
"""Makes a new text of what there was, or of None."""


class AuthStore(Protocol):
    """Keeps texts, which any server or operator may replace."""

    def where(self, name: str) -> str:
        """Return what errors call the place of a text."""

    async def read(self, name: str) -> str | None:
        """Return a text; None if there is none.

        Raises:
            StorageError, OSError: it cannot be read now.
        """

    async def change(self, name: str, change: Change) -> str:
        """Replace a text by what is made of it, and lose nobody else's change.

        Args:
            name: of the text.
            change: may be called several times.
        """

    async def wait(self, seconds: float) -> None:
        """Return after so long, or sooner if there may be something new."""

    async def close(self) -> None:
        """Let go of it. May be called twice."""


class FileAuthStore:
    """Keeps texts in private files, in threads: file systems may hang.

    Args:
        key_file: where the keys are; what is revoked lies beside it.
    """

    def __init__(self, key_file: Path) -> None:
        self._files = {KEYS: key_file, REVOKED: key_file.with_suffix(".revoked")}

    def where(self, name: str) -> str:
        return str(self._files[name])

    async def read(self, name: str) -> str | None:
        return await asyncio.to_thread(self._read, name)

    def _read(self, name: str) -> str | None:
        try:
            return self._files[name].read_text()
        except FileNotFoundError:
            return None

    async def change(self, name: str, change: Change) -> str:
        return await asyncio.to_thread(self._change, name, change)

    def _change(self, name: str, change: Change) -> str:
        with locked(self._files[name]):
            before = self._read(name)
            after = change(before)
            if after != before:
                write_private(self._files[name], after)
        return after

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        pass
