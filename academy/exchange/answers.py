"""Answers in the place of owners who are gone, or have let a request wait too long."""

from __future__ import annotations

import time

from academy.exception import AcademyError, MessageExpiredError
from academy.exchange import expiry
from academy.exchange.delivery import PAGE
from academy.exchange.expiry import LOOK_AGAIN, Expiry
from academy.exchange.intake import Intake
from academy.exchange.mailbox import Mailbox
from academy.exchange.mailboxes import Mailboxes
from academy.exchange.store import (
    FROM_AGENT,
    RESPONSE,
    TO_AGENT,
    Changes,
    Envelope,
    Store,
)
from academy.identifier import entity_id
from academy.message import AcademyErrorResponse, Message, encode_body


class Answers:
    """Removes what nobody will answer, and answers it with an error."""

    def __init__(
        self, store: Store, mailboxes: Mailboxes, intake: Intake, expiry: Expiry
    ) -> None:
        self._store = store
        self._mailboxes = mailboxes
        self._boxes = mailboxes.by_uid
        self._intake = intake
        self._expiry = expiry
        self._opened_at = 0.0

    def opened(self) -> None:
        """Learn that receivers can connect from now on."""
        self._opened_at = time.monotonic()

    async def answer_all(self, changes: Changes, box: Mailbox) -> None:
        """Answer all requests in a mailbox that was terminated, and empty it."""
        uid, after = box.record.uid, 0
        answered = {number for dest, number in changes.settled if dest == uid}
        fresh = [envelope for envelope in changes.added if envelope.dest == uid]
        while page := await self._store.pending(uid, after, PAGE):
            after = page[-1].number
            left = [envelope for envelope in page if envelope.number not in answered]
            self._answer(changes, box, left, box.terminated_error())
        self._answer(changes, box, fresh, box.terminated_error())
        changes.cleared.append(uid)
        self._mailboxes.fill(box, -box.count, -box.bytes)
        box.leased, box.repeated = {}, set()

    async def expire(self, changes: Changes) -> None:
        """Remove what has waited for too long, and answer who sent it."""
        now = expiry.now()
        page, due = await self._store.expired(now, PAGE)
        received = set(changes.settled)  # in this turn
        for envelope in page:
            uid, number = envelope.dest, envelope.number
            if (uid, number) in received:
                continue
            box = self._boxes[uid]
            if self._may_be_worked_on(box, envelope):
                changes.expiries.append((uid, number, now + LOOK_AGAIN))
                continue
            box.leased.pop(number, None)
            box.repeated.discard(number)
            self._mailboxes.fill(box, -1, -envelope.size)
            changes.settled.append((uid, number))
            self._answer(changes, box, [envelope], MessageExpiredError(box.id))
        for uid in self._expiry.forgotten(now):
            self._boxes.pop(uid, None)
            changes.removed.append(uid)
        self._expiry.plan(due)

    def _may_be_worked_on(self, box: Mailbox, envelope: Envelope) -> bool:
        if not envelope.lease and envelope.number not in box.leased:
            return False  # nobody has had it
        if box.session is not None:
            return True
        since = self._opened_at if box.seen is None else box.seen
        return time.monotonic() - since < LOOK_AGAIN

    def _answer(
        self,
        changes: Changes,
        box: Mailbox,
        page: list[Envelope],
        error: AcademyError,
    ) -> None:
        for envelope in page:
            source = self._boxes.get(envelope.src)
            if (
                not envelope.flags & RESPONSE
                and source is not None
                and not source.record.terminated
            ):
                self._intake.add(changes, source, _error_answer(box, envelope, error))


def _error_answer(box: Mailbox, request: Envelope, error: AcademyError) -> Envelope:
    body = AcademyErrorResponse.of(error)
    assert body is not None
    source = entity_id(bool(request.flags & FROM_AGENT), request.src)
    parts = encode_body(Message(box.id, source, request.tag, body))
    payload = b"".join(parts)
    flags = (
        RESPONSE
        | (FROM_AGENT if request.flags & TO_AGENT else 0)
        | (TO_AGENT if request.flags & FROM_AGENT else 0)
    )
    return Envelope(
        request.src, request.dest, request.tag, flags, payload, len(payload)
    )
