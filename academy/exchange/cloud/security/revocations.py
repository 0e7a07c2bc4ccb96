"""Which tokens are void before their time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from academy.exchange.cloud.security.auth_store import REVOKED, AuthStore

if TYPE_CHECKING:
    from academy.exchange.cloud.security.auth import Credentials


@dataclass(frozen=True, slots=True)
class Revocation:
    """Whose tokens are void.

    Attributes:
        kind: "user" (and the user's agents), "mailbox", or "token" (one, and what was
            renewed from it).
        name: of the user, uid of the mailbox (hex digits), or id of the token.
        namespace: within which; None for all.
        at: seconds since 1970. A token that was issued later is good, if it does not
            come from a login; those of a "token" are void for ever.
        lifted: the user may log in again. What was void stays so.
    """

    kind: Literal["user", "mailbox", "token"]
    name: str
    namespace: str | None
    at: float
    lifted: bool = False


Key = tuple[str, str, str | None]


class Revocations:
    """A list of revocations, which operators add to while servers run.

    Args:
        store: where it is kept.

    Attributes:
        store: the same.
    """

    def __init__(self, store: AuthStore) -> None:
        self.store = store
        self._items: dict[Key, Revocation] = {}
        self._text: str | None = None

    async def refresh(self) -> bool:
        """Read the list again; return whether it has changed.

        Raises:
            ValueError: what is there is no list of revocations.
        """
        text = await self.store.read(REVOKED)
        if text in (None, self._text):
            return False  # what was read before holds
        self._items, self._text = self._parsed(text), text
        return True

    async def add(
        self,
        kind: Literal["user", "mailbox", "token"],
        name: str,
        namespace: str | None = None,
    ) -> None:
        """Make tokens void from now on, and keep a user from logging in."""
        item = Revocation(kind, name, namespace, time.time())

        def added(text: str | None) -> str:
            return _written(self._parsed(text) | {(kind, name, namespace): item})

        await self.store.change(REVOKED, added)

    async def lift(self, user: str, namespace: str | None = None) -> None:
        """Let a user log in again; what was void stays so.

        Args:
            user: who was revoked.
            namespace: where; None for wherever the user was revoked.

        Raises:
            LookupError: the user is not revoked, or not there.
        """

        def lifted(text: str | None) -> str:
            items = self._parsed(text)
            barred = {
                key: replace(item, lifted=True)
                for key, item in items.items()
                if key[:2] == ("user", user) and not item.lifted
                if namespace in (None, item.namespace)
            }
            if not barred:
                raise LookupError(_not_revoked(user, namespace, items))
            return _written(items | barred)

        await self.store.change(REVOKED, lifted)

    def cover(self, credentials: Credentials) -> bool:
        """Whether a token is void.

        Who shows none of ours has logged in elsewhere, and may not while revoked.
        """
        if not self._items:
            return False
        if not credentials.token_id:
            return not all(item.lifted for item in self._about(credentials))
        if ("token", credentials.token_id, None) in self._items:
            return True
        return any(credentials.issued <= i.at for i in self._about(credentials))

    def _about(self, credentials: Credentials) -> Iterator[Revocation]:
        names = [("user", credentials.user or credentials.subject)]
        if credentials.mailbox is not None:
            names.append(("mailbox", credentials.mailbox.hex()))
        for name in names:
            for namespace in (None, credentials.namespace):
                item = self._items.get((*name, namespace))
                if item is not None:
                    yield item

    def _parsed(self, text: str | None) -> dict[Key, Revocation]:
        if text is None:
            return {}
        try:
            items = [Revocation(**item) for item in json.loads(text)]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.store.where(REVOKED)} is no list of revocations."
            ) from error
        return {(i.kind, i.name, i.namespace): i for i in items}


def _written(items: dict[Key, Revocation]) -> str:
    return json.dumps([asdict(item) for item in items.values()], indent=2)


def _not_revoked(user: str, namespace: str | None, items: dict[Key, Revocation]) -> str:
    where = "" if namespace is None else f" in the namespace {namespace!r}"
    found = [
        f"{item.name} ({item.namespace or 'in all namespaces'})"
        for item in items.values()
        if item.kind == "user" and not item.lifted
    ]
    return f"{user!r} is not revoked{where}. Revoked: {', '.join(found) or 'nobody'}."
