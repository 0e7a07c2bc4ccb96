"""Large messages on their way to a broker: what is here of them, what is reserved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from academy.exception import ProtocolError
from academy.exchange.store import LARGE, Envelope
from academy.exchange.store.bodies import Bodies, Body

if TYPE_CHECKING:
    from academy.exchange.mailbox import Mailbox
    from academy.exchange.mailboxes import Mailboxes
    from academy.serialize import Part

RESUME_SECONDS = 60.0
"""A client whose connection was cut is back long before."""


class Upload:
    """A body that is coming, and the room that it will take in a mailbox."""

    __slots__ = ("body", "box", "received")

    def __init__(self, box: Mailbox, size: int) -> None:
        self.box = box
        self.body = Body.new(size)
        self.received = 0


class Uploads:
    """The uploads of all sessions of one broker.

    Invariants: `_open` has the uploads whose message was not posted yet, by session and
    number; `_expiring` has the timers of sessions without a connection.

    Args:
        bodies: where their bytes go.
        mailboxes: where they take room.
        patience: seconds that the uploads of a client which lost its connection are
            kept for it.
    """

    def __init__(
        self, bodies: Bodies, mailboxes: Mailboxes, patience: float = RESUME_SECONDS
    ) -> None:
        self._bodies = bodies
        self._mailboxes = mailboxes
        self._patience = patience
        self._open: dict[tuple[bytes, int], Upload] = {}
        self._expiring: dict[bytes, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._open)

    def received(self, session: bytes, number: int) -> int | None:
        """Return how much is here of an upload; None if it is unknown."""
        upload = self._open.get((session, number))
        return None if upload is None else upload.received

    def begin(self, session: bytes, number: int, box: Mailbox, size: int) -> None:
        """Reserve room for a body that is to come."""
        self._open[session, number] = Upload(box, size)
        self._mailboxes.fill(box, 1, size)

    def release(self, upload: Upload) -> None:
        """Give back the room that an upload takes."""
        if not upload.box.record.terminated:
            self._mailboxes.fill(upload.box, -1, -upload.body.size)

    async def write(
        self, session: bytes, number: int, offset: int, data: Part
    ) -> tuple[int, int] | None:
        """Take a part; return how much is here, and of how much.

        None says that nobody wants it: the upload was given up meanwhile.

        Raises:
            ProtocolError: it leaves a gap, or is more than was asked for.
            StorageError: it cannot be written.
        """
        upload = self._open.get((session, number))
        if upload is None:
            return None
        end = offset + len(data)
        if offset > upload.received or end > upload.body.size:
            raise ProtocolError(
                f"bytes {offset} to {end} of an upload of {upload.body.size} bytes, "
                f"of which {upload.received} are here"
            )
        await self._bodies.write(upload.body.key, offset, data)
        if self._open.get((session, number)) is not upload:
            self._bodies.delete([upload.body.key])
            return None
        upload.received = max(upload.received, end)
        return upload.received, upload.body.size

    def finish(self, session: bytes, number: int, envelope: Envelope) -> Upload:
        """Put a complete body into its message, which is to take the room itself.

        Raises:
            ProtocolError: the body is not complete.
        """
        upload = self._open.get((session, number))
        if upload is None or upload.received < upload.body.size:
            raise ProtocolError(f"the body of transfer {number} is not complete")
        del self._open[session, number]
        envelope.payload = upload.body.packed()
        envelope.size = upload.body.size
        envelope.flags |= LARGE
        return upload

    def drop(self, session: bytes, number: int) -> None:
        """Give an upload up."""
        upload = self._open.pop((session, number), None)
        if upload is not None:
            self.release(upload)
            self._bodies.delete([upload.body.key])

    def delete(self, upload: Upload) -> None:
        """Delete the body of a message that was not stored."""
        self._bodies.delete([upload.body.key])

    # --- clients come and go

    def connected(self, session: bytes) -> None:
        """Keep what a session has begun."""
        timer = self._expiring.pop(session, None)
        if timer is not None:
            timer.cancel()

    def disconnected(self, session: bytes) -> None:
        """Give up what a session has begun, unless it comes back in time."""
        if any(owner == session for owner, _ in self._open):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._patience, self._expire, session)
            self._expiring[session] = timer

    def _expire(self, session: bytes) -> None:
        self._expiring.pop(session, None)
        for owner, number in list(self._open):
            if owner == session:
                self.drop(owner, number)

    def clear(self) -> None:
        """Forget everything; the store sweeps what is left of it."""
        for timer in self._expiring.values():
            timer.cancel()
        self._expiring.clear()
        self._open.clear()
