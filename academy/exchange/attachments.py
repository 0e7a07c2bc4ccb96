"""Who consumes which mailbox."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from academy.exception import SupersededError
from academy.exchange.attendance import Attendance
from academy.exchange.delivery import Delivery, lease_change
from academy.exchange.mailbox import Mailbox, Session
from academy.exchange.store import Changes

if TYPE_CHECKING:
    from academy.scheduler.job import Place


class Attachments:
    """Gives mailboxes to sessions, and takes them away.

    Attributes:
        attendance: who is told of it.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.attendance = Attendance()
        self._delivery = delivery

    async def attach(
        self,
        changes: Changes,
        session: Session,
        box: Mailbox,
        incarnation: bytes,
        resume: bool,
        held: frozenset[bytes],
        place: Place | None,
    ) -> None:
        """Make a session the consumer of a mailbox (see `Broker.attach`).

        Raises:
            SupersededError: it resumes after a newer incarnation attached.
        """
        record = box.record
        if record.incarnation != incarnation:
            if resume:
                raise SupersededError(box.id)
            record.epoch += 1
            record.incarnation = incarnation
            changes.mailboxes[record.uid] = record
        old = box.session
        if old is not None:
            self.let_go(old, box)
            if old is not session:
                old.consumer.lost(record.uid, SupersededError(box.id))
        box.leased, box.repeated = {}, set()
        if held:
            await self._delivery.find(box, held)
        box.cursor = 0
        box.session = session
        session.attached[record.uid] = box
        box.behind = True
        self.attendance.attached(box, place)

    def start(self, session: Session, uids: Iterable[bytes]) -> None:
        """Have what waits in mailboxes of a session delivered in the next turn."""
        for uid in uids:
            box = session.attached.get(uid)
            if box is None or not box.behind:
                continue
            box.behind = box.count > len(box.leased)
            if box.behind:
                session.behind.add(box)
                self._delivery.hungry.add(session)

    def detach(
        self, changes: Changes, session: Session, uid: bytes, released: Iterable[int]
    ) -> None:
        """Let a session go of a mailbox in order (see `Broker.detach`)."""
        box = session.attached.get(uid)
        if box is None:
            return
        # A client drops what comes when it has asked for this, so that what it
        # has not acknowledged was not begun either.
        sent = (*session.in_flight, *session.large.values())
        unread = {e.number for owner, e in sent if owner is box}
        if session.pops:
            unread = set()  # nothing of it has been leased
        for number in unread.union(released):
            # What an earlier incarnation may have begun stays marked as such.
            if number in box.leased and number not in box.repeated:
                changes.leased.append(lease_change(uid, number, 0))
        self._delivery.withhold(uid)
        self.let_go(session, box)
        self.attendance.left(box, in_order=True)

    def depart(self, session: Session) -> None:
        """End what a session has attached: its connection is lost."""
        for box in list(session.attached.values()):
            self.let_go(session, box)
            self.attendance.left(box, in_order=False)
        session.in_flight.clear()
        session.large.clear()
        session.behind.clear()
        self._delivery.hungry.discard(session)

    def let_go(self, session: Session, box: Mailbox) -> None:
        """End one attachment, and say nothing of it."""
        del session.attached[box.record.uid]
        session.behind.discard(box)
        if session.large:
            left = [n for n, (owner, _) in session.large.items() if owner is box]
            for number in left:
                del session.large[number]
            session.room_messages += len(left)
        box.session = None
        box.seen = time.monotonic()
