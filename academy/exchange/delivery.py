"""From mailboxes to their consumers, no further ahead than a window allows."""

from __future__ import annotations

from academy.exchange.census import Traffic
from academy.exchange.mailbox import Mailbox, Session
from academy.exchange.store import LARGE, RESPONSE, Changes, Envelope, Store

PAGE = 256
"""Messages read from the store at once."""


class Delivery:
    """Leases messages to the consumers of their mailboxes, and hands them over.

    What comes while a consumer has room goes on to it in the turn that stores it. The
    rest waits in the store, from which it is read when there is room again.

    Invariants: `_outgoing` was leased in this turn and is sent at its end. `hungry` are
    the sessions that have room for something that may wait in the store.
    """

    def __init__(self, store: Store, traffic: Traffic) -> None:
        self.hungry: set[Session] = set()
        self._store = store
        self._traffic = traffic
        self._outgoing: list[tuple[Session, Envelope]] = []

    def lease(self, session: Session, box: Mailbox, envelope: Envelope) -> None:
        """Have a message sent at the end of the turn."""
        if envelope.redelivered:
            self._traffic.redelivered += 1
            box.repeated.add(envelope.number)
        elif not session.pops:
            envelope.lease = box.record.epoch
        box.cursor = envelope.number
        note = envelope.size << 1 | envelope.flags & RESPONSE
        box.leased[envelope.number] = note, envelope.src, envelope.tag
        session.room_messages -= 1
        if envelope.flags & LARGE and not session.pops:
            session.large[envelope.number] = (box, envelope)  # has a window of its own
        else:
            session.room_bytes -= envelope.size
            session.in_flight.append((box, envelope))
        self._outgoing.append((session, envelope))

    def send(self) -> None:
        """Hand over what was leased."""
        outgoing, self._outgoing = self._outgoing, []
        self._traffic.delivered += len(outgoing)
        for session, envelope in outgoing:
            if session.open:
                session.consumer.deliver(envelope)
        # A turn is the batch: nothing that could leave together comes after it.
        for session in dict(outgoing):
            session.consumer.delivered()

    def withhold(self, uid: bytes) -> None:
        """Send nothing of this turn to a mailbox."""
        self._outgoing = [item for item in self._outgoing if item[1].dest != uid]

    def reset(self) -> None:
        """Send nothing of this turn: it was not stored."""
        self._outgoing.clear()

    async def catch_up(self) -> None:
        """Deliver from the store to consumers that had no room or were away."""
        hungry, self.hungry = self.hungry, set()
        for session in hungry:
            for box in list(session.behind):
                await self._read_on(session, box)

    async def _read_on(self, session: Session, box: Mailbox) -> None:
        epoch = box.record.epoch
        while session.has_room() and box.session is session:
            limit = min(PAGE, session.room_messages)
            page = await self._store.pending(box.record.uid, box.cursor, limit)
            changes = Changes()
            for envelope in page:
                if not session.has_room():
                    break
                box.cursor = envelope.number
                if envelope.number in box.leased:
                    continue
                envelope.redelivered = 0 < envelope.lease < epoch
                if not envelope.lease and not session.pops:
                    changes.leased.append(envelope)
                self.lease(session, box, envelope)
            if changes.leased:
                # The lease is on record before the message leaves, so that after a
                # crash nobody mistakes a request that may have run for a fresh one.
                await self._store.commit(changes)
            self.send()
            if len(page) < limit and (not page or box.cursor == page[-1].number):
                box.behind = False
                session.behind.discard(box)
                return

    async def find(self, box: Mailbox, tags: frozenset[bytes]) -> None:
        """Lease the requests of these tags, which the consumer holds already."""
        after = 0
        while len(box.leased) < len(tags):
            page = await self._store.pending(box.record.uid, after, PAGE)
            if not page:
                break
            after = page[-1].number
            for envelope in page:
                if envelope.tag in tags and not envelope.flags & RESPONSE:
                    lease = envelope.size << 1, envelope.src, envelope.tag
                    box.leased[envelope.number] = lease
                    if 0 < envelope.lease < box.record.epoch:
                        box.repeated.add(envelope.number)


def lease_change(uid: bytes, number: int, lease: int) -> Envelope:
    """Return the change of the lease of a message in the store."""
    return Envelope(uid, b"", b"", 0, None, 0, number=number, lease=lease)
