"""Which tokens are void before their time."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from academy.exchange.cloud.security.keys import WatchedFile
from academy.home import write_private

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
        at: seconds since 1970. Tokens of who has logged in later are good; those of a
            "token" are void for ever.
    """

    kind: Literal["user", "mailbox", "token"]
    name: str
    namespace: str | None
    at: float


class Revocations(Protocol):
    """A list of revocations that other processes add to."""

    def refresh(self) -> bool:
        """Read the list again if it has changed; return whether it has."""

    def cover(self, credentials: Credentials) -> bool:
        """Whether a token is void."""


class RevocationFile(WatchedFile):
    """A list of revocations in a private file, which servers of one host share."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._items: dict[tuple[str, str, str | None], float] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Read the file again if it has changed.

        Raises:
            ValueError: it is no list of revocations.
        """
        if not self.has_changed():
            return False
        try:
            items = [Revocation(**item) for item in json.loads(self.path.read_text())]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} is no list of revocations.") from error
        self._items = {(i.kind, i.name, i.namespace): i.at for i in items}
        return True

    def add(
        self,
        kind: Literal["user", "mailbox", "token"],
        name: str,
        namespace: str | None = None,
    ) -> None:
        """Make tokens void from now on."""
        self.refresh()
        items = self._items | {(kind, name, namespace): time.time()}
        found = [Revocation(*key, at) for key, at in items.items()]  # type: ignore[arg-type]  # kinds are what was checked before
        write_private(self.path, json.dumps([asdict(item) for item in found], indent=2))
        self.refresh()

    def cover(self, credentials: Credentials) -> bool:
        """Whether a token is void."""
        if not self._items:
            return False
        if ("token", credentials.token_id, None) in self._items:
            return True
        names = [("user", credentials.user or credentials.subject)]
        if credentials.mailbox is not None:
            names.append(("mailbox", credentials.mailbox.hex()))
        return any(
            credentials.issued <= self._items.get((*name, namespace), -1)
            for name in names
            for namespace in (None, credentials.namespace)
        )
