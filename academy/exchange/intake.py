"""What sessions post and acknowledge becomes changes of what is stored."""

from __future__ import annotations

from collections.abc import Mapping

from academy.exception import AcademyError
from academy.exchange.attachments import Attachments
from academy.exchange.census import Traffic
from academy.exchange.delivery import Delivery, lease_change
from academy.exchange.expiry import Expiry
from academy.exchange.mailbox import Mailbox, Session
from academy.exchange.mailboxes import Mailboxes
from academy.exchange.refusals import Refusal, Refusals
from academy.exchange.store import ONE_WAY, RESPONSE, Changes, Contents, Envelope, Store

Arrival = tuple[Session, int, Envelope]
"""A message, the session that has posted it, and its number there."""

_KIND = RESPONSE | ONE_WAY


class Intake:
    """Takes messages and receipts.

    Attributes:
        number: of the last message that was taken, or refused.
        sequences: of each session, the number of the last one taken from it.
        refusals: that their senders may not know.
    """

    def __init__(
        self,
        mailboxes: Mailboxes,
        attachments: Attachments,
        delivery: Delivery,
        expiry: Expiry,
        traffic: Traffic,
        sessions: Mapping[bytes, Session],
    ) -> None:
        self.number = 0
        self.sequences: dict[bytes, int] = {}
        self.refusals = Refusals()
        self._mailboxes = mailboxes
        self._boxes = mailboxes.by_uid
        self._usage = mailboxes.usage
        self._attachments = attachments
        self._delivery = delivery
        self._expiry = expiry
        self._traffic = traffic
        self._sessions = sessions

    async def load(self, store: Store, contents: Contents) -> None:
        """Begin with what a store holds."""
        await self.refusals.load(store, contents)
        self.sequences = contents.sessions
        self.number = contents.last_number

    def take_receipts(
        self, changes: Changes, receipts: list[tuple[Session, int]]
    ) -> None:
        """Learn how many of their oldest deliveries sessions have received."""
        for session, count in receipts:
            self.take_receipt(changes, session, count)

    def take_receipt(self, changes: Changes, session: Session, count: int) -> None:
        """Learn that the oldest `count` deliveries of a session were received."""
        in_flight = session.in_flight
        for _ in range(min(count, len(in_flight))):
            box, envelope = in_flight.popleft()
            session.room_messages += 1
            session.room_bytes += envelope.size
            if box.session is not session:
                continue
            # What nobody answers is done with when it was received.
            uid, number = box.record.uid, envelope.number
            if envelope.flags & RESPONSE:
                self._settle(changes, box, number)
            elif session.pops and number in box.leased and number not in box.repeated:
                changes.leased.append(lease_change(uid, number, box.record.epoch))
        if (
            session.behind
            and session.room_messages * 2 > self._mailboxes.limits.window_messages
        ):
            self._delivery.hungry.add(session)

    def _settle(self, changes: Changes, box: Mailbox, number: int) -> None:
        lease = box.leased.pop(number, None)
        if lease is None:
            return
        if box.repeated:
            box.repeated.discard(number)
        box.count -= 1
        size = lease[0] >> 1
        box.bytes -= size
        if (usage := self._usage) is not None:
            usage.messages -= 1
            usage.bytes -= size
        changes.settled.append((box.record.uid, number))

    def take_arrivals(
        self, changes: Changes, arrivals: list[Arrival]
    ) -> list[tuple[Session, Refusal]]:
        """Take what sessions have posted; return what is refused, and to whom."""
        refused = []
        sequences = self.sequences
        for session, sequence, envelope in arrivals:
            if sequence <= sequences.get(session.uid, 0):
                continue  # sent again because our confirmation was lost: it is stored
            if not session.open and envelope.src not in session.attached:
                # The client sends it again through its new connection, and with it
                # all that came after, since what is taken must be without gaps.
                self._attachments.depart(session)
                continue
            sequences[session.uid] = changes.sessions[session.uid] = sequence
            error = self._take(changes, session, envelope)
            if error is not None:
                refusal = Refusal(sequence, envelope.tag, error)
                self._traffic.refused[type(error).__name__] += 1
                self.number += 1
                self.refusals.add(changes, self.number, session.uid, refusal)
                refused.append((session, refusal))
        return refused

    def _take(
        self, changes: Changes, session: Session, envelope: Envelope
    ) -> AcademyError | None:
        source = session.attached.get(envelope.src)
        if source is None:
            return self._mailboxes.not_attached(envelope)
        box = self._boxes.get(envelope.dest)
        if envelope.flags & _KIND == RESPONSE:
            if not source.is_answer(envelope):
                return None  # it has been answered already
            self._settle(changes, source, envelope.answers)
            source.completed += 1
            if box is None or box.record.terminated:
                return None  # nobody waits for it any more
        elif (error := self._mailboxes.obstacle(box, envelope)) is not None:
            return error
        assert box is not None
        source.outgoing += 1
        self.add(changes, box, envelope)
        return None

    def add(self, changes: Changes, box: Mailbox, envelope: Envelope) -> None:
        """Put a message into a mailbox."""
        self.number = envelope.number = self.number + 1
        box.count += 1
        box.bytes += envelope.size
        if (usage := self._usage) is not None:
            usage.messages += 1
            usage.bytes += envelope.size
        box.incoming += 1
        changes.added.append(envelope)
        # As good as every response answers something.
        longest = self._mailboxes.limits.message_lifetime
        if longest or (envelope.answers and not envelope.flags & RESPONSE):
            self._expiry.note(changes, envelope, longest)
        session = box.session
        if session is None or not session.open:
            return
        if box.behind:
            return
        if session.has_room():
            self._delivery.lease(session, box, envelope)
        else:
            box.behind = True
            session.behind.add(box)

    def complete(self, changes: Changes, refused: int) -> None:
        """Count what is about to be stored, and add what was not urgent."""
        self._traffic.stored += len(changes.added) - refused
        self._traffic.settled += len(changes.settled)
        self.refusals.settle(changes)

    def confirm(
        self, arrivals: list[Arrival], refused: list[tuple[Session, Refusal]]
    ) -> None:
        """Tell those who have posted what became of it."""
        for session, refusal in refused:
            # Its client may have connected anew since, and then heard of none yet.
            now = self._sessions.get(session.uid)
            if now is not None:
                now.consumer.refuse(*refusal)
        # Sequences only grow, so that the last one of a session stands for all.
        last: dict[Session, int] = {}
        for session, sequence, _ in arrivals:
            last[session] = sequence
        for session, sequence in last.items():
            if session.open:
                session.consumer.confirm(sequence)
