"""Messages of which the body comes, and leaves, in parts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from academy.exception import MessageTooLargeError, ProtocolError
from academy.exchange.store import ONE_WAY, RESPONSE, Changes, Envelope
from academy.exchange.uploads import Uploads

if TYPE_CHECKING:
    from academy.exchange.intake import Intake
    from academy.exchange.mailbox import Session
    from academy.exchange.mailboxes import Mailboxes
    from academy.exchange.store.bodies import Bodies
    from academy.exchange.turns import Turns

_KIND = RESPONSE | ONE_WAY


class LargeMessages:
    """Takes large messages: offered first, posted once their body is here.

    Attributes:
        uploads: bodies on their way here.
    """

    def __init__(
        self, bodies: Bodies, mailboxes: Mailboxes, intake: Intake, turns: Turns
    ) -> None:
        self.uploads = Uploads(bodies, mailboxes)
        self._mailboxes = mailboxes
        self._boxes = mailboxes.by_uid
        self._intake = intake
        self._turns = turns

    def offer(self, session: Session, number: int, envelope: Envelope) -> int | None:
        """Reserve room for a large message, of which the body is to come.

        Args:
            session: whose upload it is.
            number: of the upload; one that is known goes on where it was.
            envelope: the message without its body.

        Returns:
            How many bytes are here; None if nobody waits for this response.

        Raises:
            AcademyError: the message would be refused.
        """
        received = self.uploads.received(session.uid, number)
        if received is not None:
            return received
        source = session.attached.get(envelope.src)
        if source is None:
            raise self._mailboxes.not_attached(envelope)
        box = self._boxes.get(envelope.dest)
        if envelope.flags & _KIND == RESPONSE:
            largest = self._mailboxes.limits.max_message_bytes
            if box is None or box.record.terminated or not source.is_answer(envelope):
                return None
            if envelope.size > largest:
                raise MessageTooLargeError(envelope.size, largest)
        elif (error := self._mailboxes.obstacle(box, envelope)) is not None:
            raise error
        assert box is not None
        self.uploads.begin(session.uid, number, box, envelope.size)
        return 0

    def post(
        self, session: Session, sequence: int, number: int, envelope: Envelope
    ) -> None:
        """Take a large message, of which all parts are here.

        Raises:
            ProtocolError: they are not, or the session is over.
        """
        if not session.open:
            # Its client will send it through its next connection, and has to find the
            # body here then. What follows would leave a gap.
            raise ProtocolError("the session is over")
        upload = self.uploads.finish(session.uid, number, envelope)

        async def release(changes: Changes) -> None:
            self.uploads.release(upload)

        async def keep(changes: Changes) -> None:
            if envelope.number:
                changes.large.append(envelope)

        def stored(done: asyncio.Future[Any]) -> None:
            # After an error, the store sweeps what it does not refer to.
            if done.exception() is None and not envelope.number:
                self.uploads.delete(upload)

        self._turns.soon(release).add_done_callback(asyncio.Future.exception)
        self._turns.post(session, sequence, envelope)
        self._turns.soon(keep, after_arrivals=True).add_done_callback(stored)

    def received(self, session: Session, number: int) -> None:
        """Learn that a session has received the body of a large message."""

        async def work(changes: Changes) -> None:
            delivery = session.large.pop(number, None)
            if delivery is not None:
                session.in_flight.appendleft(delivery)
                session.room_bytes -= delivery[1].size
                self._intake.take_receipt(changes, session, 1)

        self._turns.soon(work).add_done_callback(asyncio.Future.exception)
