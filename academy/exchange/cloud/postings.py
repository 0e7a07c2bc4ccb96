"""Messages that are too large for one record, and what waits behind them."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from academy.exception import AcademyError, MessageTooLargeError, StorageError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.pump import Outgoing, Pump
from academy.exchange.directory import address_flags

if TYPE_CHECKING:
    from academy.exchange.inbox import Inbox
    from academy.message import Message
    from academy.serialize import Part

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0

Pair = tuple[bytes, bytes]
Begin = Callable[[Any], None]
Ask = Callable[..., Awaitable[Any]]
"""Calls the exchange: method, what is told the result, arguments."""


class End(Enum):
    """How a transfer ended, if not by an error."""

    SENT = "sent"
    CUT = "cut"
    WITHDRAWN = "withdrawn"


@dataclass(slots=True, eq=False)
class Posting:
    """A message on its way to an exchange, in the memory of its owner.

    Attributes:
        parts: the encoded message; arrays are referred to, not copied.
        size: their bytes.
        number: of the transfer.
        ended: done when the transfer has ended, and how.
        withdrawn: whether nobody waits for the answer any more.
        starts: offset of each of the parts.
        posted: whether its message was sent behind it.
    """

    message: Message
    inbox: Inbox
    parts: list[Part]
    size: int
    stored: asyncio.Future[None] | None
    number: int
    ended: asyncio.Future[End | Exception] | None = None
    withdrawn: bool = False
    starts: list[int] = field(default_factory=list)
    posted: bool = False

    @property
    def pair(self) -> Pair:
        """Between whom order is kept."""
        return self.message.src.uid.bytes, self.message.dest.uid.bytes

    async def read(self, offset: int, size: int) -> list[Part]:
        """Return bytes of the message, without copying them."""
        found: list[Part] = []
        for start, part in zip(self.starts, self.parts, strict=True):
            first = max(offset - start, 0)
            last = min(offset + size - start, len(part))
            if first < last:
                found.append(memoryview(part)[first:last])
        return found

    def offer(self) -> dict[str, Any]:
        """Describe the message in the words of the call."""
        message = self.message
        return {
            "as": message.src.uid.hex,
            "dest": message.dest.uid.hex,
            "tag": message.tag.hex(),
            "flags": address_flags(message),
            "answers": message.lease,
            "transfer": self.number,
            "size": self.size,
        }

    def end(self, how: End | Exception) -> None:
        """Wake whoever waits for the end of the transfer."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(how)

    def refused(self, error: Exception) -> None:
        """Tell the sender that the exchange does not take the message."""
        if self.stored is None:
            self.inbox.refused(self.message, error)
        elif not self.stored.done():
            self.stored.set_exception(error)


class Sender(Protocol):
    """What a link does for postings."""

    async def call(self, method: str, then: Begin, /, **arguments: Any) -> Any:
        """Ask the exchange, through this connection or a later one."""

    def put(self, posting: Posting) -> None:
        """Send a small message."""

    def put_large(self, posting: Posting) -> None:
        """Send a message whose body the exchange has."""

    def put_hollow(self, posting: Posting) -> None:
        """Send a response that nobody waits for: all it does is settle its request."""

    def give_up(self, posting: Posting, error: Exception) -> None:
        """Send a message not again that was posted before."""


