"""The rules of mailboxes, written once for every exchange.

This is what an exchange asks for; its parts are in the modules beside this one. `turns`
cut time into transactions, `intake` takes what comes, `delivery` hands it on,
`attachments` say to whom, and `answers` stand in for owners who are gone.

Nothing here opens a payload, and nothing here knows how a store stores.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from academy.exception import (
    AcademyError,
    BadEntityIdError,
    ForbiddenError,
    QuotaExceededError,
)
from academy.exchange.answers import Answers
from academy.exchange.attachments import Attachments
from academy.exchange.census import Census, Traffic, take_census
from academy.exchange.delivery import Delivery
from academy.exchange.expiry import Expiry
from academy.exchange.intake import Intake
from academy.exchange.large_messages import LargeMessages
from academy.exchange.mailbox import Consumer, Limits, Session
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.mailboxes import Mailboxes
from academy.exchange.store import RESPONSE, Changes, MailboxRecord, Store
from academy.exchange.turns import Turns
from academy.identifier import entity_id
from academy.scheduler.job import Place
from academy.stats import AgentStats


class Broker:
    """Keeps every rule of the exchange over one store.

    All calls come from one event loop. `open` first, `close` last.

    Attributes:
        bodies: of large messages, where the store keeps them.
        large: takes large messages.
        traffic: what it has done since it was made.
        post: takes a message (`Turns.post`).
        acknowledge: takes a receipt (`Turns.acknowledge`).
    """

    def __init__(self, store: Store, limits: Limits | None = None) -> None:
        self.bodies = store.bodies
        self._store = store
        self._sessions: dict[bytes, Session] = {}
        self._mailboxes = Mailboxes(limits or Limits())
        self._boxes = self._mailboxes.by_uid
        self._expiry = Expiry(self._look_for_expired)
        self.traffic = Traffic()
        self._delivery = Delivery(store, self.traffic)
        self._attachments = Attachments(self._delivery)
        self._intake = Intake(
            self._mailboxes,
            self._attachments,
            self._delivery,
            self._expiry,
            self.traffic,
            self._sessions,
        )
        self._answers = Answers(store, self._mailboxes, self._intake, self._expiry)
        self._turns = Turns(
            store,
            self._intake,
            self._delivery,
            self._attachments,
            self.open,
            self._failed,
        )
        self.large = LargeMessages(
            store.bodies, self._mailboxes, self._intake, self._turns
        )
        # As they are, since each message would pay for another call.
        self.post = self._turns.post
        self.acknowledge = self._turns.acknowledge

    async def open(self) -> None:
        """Load what the store holds."""
        contents = await self._store.open()
        self._mailboxes.load(contents)
        await self._intake.load(self._store, contents)
        terminated = [r.uid for r in contents.mailboxes if r.terminated]
        keep = self.limits.tombstone_lifetime
        await self._expiry.load(self._store, terminated, keep)
        self._answers.opened()
        self._turns.opened = True

    async def settle(self) -> None:
        """Wait until nothing is left to do."""
        await self._turns.settle()

    async def close(self) -> None:
        """Finish the work at hand and close the store. May be called twice."""
        await self.settle()
        self._expiry.stop()
        self._turns.opened = False
        self.large.uploads.clear()
        await self._store.close()

    @property
    def limits(self) -> Limits:
        """What it refuses."""
        return self._mailboxes.limits

    @property
    def is_idle(self) -> bool:
        """Whether nobody is connected and nothing is left to do."""
        return not self._sessions and self._turns.turning is None

    def dismiss(self, error: AcademyError) -> None:
        """Send all clients away; they may connect again, here or to another broker."""
        for session in list(self._sessions.values()):
            self.disconnect(session)
            # At once: what it has posted meanwhile may build on what was not stored.
            self._attachments.depart(session)
            session.consumer.reset(error)

    def _failed(self, error: AcademyError) -> None:
        self.large.uploads.clear()
        self.dismiss(error)
        self._attachments.attendance.reset()

    # --- sessions

    def connect(self, uid: bytes, consumer: Consumer, *, pops: bool = False) -> Session:
        """Begin a session, or take one over from a connection that was lost.

        Args:
            uid: of the session.
            consumer: its far end.
            pops: it cannot say what it holds. So a message counts as delivered once its
                receipt is acknowledged, not when it leaves.

        Raises:
            QuotaExceededError: as many are connected as may be.
        """
        self.check_room(uid)
        self._turns.begin_in_this_loop()
        old = self._sessions.get(uid)
        if old is not None:
            self.disconnect(old)
            old.consumer.reset(ForbiddenError("the session has connected anew"))
        session = self._sessions[uid] = Session(uid, consumer, self.limits, pops)
        self.large.uploads.connected(uid)
        for refusal in self._intake.refusals.of(uid):
            consumer.refuse(*refusal)
        return session

    def check_room(self, uid: bytes) -> None:
        """Refuse a session that is one too many.

        Raises:
            QuotaExceededError: as many are connected as may be.
        """
        most, used = self.limits.max_namespace_connections, len(self._sessions)
        if most and used >= most and uid not in self._sessions:
            raise QuotaExceededError("max_namespace_connections", most, used)

    def last_sequence(self, session: Session) -> int:
        """Return the last sequence number from a session; it may not be stored yet."""
        return self._intake.sequences.get(session.uid, 0)

    async def known(self, session: Session) -> tuple[int, int]:
        """Return a session's last sequence number and the largest of a message.

        Both are what is stored: at the beginning of a turn, nothing else counts. Who
        forgets what it has sent because of a number that is not would lose it.

        Raises:
            StorageError: there is no telling now; the session is over.
        """
        found = []

        async def work(_: Changes) -> None:
            found.append((self.last_sequence(session), self._intake.number))

        await self._turns.soon(work)
        return found[0]

    def disconnect(self, session: Session) -> None:
        """End a session's link; its mailboxes keep what was not settled.

        What the session has posted before is still taken.
        """
        if not session.open:
            return
        session.open = False
        self._attachments.attendance.forget(session)
        if self._sessions.get(session.uid) is session:
            del self._sessions[session.uid]
            self.large.uploads.disconnected(session.uid)
        if not session.attached:
            return
        self._turns.depart(session)

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
            self._attachments.detach(changes, session, uid, released)

        await self._turns.soon(work, after_arrivals=True)

    async def is_stored(self, uid: bytes, number: int) -> bool:
        """Whether a mailbox holds the message of a number."""
        found = await self._store.pending(uid, number - 1, 1)
        return bool(found) and found[0].number == number

    def heard(self, session: Session, sequence: int) -> None:
        """Learn that a session knows of every refusal up to a sequence number."""
        self._intake.refusals.heard(session.uid, sequence)

    # --- mailboxes

    async def register(self, records: Iterable[MailboxRecord]) -> None:
        """Make mailboxes, all or none; an id that exists stays as it is.

        Raises:
            ForbiddenError: it exists and was registered by somebody else.
            QuotaExceededError: the namespace would have too many.
        """
        records = list(records)

        async def work(changes: Changes) -> None:
            for box in self._mailboxes.register(changes, records):
                self._attachments.attendance.registered(box)

        await self._turns.soon(work)

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
            box = self._mailboxes.get_live(uid)
            if not session.open:
                raise ForbiddenError("the session is over")
            await self._attachments.attach(
                changes, session, box, incarnation, resume, frozenset(held), place
            )

        await self._turns.soon(work)

    def start(self, session: Session, uids: Iterable[bytes]) -> None:
        """Begin to deliver to mailboxes that a session has attached."""
        self._attachments.start(session, uids)
        self._turns.wake()

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
            self._mailboxes.bury(changes, box, reason)
            owner = box.session
            if owner is not None:
                self._attachments.let_go(owner, box)
                if uid != by:
                    owner.consumer.lost(uid, box.terminated_error())
            self._attachments.attendance.terminated(box)
            self._expiry.bury(uid, self.limits.tombstone_lifetime)
            await self._answers.answer_all(changes, box)

        await self._turns.soon(work, after_arrivals=True)

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
            record = self._mailboxes.get_live(uid).record
            others = set(record.groups) - {group}
            record.groups = tuple(sorted(others | {group} if shared else others))
            changes.mailboxes[uid] = record

        await self._turns.soon(work)

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
        requests = sum(not note & RESPONSE for note, *_ in box.leased.values())
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
            self._attachments.attendance.watch(session, uid, self._boxes.get(uid))
        self._attachments.attendance.tell_all()

    def unwatch(self, session: Session, uids: Iterable[bytes]) -> None:
        """Tell a session no more about these mailboxes."""
        self._attachments.attendance.unwatch(session, uids)

    async def census(self) -> Census:
        """Count the mailboxes, and what is in them."""
        return await take_census(self._boxes.values())

    async def check(self) -> None:
        """Open the store again where that has failed.

        Raises:
            StorageError: it fails again.
        """
        if not self._turns.opened:
            await self._turns.soon(_nothing)

    def discover(self, name: str, allow_subclasses: bool) -> list[MailboxRecord]:
        """Return the live agents of a qualified class name."""
        return [
            record
            for box in self._boxes.values()
            if (record := box.record).agent
            and not record.terminated
            and name in (record.classes if allow_subclasses else record.classes[:1])
        ]

    def _look_for_expired(self) -> None:
        looked = self._turns.soon(self._answers.expire)
        # When the store has failed it is opened again, and this is looked for then.
        looked.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _nothing(changes: Changes) -> None:
    """Do nothing, in a turn of the broker."""
