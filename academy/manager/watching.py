"""One run of an agent on an executor, and all who can tell that it is over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from academy.exchange.presence import Presence, PresenceState
from academy.executors.futures import end_of
from academy.failure import AgentLostError
from academy.manager import losses
from academy.manager.queued import Queues
from academy.manager.sightings import Sightings
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState, Place
from academy.scheduler.monitor import monitor

if TYPE_CHECKING:
    from academy.identifier import AgentId

logger = logging.getLogger("academy.manager")

RECONNECT_GRACE = 1.5
"""Seconds that an agent without connection has before anybody asks about its job.

A client tries again at once, so that a cut connection is back in less.
"""

LAST_WORDS = 1.0
"""Seconds that an executor has to tell the end of a run whose job is over."""

LONG_LAST_WORDS = 5.0
"""The same, if the agent has ended in order: then there is an outcome to fetch."""

LOST_AFTER = 3600.0
"""Seconds; see `Manager`. An agent itself gives its exchange up after as long.

Time alone is a poor witness: an agent that computes without `await` looks like one that
is dead, and to take it for dead costs its state.
"""


@dataclass
class Watching:
    """What the runs of one manager share.

    Attributes:
        sightings: tells where agents are.
        queues: looks after runs that have not begun.
        lost_after: seconds without connection after which an agent counts as lost,
            if nobody can tell whether its process lives.
        abandoned: futures of runs that were lost, which their executors may not know.
    """

    sightings: Sightings
    queues: Queues
    lost_after: float
    abandoned: set[Future[Any]]

    async def close(self) -> None:
        """Watch nobody any more."""
        await self.sightings.close()
        await self.queues.close()


class Run:
    """One run of an agent, from its submission to its end, whoever tells it first.

    The executor's future tells it, and takes its time if a node is dead. The exchange
    tells at once that the agent's connection is gone; then the scheduler is asked, and
    a job that is over ends the run.

    Attributes:
        place: where the agent is or was; None as long as it has not come.
    """

    def __init__(
        self,
        agent_id: AgentId[Any],
        executor_name: str,
        executor: Executor,
        future: Future[Any],
        watching: Watching,
        is_stopping: Callable[[], bool],
    ) -> None:
        self.agent_id = agent_id
        self.executor_name = executor_name
        self.executor = executor
        self.future = future
        self.place: Place | None = None
        self._watching = watching
        self._is_stopping = is_stopping
        latest = watching.sightings.of(agent_id)
        self._epoch_before = 0 if latest is None else latest.epoch
        self._told_before = latest is not None
        self._first_seen: datetime | None = None
        self._state = PresenceState.REGISTERED
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._unwatch: Callable[[], None] | None = None
        self._finding: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[Exception | None] = (
            asyncio.get_running_loop().create_future()
        )

    async def end(self) -> None:
        """Wait until the run has ended.

        Raises:
            AgentLostError: it was lost; says of what, as well as can be known.
            Exception: what the agent failed of.
        """
        ended = end_of(self.future)
        watching = self._watching
        watching.queues.add(self)
        watching.sightings.follow(self.agent_id, self)
        try:
            await asyncio.wait((ended, self._lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.queues.discard(self)
            self._rest()
        if not self.future.done():
            self._abandon()
            if (error := self._lost.result()) is not None:
                raise error
            return
        try:
            self.future.result()
        except Exception as error:
            if self.future.cancelled():
                raise
            cause = await losses.explain(
                error,
                self.place,
                self.executor,
                self.future,
                in_order=self._state is not PresenceState.GONE,
            )
            if cause is error:
                raise
            raise cause from error

    def _abandon(self) -> None:
        future, abandoned = self.future, self._watching.abandoned
        abandoned.add(future)
        future.add_done_callback(abandoned.discard)
        # Whatever is left of it holds a place.
        self._watching.queues.cancel(self.executor, future)

    def lose(self, error: Exception | None) -> None:
        """End the run with an error, or as a success, if it has not ended yet."""
        if not self._lost.done() and not self.future.done():
            self._lost.set_result(error)

    async def job(self) -> JobInfo | None:
        """Describe the job that the agent is in, or waits for."""
        return await losses.job_of(self.place, self.executor, self.future)

    # --- what the exchange tells

    def noticed(self, presence: Presence) -> None:
        """Learn what the exchange tells of the agent."""
        state, epoch = presence.state, presence.epoch
        if not self._told_before:
            # The first that is told is what was before this run, unless it is here.
            self._told_before = True
            if state is not PresenceState.ATTACHED:
                self._epoch_before = epoch
        if epoch <= self._epoch_before and state is not PresenceState.TERMINATED:
            return
        self._state = state
        if state is PresenceState.ATTACHED:
            if presence.place is not None:
                self.place = presence.place
            if self._first_seen is None:
                self._first_seen = datetime.now(UTC)
                self._watching.queues.discard(self)
                logger.info("%s runs %s", self.agent_id, _words(self.place))
            self._rest()
        elif self._first_seen is not None and self._unwatch is None:
            logger.info("%s is %s", self.agent_id, state.value.lower())
            self._after(RECONNECT_GRACE, "look", self._look)

    # --- what became of its job

    def _look(self) -> None:
        place = self.place
        if place is None or not place.job_id:
            self._nobody_knows()
            return
        loop = asyncio.get_running_loop()

        def told(info: JobInfo) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._job_is, info)

        try:
            self._unwatch = monitor().watch(place.scheduler, place.job_id, told)
        except (ValueError, RuntimeError) as error:
            logger.debug("nobody tells about job %s: %s", place.job_id, error)
            self._nobody_knows()
        else:
            monitor().look_now(place.scheduler, place.job_id)

    def _job_is(self, info: JobInfo) -> None:
        if self._unwatch is None or self._finding is not None:
            return  # it has come back meanwhile
        place = self.place
        assert place is not None
        if info.state is JobState.UNKNOWN:
            self._nobody_knows()
            return
        in_order = self._state is not PresenceState.GONE
        again = losses.requeued(info, place, in_order=in_order, seen=self._first_seen)
        if again is not None and losses.resumes(self.executor):
            self._begin_anew(again)
            return
        if not info.state.is_over and again is None:
            self._cancel("lost")  # the process may live, and its executor will tell
            return
        wait = LONG_LAST_WORDS if in_order else LAST_WORDS
        self._after(wait, "find", lambda: self._find(info, again))

    def _begin_anew(self, why: AgentLostError) -> None:
        """Wait for the agent as for one that has not begun."""
        if self._first_seen is not None:
            logger.warning("%s begins anew: %s", self.agent_id, why)
            self._first_seen = None
            self._watching.queues.add(self)

    def _find(self, info: JobInfo, again: AgentLostError | None) -> None:
        self._finding = asyncio.create_task(self._find_cause(info, again))

    async def _find_cause(self, info: JobInfo, again: AgentLostError | None) -> None:
        assert self.place is not None
        host = self.place.host
        cause: Exception | None = again
        if self._is_stopping() and self._state is not PresenceState.GONE:
            cause = None  # it has ended as it was asked to
        elif cause is None:
            cause = await losses.in_thread(
                lambda: cause_of(info, host=host, started=True)
            ) or AgentLostError(info.job_id, host, f"its job is {info.state.value}")
        self.lose(cause)

    # --- if nobody can tell

    def _nobody_knows(self) -> None:
        if self._state is PresenceState.GONE:
            self._after(self._watching.lost_after, "lost", self._is_lost)

    def _is_lost(self) -> None:
        place = self.place
        assert place is not None
        if _lives_here(place):
            self._after(self._watching.lost_after, "lost", self._is_lost)
            return
        reason = (
            f"it has had no connection to its exchange for "
            f"{self._watching.lost_after:.0f} s, and nobody can tell whether it lives"
        )
        self.lose(AgentLostError(place.job_id, place.host, reason))

    # --- timers

    def _after(self, delay: float, name: str, then: Callable[[], None]) -> None:
        if name in self._timers:
            return

        def due() -> None:
            del self._timers[name]
            then()

        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(delay, due)

    def _cancel(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _rest(self) -> None:
        """Ask nobody any more: the agent is there, or the run is over."""
        for name in list(self._timers):
            self._cancel(name)
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._finding is not None:
            self._finding.cancel()
            self._finding = None


def _words(place: Place | None) -> str:
    if place is None:
        return "somewhere"
    job = f" in job {place.job_id}" if place.job_id else ""
    return f"on {place.host}{job}, process {place.pid}"


def _lives_here(place: Place) -> bool:
    if place.host != socket.gethostname():
        return False
    try:
        os.kill(place.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