class Postings:
    """Sends large messages, and keeps the order of what is behind them.

    Between two mailboxes order is kept: what is posted behind a large message waits for
    it, here. Everything else overtakes it.

    Invariants: `lanes` has what waits, by pair, and the first of each lane is at work;
    `_begun` has those whose parts are being sent through the connection of `_pump`.
    """

    def __init__(self, sender: Sender) -> None:
        self.lanes: dict[Pair, deque[Posting]] = {}
        self.inline = self.limit = 0
        self.progress = 0
        self._sender = sender
        self._numbers = itertools.count(protocol.UPLOADS + 1)
        self._tasks: dict[Pair, asyncio.Task[None]] = {}
        self._begun: dict[int, Posting] = {}
        self._pump: Pump | None = None

    def take(
        self,
        message: Message,
        inbox: Inbox,
        parts: list[Part],
        size: int,
        stored: asyncio.Future[None] | None,
    ) -> bool:
        """Take a message that is large, or that has to wait behind one.

        Raises:
            MessageTooLargeError: it is above the exchange's limit.
        """
        if size > self.limit:
            raise MessageTooLargeError(size, self.limit)
        posting = Posting(message, inbox, parts, size, stored, next(self._numbers))
        lane = self.lanes.get(posting.pair)
        if lane is None:
            if size <= self.inline:
                return False
            lane = self.lanes[posting.pair] = deque()
            work = self._work_off(posting.pair, lane)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks[posting.pair] = task
        if size <= self.inline:
            posting.parts = [b"".join(parts)]  # their owner may change them meanwhile
        posting.starts = list(itertools.accumulate(map(len, posting.parts), initial=0))
        posting.starts.pop()
        lane.append(posting)
        return True

    def withdraw(self, message: Message) -> None:
        """Send no more of a message whose answer nobody waits for."""
        pair = message.src.uid.bytes, message.dest.uid.bytes
        for posting in self.lanes.get(pair, ()):
            if posting.message is message:
                posting.withdrawn = True
                posting.end(End.WITHDRAWN)

    def waiting(self, source: bytes | None = None) -> Iterable[Message]:
        """Return what was not sent yet, of one mailbox or of all."""
        for (src, _), lane in self.lanes.items():
            if source is None or src == source:
                for posting in lane:
                    yield posting.message

    async def drained(self, source: bytes | None, patience: float) -> bool:
        """Wait until nothing waits; false if nothing moves for so many seconds."""
        while tasks := [
            task
            for (src, _), task in self._tasks.items()
            if source is None or src == source
        ]:
            before = self.progress
            _, pending = await asyncio.wait(tasks, timeout=patience)
            if pending and self.progress == before:
                return False
        return True

    def fail(self, error: AcademyError) -> None:
        """Give everything up."""
        self.disconnected()
        for task in self._tasks.values():
            task.cancel()
        lanes, self.lanes = self.lanes, {}
        for lane in lanes.values():
            for posting in lane:
                if posting.stored is not None and not posting.stored.done():
                    posting.stored.set_exception(error)
                    posting.stored.exception()  # who waited may be gone

    # --- one lane

    async def _work_off(self, pair: Pair, lane: deque[Posting]) -> None:
        try:
            while lane:
                posting = lane[0]
                try:
                    if posting.size > self.inline:
                        await self._transfer(posting)
                    elif not posting.withdrawn:
                        self._sender.put(posting)
                except AcademyError as error:
                    posting.refused(error)
                lane.popleft()
        finally:
            self._tasks.pop(pair, None)
            self.lanes.pop(pair, None)

    async def _transfer(self, posting: Posting) -> None:
        pause = _FIRST_PAUSE
        while not posting.withdrawn:
            end = await self._send(posting, self._sender.call)
            if end is End.SENT:
                return
            if isinstance(end, StorageError):
                # As with all that it cannot store: until there is room again.
                logger.warning("%r waits: %s", posting.message, end)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            elif isinstance(end, Exception):
                raise end
        await self._sender.call("withdraw", _ignore, transfer=posting.number)

    async def _send(self, posting: Posting, ask: Ask) -> End | Exception:
        """Send what the exchange does not have of a body; return how that ended."""
        ended: asyncio.Future[End | Exception]
        ended = posting.ended = asyncio.get_running_loop().create_future()
        try:
            begin = functools.partial(self._begin, posting)
            await ask("offer", begin, **posting.offer())
            return await ended
        except StorageError as error:
            return error
        finally:
            self._stop(posting)

    def _begin(self, posting: Posting, offset: int | None) -> None:
        if posting.withdrawn:
            return
        if offset is None:
            self._sender.put_hollow(posting)
            posting.end(End.SENT)
        elif offset == posting.size:
            self._finish(posting)
        elif self._pump is not None:
            self._begun[posting.number] = posting
            body = Outgoing(
                *(posting.number, posting.size, offset, posting.read, posting.end)
            )
            self._pump.start(body)

    def _finish(self, posting: Posting) -> None:
        # At once, so that no other connection comes between the body and its message.
        if not posting.posted:
            posting.posted = True
            self._sender.put_large(posting)
        posting.end(End.SENT)

    def _stop(self, posting: Posting) -> None:
        if self._begun.pop(posting.number, None) is not None and self._pump is not None:
            self._pump.stop(posting.number)

    # --- connections come and go

    def connected(self, pump: Pump, limit: int, inline: int) -> None:
        """Use a connection; its exchange takes messages up to these sizes."""
        self._pump, self.limit, self.inline = pump, limit, min(limit, inline)

    def disconnected(self) -> None:
        """Send nothing until there is a connection again."""
        self._pump = None
        for posting in list(self._begun.values()):
            posting.end(End.CUT)

    async def send_again(self, postings: Iterable[Posting], ask: Ask) -> None:
        """Send bodies whose message was posted, if the exchange has lost them.

        What was posted after them waits meanwhile, since the exchange takes the
        messages of a session in the order of their numbers. It knows the bodies unless
        it was killed between the last part and its commit.
        """
        for posting in postings:
            pause = _FIRST_PAUSE
            while True:
                try:
                    end = await self._send(posting, ask)
                except AcademyError as error:
                    end = error
                if not isinstance(end, StorageError):
                    break
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            if isinstance(end, Exception):
                self._sender.give_up(posting, end)

    # --- what the exchange says

    def taken(self, number: int, offset: int) -> None:
        """Learn how much of a body it has taken."""
        posting = self._begun.get(number)
        if posting is None or self._pump is None:
            return
        self.progress += 1
        self._pump.taken(number, offset)
        if offset == posting.size and not posting.withdrawn:
            self._finish(posting)

    def dropped(self, number: int, error: Exception) -> None:
        """Learn that it has given a body up."""
        posting = self._begun.get(number)
        if posting is not None:
            posting.end(error)


def _ignore(_: Any) -> None:
    """Wait for an answer that says nothing."""
