"""Whom the users of a link watch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from academy.exchange.cloud import protocol
from academy.exchange.presence import PresenceCallback, Watched, dispatch

if TYPE_CHECKING:
    from academy.identifier import EntityId


class Watching:
    """Whom each user of a link watches."""

    __slots__ = ("_watched",)

    def __init__(self) -> None:
        self._watched: dict[object, Watched] = {}

    def add(
        self, user: object, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Tell a user's callback of these mailboxes."""
        watched = self._watched.setdefault(user, {})
        watched.update((uid.uid.bytes, (uid, callback)) for uid in uids)

    def remove(self, user: object, uids: Collection[EntityId] | None) -> list[bytes]:
        """Tell a user no more of these, or of any; return whom nobody watches now."""
        watched = self._watched.get(user, {})
        keys = list(watched) if uids is None else [uid.uid.bytes for uid in uids]
        for key in keys:
            watched.pop(key, None)
        if not watched:
            self._watched.pop(user, None)
        return [key for key in keys if not self._is_watched(key)]

    def everybody(self) -> set[bytes]:
        """Return who is watched."""
        return {uid for watched in self._watched.values() for uid in watched}

    def learn(self, record: memoryview) -> None:
        """Take a NEWS record."""
        changes = protocol.read_news(record)
        for watched in list(self._watched.values()):
            dispatch(changes, watched)

    def _is_watched(self, uid: bytes) -> bool:
        return any(uid in watched for watched in self._watched.values())
