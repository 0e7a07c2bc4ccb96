"""The keys that sign tokens, which running servers read again."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from academy.exchange.cloud.security.auth_store import KEYS, AuthStore


class KeySet:
    """Keys that sign tokens, the newest first; one is made where there are none.

    They are kept as a JSON Web Key Set (RFC 7517). The first key signs, all of them
    verify.

    Args:
        store: where they are kept.

    Attributes:
        store: the same.
        keys: secrets by id; none before the first `refresh`.
    """

    def __init__(self, store: AuthStore) -> None:
        self.store = store
        self.keys: dict[str, str] = {}
        self._text: str | None = None

    async def refresh(self) -> bool:
        """Read the keys again; return whether they have changed.

        Raises:
            ValueError: what is there are no keys.
        """
        text = await self.store.read(KEYS)
        if text is None and not self.keys:
            text = await self.store.change(KEYS, _or_new)
        # Of keys that are not there any more those that were read before hold.
        return text is not None and self.load(text)

    def load(self, text: str) -> bool:
        """Take the keys of a text; return whether they are others than before."""
        if text == self._text:
            return False
        before, self.keys = self.keys, self._parsed(text)
        self._text = text
        return self.keys != before

    async def rotate(self, *, drop_older: bool = False) -> None:
        """Add a key that signs from now on; older ones verify what they have signed.

        Args:
            drop_older: forget these, so that all that they have signed is void.
        """

        def rotated(text: str | None) -> str:
            return with_new_key({} if drop_older else self._parsed(text))

        await self.store.change(KEYS, rotated)
        await self.refresh()

    def _parsed(self, text: str | None) -> dict[str, str]:
        if text is None:
            return {}
        try:
            found = json.loads(text)["keys"]
            return {str(key["kid"]): str(key["k"]) for key in found}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.store.where(KEYS)} holds no keys (a JSON Web Key Set). Without "
                "it, a new one is made, and all tokens are void."
            ) from error


def _or_new(text: str | None) -> str:
    return with_new_key() if text is None else text


def with_new_key(older: Mapping[str, str] | None = None) -> str:
    """Write a set of a new key and older ones."""
    keys = {secrets.token_hex(4): secrets.token_urlsafe(32), **(older or {})}
    content = [
        {"kty": "oct", "alg": "HS256", "kid": kid, "k": key}
        for kid, key in keys.items()
    ]
    return json.dumps({"keys": content}, indent=2)
