"""Time is cut into turns, each of which writes one transaction.

Whatever arrives while a turn runs waits for the next, so that a burst of messages costs
one commit. A message is confirmed and delivered only after the commit that stored it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from academy.exception import AcademyError, StorageError
from academy.exchange.store import Changes, Envelope, Store

if TYPE_CHECKING:
    from academy.exchange.attachments import Attachments
    from academy.exchange.delivery import Delivery
    from academy.exchange.intake import Arrival, Intake
    from academy.exchange.mailbox import Session
    from academy.exchange.refusals import Refusal

logger = logging.getLogger(__name__)

Work = Callable[[Changes], Coroutine[Any, Any, Any]]
"""What is to happen in a turn, beside the taking of messages."""


class Turns:
    """Queues what arrives, and works it off turn by turn.

    Invariant: `turning` is the turn that runs or comes next. It is set whenever
    anything waits, and None when there is nothing to do.

    Args:
        store: what turns write to.
        intake: takes messages and receipts.
        delivery: hands over what was stored.
        attachments: which end after what their sessions have posted.
        load: loads everything from the store; called again where that has failed.
        fail: told that a turn was not stored, so that everybody has to connect again.

    Attributes:
        opened: whether everything is loaded.
    """

    def __init__(
        self,
        store: Store,
        intake: Intake,
        delivery: Delivery,
        attachments: Attachments,
        load: Callable[[], Coroutine[Any, Any, None]],
        fail: Callable[[StorageError], None],
    ) -> None:
        self.opened = False
        self.turning: asyncio.Task[None] | asyncio.Handle | None = None
        self._store = store
        self._intake = intake
        self._delivery = delivery
        self._attachments = attachments
        self._load = load
        self._fail = fail
        self._works: list[tuple[Work, asyncio.Future[Any]]] = []
        self._late_works: list[tuple[Work, asyncio.Future[Any]]] = []
        self._arrivals: list[Arrival] = []
        self._receipts: list[tuple[Session, int]] = []
        self._departures: list[Session] = []
        self._leaving: list[Session] = []  # those of the turn that runs
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- what arrives

    def post(self, session: Session, sequence: int, envelope: Envelope) -> None:
        """Take a message; it is confirmed or refused at the end of the turn."""
        self._arrivals.append((session, sequence, envelope))
        if self.turning is None:
            self._schedule()

    def acknowledge(self, session: Session, count: int) -> None:
        """Learn that the oldest `count` deliveries of a session were received."""
        self._receipts.append((session, count))
        if self.turning is None:
            self._schedule()

    def depart(self, session: Session) -> None:
        """End what a session has attached, after what it has posted."""
        self._departures.append(session)
        if self.turning is None:
            self._schedule()

    def soon(self, work: Work, *, after_arrivals: bool = False) -> asyncio.Future[Any]:
        """Have something done in the next turn; the result tells when it is stored."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue = self._late_works if after_arrivals else self._works
        queue.append((work, done))
        if self.turning is None:
            self._schedule()
        return done

    def wake(self) -> None:
        """Take a turn soon if there is something to do."""
        if self.turning is None and self._has_work():
            self._schedule()

    def _schedule(self) -> None:
        # Not at once: what else has arrived is to have a part in the transaction.
        loop = self._loop = asyncio.get_running_loop()
        self.turning = loop.call_soon(self._begin)

    def begin_in_this_loop(self) -> None:
        """Forget the turn of an event loop before this one, which never comes."""
        if self._loop is not asyncio.get_running_loop():
            self.turning = None

    async def settle(self) -> None:
        """Wait until nothing is left to do."""
        while (turning := self.turning) is not None:
            if isinstance(turning, asyncio.Task):
                await asyncio.wait([turning])
            else:
                turning.cancel()
                self._begin()

    # --- one turn

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
                self.turning = None
                return
            again = self._turns()
        self.turning = asyncio.get_running_loop().create_task(again)

    def _is_plain(self) -> bool:
        """Whether messages are all there is to do, as in nearly every turn."""
        return (
            bool(self._arrivals or self._receipts)
            and self.opened
            and not (
                self._works
                or self._late_works
                or self._departures
                or self._delivery.hungry
            )
        )

    def _plain_turn(self, commit: Callable[[Changes], None]) -> None:
        changes = Changes()
        arrivals, self._arrivals = self._arrivals, []
        receipts, self._receipts = self._receipts, []
        self._intake.take_receipts(changes, receipts)
        refused = self._intake.take_arrivals(changes, arrivals)
        if changes:
            self._intake.complete(changes, len(refused))
            commit(changes)
        self._conclude(arrivals, refused)

    async def _turns(self, failed: Exception | None = None) -> None:
        try:
            if failed is not None:
                await self._start_over(failed, [])
            while self._has_work():
                asked = [done for _, done in (*self._works, *self._late_works)]
                try:
                    await self._turn()
                except Exception as error:
                    await self._start_over(error, asked)
        finally:
            self.turning = None

    def _has_work(self) -> bool:
        return bool(
            self._arrivals
            or self._receipts
            or self._works
            or self._late_works
            or self._departures
            or self._delivery.hungry
        )

    async def _turn(self) -> None:
        changes = Changes()
        works, self._works = self._works, []
        late, self._late_works = self._late_works, []
        arrivals, self._arrivals = self._arrivals, []
        self._leaving, self._departures = self._departures, []
        answers: list[tuple[asyncio.Future[Any], AcademyError | None]] = []
        receipts, self._receipts = self._receipts, []
        if not self.opened:
            await self._load()
        self._intake.take_receipts(changes, receipts)
        for work, done in works:
            answers.append((done, await self._attempt(work, changes)))
        refused = self._intake.take_arrivals(changes, arrivals)
        for work, done in late:
            answers.append((done, await self._attempt(work, changes)))
        if changes:
            self._intake.complete(changes, len(refused))
            await self._store.commit(changes)
        for done, problem in answers:
            if done.done():
                continue
            if problem is None:
                done.set_result(None)
            else:
                done.set_exception(problem)
        self._conclude(arrivals, refused)
        if self._delivery.hungry:
            await self._delivery.catch_up()

    def _conclude(
        self, arrivals: list[Arrival], refused: list[tuple[Session, Refusal]]
    ) -> None:
        """Tell everybody what the turn has stored."""
        self._intake.confirm(arrivals, refused)
        self._delivery.send()
        while self._leaving:
            self._attachments.depart(self._leaving.pop())
        self._attachments.attendance.tell_all()

    async def _attempt(self, work: Work, changes: Changes) -> AcademyError | None:
        try:
            await work(changes)
        except StorageError:
            raise
        except AcademyError as error:
            return error
        return None

    async def _start_over(
        self, error: Exception, asked: list[asyncio.Future[Any]]
    ) -> None:
        """Forget what was not stored: clients connect again and send it again."""
        if not isinstance(error, StorageError):
            logger.error("the broker failed", exc_info=error)
            error = StorageError(f"the broker failed: {error!r}")
        logger.error("all clients must connect again: %s", error)
        self.opened = False
        self._delivery.reset()
        self._fail(error)
        # Of those who have left by themselves nothing is taken any more either.
        for session in (*self._leaving, *self._departures):
            self._attachments.depart(session)
        self._leaving, self._departures = [], []
        for done in asked:
            if not done.done():
                done.set_exception(error)
        try:
            await self._load()
        except StorageError as problem:
            logger.error("trying again with the next message: %s", problem)
