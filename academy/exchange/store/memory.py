"""Storage that ends with its process."""

from __future__ import annotations

import heapq

from academy.exchange.store import Changes, Contents, Envelope, MailboxRecord
from academy.exchange.store.bodies import Bodies, References, ScratchBodies


class MemoryStore:
    """Keeps everything in dictionaries, but the bodies of large messages.

    Args:
        bodies: where those are kept. Default: in files, until the process ends.
    """

    def __init__(self, bodies: Bodies | None = None) -> None:
        self.bodies = bodies or ScratchBodies()
        self._references = References()
        self._mailboxes: dict[bytes, MailboxRecord] = {}
        self._messages: dict[bytes, dict[int, Envelope]] = {}
        self._sessions: dict[bytes, int] = {}
        self._last_number = 0
        self._expiries: dict[tuple[bytes, int], float] = {}
        self._by_expiry: list[tuple[float, bytes, int]] = []

    async def open(self) -> Contents:
        waiting = {
            uid: (len(box), sum(envelope.size for envelope in box.values()))
            for uid, box in self._messages.items()
        }
        await self.bodies.sweep(self._references.keys())
        mailboxes = list(self._mailboxes.values())
        return Contents(mailboxes, dict(self._sessions), waiting, self._last_number)

    async def commit(self, changes: Changes) -> None:
        self.commit_now(changes)

    def commit_now(self, changes: Changes) -> None:
        if changes.mailboxes:
            self._mailboxes.update(changes.mailboxes)
        self._sessions.update(changes.sessions)
        messages = self._messages
        for envelope in changes.added:
            box = messages.get(envelope.dest)
            if box is None:
                box = messages[envelope.dest] = {}
            box[envelope.number] = envelope
            self._last_number = envelope.number
        for envelope in changes.leased:
            messages[envelope.dest][envelope.number].lease = envelope.lease
        for uid, number in changes.settled:
            box = messages.get(uid)
            if box is not None:
                box.pop(number, None)
        for uid in changes.cleared:
            messages.pop(uid, None)
        for uid, number, due in changes.expiries:
            self._expiries[uid, number] = due
            heapq.heappush(self._by_expiry, (due, uid, number))
        for uid in changes.removed:
            self._mailboxes.pop(uid, None)
        if keys := self._references.follow(changes):
            self.bodies.delete(keys)

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        found: list[Envelope] = []
        for number, envelope in self._messages.get(dest, {}).items():
            if number > after:
                found.append(envelope)
                if len(found) == limit:
                    break
        return found

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        queue = self._by_expiry
        found: list[Envelope] = []
        looked_at: list[tuple[float, bytes, int]] = []
        while queue and queue[0][0] <= now and len(looked_at) < limit:
            due, uid, number = heapq.heappop(queue)
            envelope = self._messages.get(uid, {}).get(number)
            if self._expiries.get((uid, number)) != due:
                continue  # it expires later
            if envelope is None:
                del self._expiries[uid, number]
                continue
            found.append(envelope)
            looked_at.append((due, uid, number))
        for item in looked_at:
            heapq.heappush(queue, item)
        return found, queue[0][0] if queue else None

    async def close(self) -> None:
        await self.bodies.close()
