"""The broker's list of who is at which mailbox, and of who wants to know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from academy.exchange.presence import Presence, PresenceState

if TYPE_CHECKING:
    from academy.exchange.mailbox import Mailbox, Session
    from academy.scheduler.job import Place


class Attendance:
    """Keeps where owners of mailboxes are, and tells sessions that watch them.

    What is new is gathered and told at the end of a broker's turn: a thousand agents
    that go together are one batch, and who comes back at once was never gone.

    Invariants: `_now` has the mailboxes that were attached since the broker was opened
    and are not terminated. `_watchers` and `Session.watched` say the same.
    """

    __slots__ = ("_news", "_now", "_watchers")

    def __init__(self) -> None:
        self._now: dict[bytes, Presence] = {}
        self._watchers: dict[bytes, set[Session]] = {}
        self._news: dict[Session, dict[bytes, Presence]] = {}

    def of(self, box: Mailbox | None) -> Presence:
        """Return where the owner of a mailbox is."""
        if box is None:
            return Presence(PresenceState.MISSING)
        record = box.record
        if record.terminated:
            last = self._now.get(record.uid)
            place = None if last is None else last.place
            return Presence(
                PresenceState.TERMINATED, record.epoch, place, record.reason
            )
        if (now := self._now.get(record.uid)) is not None:
            return now
        # It attached to an exchange that has ended: whoever lives comes back.
        state = PresenceState.GONE if record.epoch else PresenceState.REGISTERED
        return Presence(state, record.epoch)

    # --- what happens to mailboxes

    def registered(self, box: Mailbox) -> None:
        """Note a new mailbox, which may be watched already."""
        if box.record.uid in self._watchers:
            self._tell(box.record.uid, self.of(box))

    def attached(self, box: Mailbox, place: Place | None) -> None:
        """Note that the owner has attached."""
        now = Presence(PresenceState.ATTACHED, box.record.epoch, place)
        self._note(box.record.uid, now)

    def left(self, box: Mailbox, *, in_order: bool) -> None:
        """Note that the owner has detached, or that its connection is lost."""
        state = PresenceState.DETACHED if in_order else PresenceState.GONE
        place = self.of(box).place
        self._note(box.record.uid, Presence(state, box.record.epoch, place))

    def terminated(self, box: Mailbox) -> None:
        """Note that the owner is gone for good; nobody need watch it any more."""
        uid = box.record.uid
        self._tell(uid, self.of(box))
        self._now.pop(uid, None)
        for session in self._watchers.pop(uid, ()):
            session.watched.discard(uid)

    def _note(self, uid: bytes, now: Presence) -> None:
        self._now[uid] = now
        self._tell(uid, now)

    def _tell(self, uid: bytes, now: Presence) -> None:
        for session in self._watchers.get(uid, ()):
            self._news.setdefault(session, {})[uid] = now

    # --- who wants to know

    def watch(self, session: Session, uid: bytes, box: Mailbox | None) -> None:
        """Tell a session where an owner is, and from now on every change of it."""
        now = self.of(box)
        self._news.setdefault(session, {})[uid] = now
        if now.state is not PresenceState.TERMINATED:
            session.watched.add(uid)
            self._watchers.setdefault(uid, set()).add(session)

    def unwatch(self, session: Session, uids: Iterable[bytes]) -> None:
        """Tell a session no more about these."""
        news = self._news.get(session, {})
        for uid in uids:
            news.pop(uid, None)
            session.watched.discard(uid)
            watchers = self._watchers.get(uid)
            if watchers is not None:
                watchers.discard(session)
                if not watchers:
                    del self._watchers[uid]

    def forget(self, session: Session) -> None:
        """Tell a session nothing more: its connection has ended."""
        self.unwatch(session, list(session.watched))
        self._news.pop(session, None)

    def tell_all(self) -> None:
        """Hand what is new to those who watch."""
        if not self._news:  # as in nearly every turn
            return
        news, self._news = self._news, {}
        for session, changes in news.items():
            if session.open and changes:
                session.consumer.notice(changes)

    def reset(self) -> None:
        """Forget everything: all sessions have ended."""
        self._now.clear()
        self._watchers.clear()
        self._news.clear()
