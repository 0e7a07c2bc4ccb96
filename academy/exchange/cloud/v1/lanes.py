"""Messages on their way to an exchange that takes one at a time (protocol v1)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from academy.exception import MessageTooLargeError
from academy.exchange.cloud.v1.messages import write_message
from academy.identifier import EntityId
from academy.message import ActionResponse, Message, UserErrorResponse
from academy.serialize import Payload

Put = Callable[[EntityId, str], Awaitable[None]]


@dataclass(slots=True)
class Unsent:
    """A message that the exchange does not have yet.

    Attributes:
        stored: done when it has; None if nobody waits for that.
    """

    message: Message
    text: str
    stored: asyncio.Future[None] | None

    def done(self, error: Exception | None = None) -> None:
        """Tell who waits."""
        if self.stored is None or self.stored.done():
            return
        if error is None:
            self.stored.set_result(None)
        else:
            self.stored.set_exception(error)
            self.stored.exception()  # who waited may be gone: no complaint about it


class Lanes:
    """Sends messages, those to one destination in order, one after the other.

    Invariant: `_lanes` holds, for each destination, what is not stored yet, oldest
    first, and a task works on it.

    Args:
        put: sends one message, given its destination and its text.
        refused: told of a message that was not taken and that nobody waits for.
    """

    def __init__(self, put: Put, refused: Callable[[Message, Exception], None]) -> None:
        self._put = put
        self._refused = refused
        self._lanes: dict[EntityId, deque[Unsent]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, message: Message, stored: asyncio.Future[None] | None) -> None:
        """Send a message after those before it.

        Raises:
            Exception: its body does not serialize.
        """
        unsent = Unsent(message, write_message(message), stored)
        dest = message.dest
        if (lane := self._lanes.get(dest)) is not None:
            lane.append(unsent)
            return
        lane = self._lanes[dest] = deque([unsent])
        task = asyncio.get_running_loop().create_task(self._work_off(dest, lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work_off(self, dest: EntityId, lane: deque[Unsent]) -> None:
        try:
            while lane:
                try:
                    await self._put(dest, lane[0].text)
                except Exception as error:
                    self._fail(lane, error)
                else:
                    lane.popleft().done()
        finally:
            del self._lanes[dest]

    def _fail(self, lane: deque[Unsent], error: Exception) -> None:
        unsent = lane.popleft()
        message, body = unsent.message, unsent.message.get_body()
        if isinstance(error, MessageTooLargeError) and isinstance(body, ActionResponse):
            # Its caller is still waiting.
            failure = UserErrorResponse(Payload(body.result.strategy, error))
            instead = Message(
                message.src, message.dest, message.tag, failure, label=message.label
            )
            lane.appendleft(Unsent(instead, write_message(instead), unsent.stored))
        elif unsent.stored is None:
            self._refused(message, error)
        else:
            unsent.done(error)

    async def drained(self) -> None:
        """Wait until everything is stored or was refused."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self, error: Exception) -> None:
        """Send nothing more; whoever waits gets the error."""
        left = [unsent for lane in self._lanes.values() for unsent in lane]
        for task in self._tasks:
            task.cancel()
        await self.drained()
        for unsent in left:
            unsent.done(error)
