"""The rules of mailboxes, written once for every exchange.

Time is cut into turns. Whatever arrives while a turn runs waits for the next, and
each turn writes one transaction, so that a burst of messages costs one commit. A
message is confirmed and delivered only after the commit that stored it.

Nothing here opens a payload, and nothing here knows how a store stores.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

from academy.exception import (
    AcademyError,
    BadEntityIdError,
    ForbiddenError,
    MailboxFullError,
    MessageExpiredError,
    MessageTooLargeError,
    StorageError,
    SupersededError,
)
from academy.exchange import expiry
from academy.exchange.attendance import Attendance
from academy.exchange.census import Census, take_census
from academy.exchange.expiry import LOOK_AGAIN, Expiry
from academy.exchange.mailbox import Consumer, Limits, Mailbox, Session
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.refusals import Refusal, Refusals
from academy.exchange.store import (
    FROM_AGENT,
    LARGE,
    ONE_WAY,
    RESPONSE,
    TO_AGENT,
    Changes,
    Envelope,
    MailboxRecord,
    Store,
)
from academy.exchange.uploads import Uploads
from academy.identifier import entity_id
from academy.message import AcademyErrorResponse, Message, encode_body
from academy.scheduler.job import Place
from academy.stats import AgentStats

logger = logging.getLogger(__name__)

PAGE = 256
"""Messages read from the store at once."""
_KIND = RESPONSE | ONE_WAY

Control = Callable[[Changes], Coroutine[Any, Any, Any]]
Arrival = tuple[Session, int, Envelope]


class Broker:
    """Keeps every rule of the exchange over one store.

    All calls come from one event loop. `open` first, `close` last.

    Attributes:
        limits: what it refuses.
        stored: messages that it has taken, since it was made.
        settled: messages that were dealt with and removed one by one.
        delivered: messages handed to consumers.
        redelivered: those of them that an earlier incarnation may have had.
        refused: messages that it has refused, by the name of the error.
    """

    def __init__(self, store: Store, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.bodies = store.bodies
        self.uploads = Uploads(store.bodies)
        self._store = store
        self._boxes: dict[bytes, Mailbox] = {}
        self._sessions: dict[bytes, Session] = {}
        self._sequences: dict[bytes, int] = {}
        self._refusals = Refusals()
        self.stored = self.settled = self.delivered = self.redelivered = 0
        self.refused: Counter[str] = Counter()
        self._number = 0
        self._opened = False
        self._opened_at = 0.0
        self._controls: list[tuple[Control, asyncio.Future[Any]]] = []
        self._late_controls: list[tuple[Control, asyncio.Future[Any]]] = []
        self._arrivals: list[Arrival] = []
        self._receipts: list[tuple[Session, int]] = []
        self._departures: list[Session] = []
        self._outgoing: list[tuple[Session, Envelope]] = []
        self._hungry: set[Session] = set()
        self._attendance = Attendance()
        self._expiry = Expiry(self._look_for_expired)
        self._turning: asyncio.Task[None] | asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Load what the store holds."""
        contents = await self._store.open()
        waiting = contents.waiting
        self._boxes = {
            record.uid: Mailbox(record, *waiting.get(record.uid, (0, 0)))
            for record in contents.mailboxes
        }
        await self._refusals.load(self._store, contents)
        terminated = [r.uid for r in contents.mailboxes if r.terminated]
        keep = self.limits.tombstone_lifetime
        await self._expiry.load(self._store, terminated, keep)
        self._opened_at = time.monotonic()
        self._sequences = contents.sessions
        self._number = contents.last_number
        self._opened = True

    async def settle(self) -> None:
        """Wait until nothing is left to do."""
        while (turning := self._turning) is not None:
            if isinstance(turning, asyncio.Task):
                await asyncio.wait([turning])
            else:
                turning.cancel()
                self._begin()

    async def close(self) -> None:
        """Finish the work at hand and close the store. May be called twice."""
        await self.settle()
        self._expiry.stop()
        self._opened = False
        self.uploads.clear()
        await self._store.close()

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected and nothing is left to do."""
        return not self._sessions and self._turning is None

    def dismiss(self, error: AcademyError) -> None:
        """Send all clients away; they may connect again, here or to another broker."""
        for session in list(self._sessions.values()):
            self.disconnect(session)
            # At once: what it has posted meanwhile may build on what was not stored.
            self._depart(session)
            session.consumer.reset(error)

    # --- sessions

    def connect(self, uid: bytes, consumer: Consumer, *, pops: bool = False) -> Session:
        """Begin a session, or take one over from a connection that was lost.

        Args:
            uid: of the session.
            consumer: its far end.
            pops: it cannot say what it holds. So a message counts as delivered once its
                receipt is acknowledged, not when it leaves.
        """
        if self._loop is not asyncio.get_running_loop():
            self._turning = None  # it was that of an event loop before this one
        old = self._sessions.get(uid)
        if old is not None:
            self.disconnect(old)
            old.consumer.reset(ForbiddenError("the session has connected anew"))
        session = self._sessions[uid] = Session(uid, consumer, self.limits, pops)
        self.uploads.connected(uid)
        for refusal in self._refusals.of(uid):
            consumer.refuse(*refusal)
        return session

    def last_sequence(self, session: Session) -> int:
        """Return the last sequence number from a session; it may not be stored yet."""
        return self._sequences.get(session.uid, 0)

    async def known(self, session: Session) -> tuple[int, int]:
        """Return a session's last sequence number and the largest of a message.

        Both are what is stored: at the beginning of a turn, nothing else counts. Who
        forgets what it has sent because of a number that is not would lose it.

        Raises:
            StorageError: there is no telling now; the session is over.
        """
        found = []

        async def work(_: Changes) -> None:
            found.append((self.last_sequence(session), self._number))

        await self._control(work)
        return found[0]

    def disconnect(self, session: Session) -> None:
        """End a session's link; its mailboxes keep what was not settled.

        What the session has posted before is still taken.
        """
        if not session.open:
            return
        session.open = False
        self._attendance.forget(session)
        if self._sessions.get(session.uid) is session:
            del self._sessions[session.uid]
            self.uploads.disconnected(session.uid)
        if not session.attached:
            return
        self._departures.append(session)
        if self._turning is None:
            self._schedule()

    def _depart(self, session: Session) -> None:
        for box in list(session.attached.values()):
            self._detach(session, box)
            self._attendance.left(box, in_order=False)
        session.in_flight.clear()
        session.large.clear()
        session.behind.clear()
        self._hungry.discard(session)

    async def detach(
        self, session: Session, uid: bytes, released: Iterable[int] = ()
    ) -> None:
        """Let go of one mailbox of a session, after what it has posted.

        Args:
            session: whose mailbox it is.
            uid: the mailbox.
            released: numbers of requests that were delivered and not begun: the next
                incarnation gets them as if they had not been delivered.
        """

        async def work(changes: Changes) -> None:
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
                    changes.leased.append(_lease_change(uid, number, 0))
            outgoing = self._outgoing
            self._outgoing = [item for item in outgoing if item[1].dest != uid]
            self._detach(session, box)
            self._attendance.left(box, in_order=True)

        await self._control(work, after_arrivals=True)

    def _detach(self, session: Session, box: Mailbox) -> None:
        del session.attached[box.record.uid]
        session.behind.discard(box)
        if session.large:
            left = [n for n, (owner, _) in session.large.items() if owner is box]
            for number in left:
                del session.large[number]
            session.room_messages += len(left)
        box.session = None
        box.seen = time.monotonic()

    def post(self, session: Session, sequence: int, envelope: Envelope) -> None:
        """Take a message; it is confirmed or refused at the end of the turn."""
        self._arrivals.append((session, sequence, envelope))
        if self._turning is None:
            self._schedule()

    def acknowledge(self, session: Session, count: int) -> None:
        """Learn that the oldest `count` deliveries of a session were received."""
        self._receipts.append((session, count))
        if self._turning is None:
            self._schedule()

    # --- large messages

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
            raise self._not_attached(envelope)
        box = self._boxes.get(envelope.dest)
        if envelope.flags & _KIND == RESPONSE:
            largest = self.limits.max_message_bytes
            if box is None or box.record.terminated:
                return None
            if envelope.size > largest:
                raise MessageTooLargeError(envelope.size, largest)
        elif (error := self._obstacle(box, envelope)) is not None:
            raise error
        assert box is not None
        self.uploads.begin(session.uid, number, box, envelope.size)
        return 0

    def post_large(
        self, session: Session, sequence: int, number: int, envelope: Envelope
    ) -> None:
        """Take a large message, of which all parts are here.

        Raises:
            ProtocolError: they are not.
        """
        upload = self.uploads.finish(session.uid, number, envelope)

        async def release(changes: Changes) -> None:
            upload.release()

        async def keep(changes: Changes) -> None:
            if envelope.number:
                changes.large.append(envelope)

        def stored(done: asyncio.Future[Any]) -> None:
            # After an error, the store sweeps what it does not refer to.
            if done.exception() is None and not envelope.number:
                self.uploads.delete(upload)

        self._soon(release)
        self.post(session, sequence, envelope)
        self._soon(keep, after_arrivals=True).add_done_callback(stored)

    def received(self, session: Session, number: int) -> None:
        """Learn that a session has received the body of a large message."""

        async def work(changes: Changes) -> None:
            delivery = session.large.pop(number, None)
            if delivery is not None:
                session.in_flight.appendleft(delivery)
                session.room_bytes -= delivery[1].size
                self._take_receipt(changes, session, 1)

        self._soon(work).add_done_callback(asyncio.Future.exception)

    async def is_stored(self, uid: bytes, number: int) -> bool:
        """Whether a mailbox holds the message of a number."""
        found = await self._store.pending(uid, number - 1, 1)
        return bool(found) and found[0].number == number

    def heard(self, session: Session, sequence: int) -> None:
        """Learn that a session knows of every refusal up to a sequence number."""
        self._refusals.heard(session.uid, sequence)

    # --- mailboxes

    async def register(self, records: Iterable[MailboxRecord]) -> None:
        """Make mailboxes, all or none; an id that exists stays as it is.

        Raises:
            ForbiddenError: it exists and was registered by somebody else.
        """
        records = list(records)

        async def work(changes: Changes) -> None:
            for record in records:
                box = self._boxes.get(record.uid)
                if box is not None and box.record.creator != record.creator:
                    raise ForbiddenError(f"{box.id} was registered by somebody else")
            for record in records:
                if record.uid not in self._boxes:
                    box = self._boxes[record.uid] = Mailbox(record)
                    self._attendance.registered(box)
                    changes.mailboxes[record.uid] = record

        await self._control(work)

    async def attach(
        self,
        session: Session,
        uid: bytes,
        incarnation: bytes,
        *,
        resume: bool = False,
        held: Iterable[bytes] = (),
        place: Place | None = None,
    ) -> None:
        """Make a session the consumer of a mailbox; an older one is superseded.

        Nothing is delivered before `start`, so that a client learns first that the
        mailbox is its own.

        Args:
            session: who attaches.
            uid: the mailbox.
            incarnation: random bytes that an incarnation makes once for itself.
            resume: this incarnation was attached before its connection was lost.
            held: tags of the requests that it holds from then; everything else that
                is not settled is delivered again.
            place: where the incarnation runs, for those who watch the mailbox.

        Raises:
            BadEntityIdError: there is no such mailbox.
            MailboxTerminatedError: it is terminated.
            SupersededError: it resumes after a newer incarnation attached.
        """

        async def work(changes: Changes) -> None:
            box = self._live(uid)
            if not session.open:
                raise ForbiddenError("the session is over")
            record = box.record
            if record.incarnation != incarnation:
                if resume:
                    raise SupersededError(box.id)
                record.epoch += 1
                record.incarnation = incarnation
                changes.mailboxes[uid] = record
            old = box.session
            if old is not None:
                self._detach(old, box)
                if old is not session:
                    old.consumer.lost(uid, SupersededError(box.id))
            known = frozenset(held)
            box.leased, box.repeated = {}, set()
            if known:
                await self._find(box, known)
            box.cursor = 0
            box.session = session
            session.attached[uid] = box
            box.behind = True
            self._attendance.attached(box, place)

        await self._control(work)

    def start(self, session: Session, uids: Iterable[bytes]) -> None:
        """Begin to deliver to mailboxes that a session has attached."""
        for uid in uids:
            box = session.attached.get(uid)
            if box is None or not box.behind:
                continue
            box.behind = box.count > len(box.leased)
            if box.behind:
                session.behind.add(box)
                self._hungry.add(session)
        if self._hungry and self._turning is None:
            self._schedule()

    async def terminate(self, uid: bytes, by: bytes = b"", reason: str = "") -> None:
        """End a mailbox for good and answer its unsettled requests.

        Args:
            uid: the mailbox; an unknown one is left alone, and of one that is
                terminated only the reason changes.
            by: mailbox of who asks; an owner is not told what it asked for itself.
            reason: for everybody who asks for the owner from now on.
        """

        async def work(changes: Changes) -> None:
            box = self._boxes.get(uid)
            if box is None:
                return
            if box.record.terminated:
                if reason:  # who asks later knows better
                    box.record.reason = reason
                    changes.mailboxes[uid] = box.record
                return
            box.record.terminated = True
            box.record.reason = reason
            changes.mailboxes[uid] = box.record
            owner = box.session
            if owner is not None:
                self._detach(owner, box)
                if uid != by:
                    owner.consumer.lost(uid, box.terminated_error())
            self._attendance.terminated(box)
            self._expiry.bury(uid, self.limits.tombstone_lifetime)
            await self._answer_all(changes, box)

        await self._control(work, after_arrivals=True)

    def status(self, uid: bytes) -> MailboxStatus:
        """Return MISSING, ACTIVE or TERMINATED."""
        box = self._boxes.get(uid)
        if box is None:
            return MailboxStatus.MISSING
        if box.record.terminated:
            return MailboxStatus.TERMINATED
        return MailboxStatus.ACTIVE

    def creator(self, uid: bytes) -> str:
        """Return who registered a mailbox; nobody for an unknown one."""
        box = self._boxes.get(uid)
        return "" if box is None else box.record.creator

    def groups(self, uid: bytes) -> Collection[str]:
        """Return the groups with which a mailbox is shared; none for an unknown one."""
        box = self._boxes.get(uid)
        return () if box is None else box.record.groups

    async def share(self, uid: bytes, group: str, shared: bool = True) -> None:
        """Share a mailbox with a group, or do so no more.

        Raises:
            BadEntityIdError: there is no such mailbox.
            MailboxTerminatedError: it is terminated.
        """

        async def work(changes: Changes) -> None:
            record = self._live(uid).record
            others = set(record.groups) - {group}
            record.groups = tuple(sorted(others | {group} if shared else others))
            changes.mailboxes[uid] = record

        await self._control(work)

    def silence(self, uid: bytes) -> float | None:
        """Return the seconds since the owner was last attached; None if never."""
        box = self._boxes.get(uid)
        if box is None:
            return None
        if box.session is not None:
            return 0.0
        return None if box.seen is None else time.monotonic() - box.seen

    def touch(self, uid: bytes) -> None:
        """Count a sign of life that came without a session."""
        box = self._boxes.get(uid)
        if box is not None:
            box.seen = time.monotonic()

    def stats(self, uid: bytes) -> AgentStats:
        """Return the message counts of a mailbox since the broker was opened."""
        box = self._boxes.get(uid)
        if box is None:
            raise BadEntityIdError(entity_id(True, uid))
        requests = sum(not note & RESPONSE for note in box.leased.values())
        return AgentStats(
            incoming=box.incoming,
            outgoing=box.outgoing,
            completed=box.completed,
            in_progress=requests,
            queued=box.count - len(box.leased),
        )

    def watch(self, session: Session, uids: Iterable[bytes]) -> None:
        """Tell a session where the owners of mailboxes are, and every change of it.

        A turn tells all of its changes at once, and of each mailbox the last one.
        """
        if not session.open:
            return
        for uid in uids:
            self._attendance.watch(session, uid, self._boxes.get(uid))
        self._attendance.tell_all()

    def unwatch(self, session: Session, uids: Iterable[bytes]) -> None:
        """Tell a session no more about these mailboxes."""
        self._attendance.unwatch(session, uids)

    async def census(self) -> Census:
        """Count the mailboxes, and what is in them."""
        return await take_census(self._boxes.values())

    async def check(self) -> None:
        """Open the store again where that has failed.

        Raises:
            StorageError: it fails again.
        """
        if not self._opened:
            await self._control(_nothing)

    def discover(self, name: str, allow_subclasses: bool) -> list[MailboxRecord]:
        """Return the live agents of a qualified class name."""
        return [
            record
            for box in self._boxes.values()
            if (record := box.record).agent
            and not record.terminated
            and name in (record.classes if allow_subclasses else record.classes[:1])
        ]

    def _live(self, uid: bytes) -> Mailbox:
        box = self._boxes.get(uid)
        if box is None:
            raise BadEntityIdError(entity_id(True, uid))
        if box.record.terminated:
            raise box.terminated_error()
        return box

    # --- turns

    async def _control(self, work: Control, *, after_arrivals: bool = False) -> None:
        await self._soon(work, after_arrivals=after_arrivals)

    def _soon(
        self, work: Control, *, after_arrivals: bool = False
    ) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue = self._late_controls if after_arrivals else self._controls
        queue.append((work, done))
        if self._turning is None:
            self._schedule()
        return done

    def _schedule(self) -> None:
        # Not at once: what else has arrived is to have a part in the transaction.
        loop = self._loop = asyncio.get_running_loop()
        self._turning = loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Take turns here until one may have to wait; a task takes that one."""
        commit = self._store.commit_now
        try:
            while commit is not None and self._is_plain():
                self._plain_turn(commit)
        except Exception as error:
            again = self._turns(error)
        else:
            if not self._has_work():
                self._turning = None
                return
            again = self._turns()
        self._turning = asyncio.get_running_loop().create_task(again)

    def _is_plain(self) -> bool:
        """Whether messages are all there is to do, as in nearly every turn."""
        return (
            bool(self._arrivals or self._receipts)
            and self._opened
            and not (
                self._controls
                or self._late_controls
                or self._departures
                or self._hungry
            )
        )

    def _plain_turn(self, commit: Callable[[Changes], None]) -> None:
        changes = Changes()
        arrivals, self._arrivals = self._arrivals, []
        self._take_receipts(changes)
        refused = self._take_arrivals(changes, arrivals)
        if changes:
            self._complete(changes, len(refused))
            commit(changes)
        self._conclude(arrivals, refused)

    async def _turns(self, failed: Exception | None = None) -> None:
        try:
            if failed is not None:
                await self._start_over(failed, [])
            while self._has_work():
                asked = [done for _, done in (*self._controls, *self._late_controls)]
                try:
                    await self._turn()
                except Exception as error:
                    await self._start_over(error, asked)
        finally:
            self._turning = None

    def _has_work(self) -> bool:
        return bool(
            self._arrivals
            or self._receipts
            or self._controls
            or self._late_controls
            or self._departures
            or self._hungry
        )

    async def _turn(self) -> None:
        changes = Changes()
        controls, self._controls = self._controls, []
        late, self._late_controls = self._late_controls, []
        arrivals, self._arrivals = self._arrivals, []
        departures, self._departures = self._departures, []
        answers: list[tuple[asyncio.Future[Any], AcademyError | None]] = []
        if not self._opened:
            await self.open()
        self._take_receipts(changes)
        for work, done in controls:
            answers.append((done, await self._attempt(work, changes)))
        refused = self._take_arrivals(changes, arrivals)
        for work, done in late:
            answers.append((done, await self._attempt(work, changes)))
        if changes:
            self._complete(changes, len(refused))
            await self._store.commit(changes)
        for done, problem in answers:
            if done.done():
                continue
            if problem is None:
                done.set_result(None)
            else:
                done.set_exception(problem)
        self._conclude(arrivals, refused, departures)
        if self._hungry:
            await self._catch_up()

    def _complete(self, changes: Changes, refused: int) -> None:
        """Count what is about to be stored, and add what was not urgent."""
        self.stored += len(changes.added) - refused
        self.settled += len(changes.settled)
        self._refusals.settle(changes)

    def _conclude(
        self,
        arrivals: list[Arrival],
        refused: list[tuple[Session, Refusal]],
        departures: Iterable[Session] = (),
    ) -> None:
        """Tell everybody what the turn has stored."""
        self._confirm(arrivals, refused)
        self._send()
        for session in departures:
            self._depart(session)
        self._attendance.tell_all()

    async def _attempt(self, work: Control, changes: Changes) -> AcademyError | None:
        try:
            await work(changes)
        except StorageError:
            raise
        except AcademyError as error:
            return error
        return None

    def _take_receipts(self, changes: Changes) -> None:
        receipts, self._receipts = self._receipts, []
        for session, count in receipts:
            self._take_receipt(changes, session, count)

    def _take_receipt(self, changes: Changes, session: Session, count: int) -> None:
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
                changes.leased.append(_lease_change(uid, number, box.record.epoch))
        if session.behind and session.room_messages * 2 > self.limits.window_messages:
            self._hungry.add(session)

    def _settle(self, changes: Changes, box: Mailbox, number: int) -> bool:
        note = box.leased.pop(number, None)
        if note is None:
            return False
        if box.repeated:
            box.repeated.discard(number)
        box.count -= 1
        box.bytes -= note >> 1
        changes.settled.append((box.record.uid, number))
        return True

    def _take_arrivals(
        self, changes: Changes, arrivals: list[Arrival]
    ) -> list[tuple[Session, Refusal]]:
        refused = []
        sequences = self._sequences
        for session, sequence, envelope in arrivals:
            if sequence <= sequences.get(session.uid, 0):
                continue  # sent again because our confirmation was lost: it is stored
            if not session.open and envelope.src not in session.attached:
                # The client sends it again through its new connection, and with it
                # all that came after, since what is taken must be without gaps.
                self._depart(session)
                continue
            sequences[session.uid] = changes.sessions[session.uid] = sequence
            error = self._take(changes, session, envelope)
            if error is not None:
                refusal = Refusal(sequence, envelope.tag, error)
                self.refused[type(error).__name__] += 1
                self._number += 1
                self._refusals.add(changes, self._number, session.uid, refusal)
                refused.append((session, refusal))
        return refused

    def _take(
        self, changes: Changes, session: Session, envelope: Envelope
    ) -> AcademyError | None:
        source = session.attached.get(envelope.src)
        if source is None:
            return self._not_attached(envelope)
        box = self._boxes.get(envelope.dest)
        if envelope.flags & _KIND == RESPONSE:
            if not self._settle(changes, source, envelope.answers):
                return None  # it has been answered already
            source.completed += 1
            if box is None or box.record.terminated:
                return None  # nobody waits for it any more
        elif (error := self._obstacle(box, envelope)) is not None:
            return error
        assert box is not None
        source.outgoing += 1
        self._add(changes, box, envelope)
        return None

    def _not_attached(self, envelope: Envelope) -> AcademyError:
        source = entity_id(bool(envelope.flags & FROM_AGENT), envelope.src)
        box = self._boxes.get(envelope.src)
        if box is None:
            return BadEntityIdError(source)
        if box.record.terminated:
            return box.terminated_error()
        return SupersededError(source)

    def _obstacle(self, box: Mailbox | None, envelope: Envelope) -> AcademyError | None:
        limits = self.limits
        if box is None:
            dest = entity_id(bool(envelope.flags & TO_AGENT), envelope.dest)
            return BadEntityIdError(dest)
        if box.record.terminated:
            return box.terminated_error()
        if envelope.size > limits.max_message_bytes:
            return MessageTooLargeError(envelope.size, limits.max_message_bytes)
        if box.count >= limits.max_mailbox_messages:
            return MailboxFullError(box.id, f"{box.count} unsettled messages")
        if box.bytes + envelope.size > limits.max_mailbox_bytes:
            return MailboxFullError(box.id, f"{box.bytes} unsettled bytes")
        return None

    def _add(self, changes: Changes, box: Mailbox, envelope: Envelope) -> None:
        self._number = envelope.number = self._number + 1
        box.count += 1
        box.bytes += envelope.size
        box.incoming += 1
        changes.added.append(envelope)
        # As good as every response answers something.
        longest = self.limits.message_lifetime
        if longest or (envelope.answers and not envelope.flags & RESPONSE):
            self._expiry.note(changes, envelope, longest)
        session = box.session
        if session is None or not session.open:
            return
        if box.behind:
            return
        if session.has_room():
            self._lease(session, box, envelope)
        else:
            box.behind = True
            session.behind.add(box)

    def _lease(self, session: Session, box: Mailbox, envelope: Envelope) -> None:
        if envelope.redelivered:
            self.redelivered += 1
            box.repeated.add(envelope.number)
        elif not session.pops:
            envelope.lease = box.record.epoch
        box.cursor = envelope.number
        box.leased[envelope.number] = envelope.size << 1 | envelope.flags & RESPONSE
        session.room_messages -= 1
        if envelope.flags & LARGE and not session.pops:
            session.large[envelope.number] = (box, envelope)  # has a window of its own
        else:
            session.room_bytes -= envelope.size
            session.in_flight.append((box, envelope))
        self._outgoing.append((session, envelope))

    def _confirm(
        self, arrivals: list[Arrival], refused: list[tuple[Session, Refusal]]
    ) -> None:
        for session, refusal in refused:
            if session.open:
                session.consumer.refuse(*refusal)
        # Sequences only grow, so that the last one of a session stands for all.
        for session, sequence in {item[0]: item[1] for item in arrivals}.items():
            if session.open:
                session.consumer.confirm(sequence)

    def _send(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        self.delivered += len(outgoing)
        for session, envelope in outgoing:
            if session.open:
                session.consumer.deliver(envelope)
        # A turn is the batch: nothing that could leave together comes after it.
        for session in {session for session, _ in outgoing}:
            session.consumer.delivered()

    async def _catch_up(self) -> None:
        """Deliver from the store to consumers that had no room or were away."""
        hungry, self._hungry = self._hungry, set()
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
                self._lease(session, box, envelope)
            if changes.leased:
                # The lease is on record before the message leaves, so that after a
                # crash nobody mistakes a request that may have run for a fresh one.
                await self._store.commit(changes)
            self._send()
            if len(page) < limit and (not page or box.cursor == page[-1].number):
                box.behind = False
                session.behind.discard(box)
                return

    async def _find(self, box: Mailbox, tags: frozenset[bytes]) -> None:
        """Lease the requests of these tags, which the consumer holds already."""
        after = 0
        while len(box.leased) < len(tags):
            page = await self._store.pending(box.record.uid, after, PAGE)
            if not page:
                break
            after = page[-1].number
            for envelope in page:
                if envelope.tag in tags and not envelope.flags & RESPONSE:
                    box.leased[envelope.number] = envelope.size << 1
                    if 0 < envelope.lease < box.record.epoch:
                        box.repeated.add(envelope.number)

    async def _answer_all(self, changes: Changes, box: Mailbox) -> None:
        uid, after = box.record.uid, 0
        answered = {number for dest, number in changes.settled if dest == uid}
        fresh = [envelope for envelope in changes.added if envelope.dest == uid]
        while page := await self._store.pending(uid, after, PAGE):
            after = page[-1].number
            left = [envelope for envelope in page if envelope.number not in answered]
            self._answer(changes, box, left, box.terminated_error())
        self._answer(changes, box, fresh, box.terminated_error())
        changes.cleared.append(uid)
        box.count = box.bytes = 0
        box.leased, box.repeated = {}, set()

    def _look_for_expired(self) -> None:
        done = asyncio.get_running_loop().create_future()
        # When the store has failed it is opened again, and this is looked for then.
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._controls.append((self._expire, done))
        if self._turning is None:
            self._schedule()

    async def _expire(self, changes: Changes) -> None:
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
            box.count -= 1
            box.bytes -= envelope.size
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
                self._add(changes, source, _error_answer(box, envelope, error))

    async def _start_over(
        self, error: Exception, asked: list[asyncio.Future[Any]]
    ) -> None:
        """Forget what was not stored: clients connect again and send it again."""
        if not isinstance(error, StorageError):
            logger.error("the broker failed", exc_info=error)
            error = StorageError(f"the broker failed: {error!r}")
        logger.error("all clients must connect again: %s", error)
        self._opened = False
        self._outgoing.clear()
        self.uploads.clear()
        self.dismiss(error)
        self._attendance.reset()
        for done in asked:
            if not done.done():
                done.set_exception(error)
        try:
            await self.open()
        except StorageError as problem:
            logger.error("trying again with the next message: %s", problem)


async def _nothing(changes: Changes) -> None:
    """Do nothing, in a turn of the broker."""


def _lease_change(uid: bytes, number: int, lease: int) -> Envelope:
    return Envelope(uid, b"", b"", 0, None, 0, number=number, lease=lease)


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
