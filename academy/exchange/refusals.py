"""What a broker has refused and the senders may not know."""

from __future__ import annotations

import json
from typing import NamedTuple

from academy.exception import AcademyError
from academy.exchange.errors import pack_error, unpack_error
from academy.exchange.store import Changes, Contents, Envelope, Store

KEPT = 10_000
"""Latest refusals that are kept of a session whose client confirms none."""

PLACE = b"refused"
"""Where refusals are stored: like messages, in what cannot be a mailbox's uid."""
_PAGE = 256


class Refusal(NamedTuple):
    """A message that was not taken: its number in the session, its tag, and why."""

    sequence: int
    tag: bytes
    error: AcademyError


class Refusals:
    """Keeps refusals until the clients of their sessions have heard of them.

    A client takes what it has sent for stored once the exchange knows a later sequence
    number. So a refusal is stored together with that number, and told again to a client
    that connects anew, whatever has become of the exchange meanwhile.

    Invariant: `_unheard` has, by session, the refusals that are stored, and the numbers
    under which they are; `_heard` has the numbers that need not be stored any longer.
    """

    __slots__ = ("_heard", "_unheard")

    def __init__(self) -> None:
        self._unheard: dict[bytes, dict[int, Refusal]] = {}
        self._heard: list[tuple[bytes, int]] = []

    async def load(self, store: Store, contents: Contents) -> None:
        """Read what the store holds, and forget everything else."""
        self._unheard.clear()
        self._heard.clear()
        if PLACE not in contents.waiting:
            return
        after = 0
        while page := await store.pending(PLACE, after, _PAGE):
            after = page[-1].number
            for envelope in page:
                sequence, error = json.loads(envelope.payload)
                refusal = Refusal(sequence, envelope.tag, unpack_error(error))
                self._keep(envelope.src, envelope.number, refusal)

    def add(
        self, changes: Changes, number: int, session: bytes, refusal: Refusal
    ) -> None:
        """Store a refusal under a number of its own."""
        sequence, tag, error = refusal
        payload = json.dumps([sequence, pack_error(error)]).encode()
        changes.added.append(
            Envelope(PLACE, session, tag, 0, payload, len(payload), number=number)
        )
        self._keep(session, number, refusal)

    def _keep(self, session: bytes, number: int, refusal: Refusal) -> None:
        unheard = self._unheard.setdefault(session, {})
        unheard[number] = refusal
        if len(unheard) > KEPT:
            oldest = next(iter(unheard))
            del unheard[oldest]
            self._heard.append((PLACE, oldest))

    def of(self, session: bytes) -> list[Refusal]:
        """Return what the client of a session may not have heard, oldest first."""
        return list(self._unheard.get(session, {}).values())

    def heard(self, session: bytes, sequence: int) -> None:
        """Learn that a client knows of every refusal up to a sequence number."""
        unheard = self._unheard.get(session, {})
        known = [n for n, refusal in unheard.items() if refusal.sequence <= sequence]
        for number in known:
            del unheard[number]
            self._heard.append((PLACE, number))
        if not unheard:
            self._unheard.pop(session, None)

    def settle(self, changes: Changes) -> None:
        """Have the store forget what was heard. That never is urgent."""
        if self._heard:
            changes.settled += self._heard
            self._heard.clear()
