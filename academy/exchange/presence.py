"""Where the owners of mailboxes are, as their exchange sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from academy.scheduler.job import Place

if TYPE_CHECKING:
    from academy.identifier import EntityId


class PresenceState(Enum):
    """Whether the owner of a mailbox is connected to it."""

    MISSING = "MISSING"
    """No such mailbox was ever registered."""
    REGISTERED = "REGISTERED"
    """Nobody has attached to it yet."""
    ATTACHED = "ATTACHED"
    """Its owner is connected."""
    GONE = "GONE"
    """The owner's connection was lost; or the exchange was, and it is not back yet."""
    DETACHED = "DETACHED"
    """Its owner has let go of it in order, and may come back."""
    TERMINATED = "TERMINATED"
    """Its owner is gone for good."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What an exchange knows about the owner of a mailbox.

    Attributes:
        state: whether it is connected.
        epoch: number of its latest incarnation; they count from 1.
        place: where that is or was, as far as it said so to an exchange that has
            not restarted since.
        reason: why it was terminated, if anybody said so.
    """

    state: PresenceState
    epoch: int = 0
    place: Place | None = None
    reason: str = ""

    def packed(self) -> list[Any]:
        """Return it in what JSON can carry."""
        return [self.state.value, self.epoch, pack_place(self.place), self.reason]

    @classmethod
    def unpacked(cls, content: Any) -> Self:
        """Make it again from what `packed` has returned."""
        state, epoch, place, reason = content
        return cls(PresenceState(state), epoch, unpack_place(place), reason)


def pack_place(place: Place | None) -> list[Any] | None:
    """Return a place in what JSON can carry."""
    if place is None:
        return None
    return [place.host, place.pid, place.scheduler, place.job_id]


def unpack_place(content: Any) -> Place | None:
    """Make a place from what a client says.

    Raises:
        TypeError: it is none.
        ValueError: it has too many or too few parts.
    """
    if content is None:
        return None
    host, pid, scheduler, job_id = content
    texts = (host, scheduler, job_id)
    if not all(isinstance(t, str) for t in texts) or not isinstance(pid, int):
        raise TypeError(f"{content!r} is no place")
    return _place(host, pid, scheduler, job_id)


@lru_cache(maxsize=1024)
def _place(host: str, pid: int, scheduler: str, job_id: str) -> Place:
    # The thousand agents of a process are all at the same one.
    return Place(host, pid, scheduler, job_id)


PresenceCallback = Callable[[Mapping["EntityId", Presence]], None]
"""Told what is new of watched mailboxes, together; must neither block nor raise."""

Watched = MutableMapping[bytes, "tuple[EntityId, PresenceCallback]"]
"""By uid, whom a transport's user watches and who is told."""


def dispatch(changes: Mapping[bytes, Presence], watched: Watched) -> None:
    """Hand changes to their callbacks, together; forget who is terminated."""
    batches: dict[PresenceCallback, dict[EntityId, Presence]] = {}
    for uid, presence in changes.items():
        if (entry := watched.get(uid)) is None:
            continue
        owner, callback = entry
        batches.setdefault(callback, {})[owner] = presence
        if presence.state is PresenceState.TERMINATED:
            del watched[uid]
    for callback, batch in batches.items():
        callback(batch)
