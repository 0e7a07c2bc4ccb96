"""The keys that sign tokens, in a file that running servers read again."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from academy.home import write_private


class WatchedFile:
    """A file that somebody else may replace.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None

    def has_changed(self) -> bool:
        """Whether the file was replaced since this was asked last."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return False  # what was read from it holds
        now = (found.st_ino, found.st_mtime_ns, found.st_size)
        before, self._seen = self._seen, now
        return now != before


class KeyFile(WatchedFile):
    """Keys that sign tokens, the newest first; made (mode 0600) where there are none.

    The file is a JSON Web Key Set (RFC 7517). The first key signs, all of them verify.

    Attributes:
        keys: secrets by id.

    Raises:
        ValueError: the file holds no keys.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.exists():
            self._write({})
        self.keys: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read the file again if it has changed; return whether it has."""
        if not self.has_changed():
            return False
        try:
            found = json.loads(self.path.read_text())["keys"]
            keys = {str(key["kid"]): str(key["k"]) for key in found}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} holds no keys (a JSON Web Key Set). Without it, a new "
                "one is made, and all tokens are void."
            ) from error
        changed, self.keys = keys != self.keys, keys
        return changed

    def rotate(self, *, drop_older: bool = False) -> None:
        """Add a key that signs from now on; older ones verify what they have signed.

        Args:
            drop_older: forget these, so that all that they have signed is void.
        """
        self._write({} if drop_older else self.keys)
        self.refresh()

    def _write(self, older: dict[str, str]) -> None:
        keys = {secrets.token_hex(4): secrets.token_urlsafe(32), **older}
        content = [
            {"kty": "oct", "alg": "HS256", "kid": kid, "k": key}
            for kid, key in keys.items()
        ]
        write_private(self.path, json.dumps({"keys": content}, indent=2))
