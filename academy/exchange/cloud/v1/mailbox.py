"""A mailbox whose owner asks for its messages over HTTP, as a consumer of the broker.

Protocol v1 has neither incarnations nor leases. So the server keeps the lease: a
message counts as received once it was written to the owner's connection, and a request
is settled by its answer, as everywhere. What a v1 client has received does not come to
it again, whatever happens: nobody could say whether it still works on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from academy.exception import (
    AcademyError,
    MessageTooLargeError,
    RequestsNotServedError,
    StorageError,
    StreamsUnsupportedError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud.v1.messages import write_message
from academy.exchange.directory import address_flags
from academy.exchange.presence import Presence
from academy.exchange.store import FROM_AGENT, LARGE, RESPONSE, TO_AGENT, Envelope
from academy.exchange.store.bodies import Body
from academy.identifier import entity_id
from academy.message import (
    AcademyErrorResponse,
    Message,
    UserErrorResponse,
    encode_body,
)
from academy.serialize import PICKLE, Payload

logger = logging.getLogger(__name__)

REMEMBERED = 4096
"""Latest requests of an owner that are known again when they come twice."""
LARGEST = 100_000_000
"""Bytes of a message that is put into JSON, all of it in memory."""
CATCH_UP_PATIENCE = 5.0
"""Seconds that an answer may wait for its request to be read from the store."""

Key = tuple[bytes, bytes]


@dataclass(slots=True)
class Posted:
    """A request that an owner has sent.

    Attributes:
        label: what v1 clients find the caller by; every answer repeats it.
        stored: done when it is stored or was refused.
    """

    label: UUID | None
    stored: asyncio.Future[None]


class V1Mailbox:
    """Holds a broker's session for one mailbox while its owner comes and goes.

    Invariants: `_queue` holds the deliveries that the owner has not received, oldest
    first, and they are the last that the session has in flight. `_requests` has the
    number of each request that was delivered and not answered. `error` is set when
    the mailbox is no longer held here.
    """

    def __init__(self, broker: Broker, uid: bytes) -> None:
        self.uid = uid
        self.users = 0
        self.last_used = asyncio.get_running_loop().time()
        self.error: AcademyError | None = None
        self.closing: asyncio.Task[None] | None = None
        self._broker = broker
        self._queue: deque[Envelope] = deque()
        self._requests: dict[Key, int] = {}
        self._posted: dict[Key, Posted] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._reader: Reader | None = None
        self._arrived = asyncio.Event()
        # The same after each restart, so that the store keeps one row of it.
        session = hashlib.sha256(b"academy v1" + uid).digest()[:16]
        self._session = broker.connect(session, self, pops=True)
        self._sequence = broker.last_sequence(self._session)
        self.opened = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        try:
            await self._broker.attach(self._session, self.uid, os.urandom(16))
            self._broker.start(self._session, [self.uid])
        except AcademyError as error:
            self._end(error)
            self._broker.disconnect(self._session)
            raise

    def close(self) -> asyncio.Task[None]:
        """Let go of the mailbox; what was not received is for whoever comes next."""
        if self.closing is None:
            self.closing = asyncio.get_running_loop().create_task(self._close())
        return self.closing

    async def _close(self) -> None:
        self._end(StorageError("the exchange has let go of the mailbox: try again"))
        await asyncio.wait([self.opened])
        try:
            await self._broker.detach(self._session, self.uid)
        finally:
            self._broker.disconnect(self._session)

    def _end(self, error: AcademyError) -> None:
        if self.error is not None:
            return
        self.error = error
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # who waited may be gone: no complaint about it
        self._waiting.clear()
        self._queue.clear()
        self._arrived.set()
        if self._reader is not None:
            self._reader.wake.set()

    # --- what the owner sends

    async def post(self, message: Message) -> None:
        """Send a message; a request that comes again is not sent again.

        Raises:
            AcademyError: the exchange refuses it.
        """
        key = message.dest.uid.bytes, message.tag
        if message.is_response():
            stored = self._put(message, await self._number_of(key))
        elif (known := self._posted.get(key)) is not None:
            stored = known.stored
        else:
            stored = self._put(message, 0)
            self._posted[key] = Posted(message.label, stored)
            if len(self._posted) > REMEMBERED:
                del self._posted[next(iter(self._posted))]
        await asyncio.wait([stored])
        if stored.exception() is not None:
            self._posted.pop(key, None)
        stored.result()

    def _put(self, message: Message, answers: int) -> asyncio.Future[None]:
        if self.error is not None:
            raise self.error
        payload = b"".join(encode_body(message))
        envelope = Envelope(
            message.dest.uid.bytes,
            self.uid,
            message.tag,
            address_flags(message),
            payload,
            len(payload),
            answers,
        )
        self._sequence += 1
        stored = asyncio.get_running_loop().create_future()
        self._waiting[self._sequence] = stored
        self._broker.post(self._session, self._sequence, envelope)
        return stored

    async def _number_of(self, key: Key) -> int:
        """Return the number of the request that an answer is for; 0 for none.

        After a restart of the exchange, requests that the owner works on are read from
        the store again.
        """
        try:
            async with asyncio.timeout(CATCH_UP_PATIENCE):
                while key not in self._requests and self._is_behind():
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise StorageError("the mailbox is still being read: try again") from None
        return self._requests.pop(key, 0)

    def _is_behind(self) -> bool:
        mailbox = self._session.attached.get(self.uid)
        return mailbox is not None and mailbox.behind

    # --- what the owner receives

    def read(self) -> Reader:
        """Begin to read; who has read before is told to stop."""
        old, self._reader = self._reader, Reader(self)
        if old is not None:
            old.wake.set()
        return self._reader

    def is_reading(self, reader: Reader) -> bool:
        """Whether this reader is still the one to read."""
        return self._reader is reader and self.error is None

    def front(self) -> Envelope | None:
        """Return the oldest message that was not received."""
        queue = self._queue
        while queue and _was_received(queue[0]):
            self.received(queue[0])
        return queue[0] if queue else None

    def received(self, envelope: Envelope) -> None:
        """Learn that the oldest message has reached the owner."""
        if self._queue and self._queue[0] is envelope:
            self._queue.popleft()
            self._broker.acknowledge(self._session, 1)

    async def text(self, envelope: Envelope) -> str | None:
        """Write the oldest message as v1 does; None drops it, since it is malformed.

        Raises:
            StorageError: its body cannot be read.
        """
        try:
            if envelope.size > LARGEST:
                return self._too_large(envelope)
            payload = envelope.payload
            if envelope.flags & LARGE:
                key, size = Body.unpacked(payload)
                payload = await self._broker.bodies.read(key, 0, size)
            return write_message(self._message(envelope, payload))
        except (ValueError, RecursionError) as error:
            logger.error("dropped a malformed message of %s: %s", self.uid.hex(), error)
            self.received(envelope)
            return None
        except StreamsUnsupportedError as error:
            # Its owner would not know what it is, and its sender waits.
            self.received(envelope)
            if not envelope.flags & RESPONSE:
                number = self._requests.pop((envelope.src, envelope.tag), 0)
                body = AcademyErrorResponse.of(RequestsNotServedError(str(error)))
                assert body is not None
                sent = self._message(envelope, None)
                self._put(Message(sent.dest, sent.src, sent.tag, body), number)
            return None

    def _too_large(self, envelope: Envelope) -> str | None:
        """Tell whoever waits for an answer that v1 cannot carry a message."""
        error = MessageTooLargeError(envelope.size, LARGEST)
        body = UserErrorResponse(Payload(PICKLE, error))
        sent = self._message(envelope, None)
        if envelope.flags & RESPONSE:
            label = self._label(envelope)
            message = Message(sent.src, sent.dest, sent.tag, body, label=label)
            return write_message(message)
        self._put(Message(sent.dest, sent.src, sent.tag, body), envelope.number)
        self._requests.pop((envelope.src, envelope.tag), None)
        self.received(envelope)
        return None

    def _label(self, envelope: Envelope) -> UUID | None:
        posted = self._posted.get((envelope.src, envelope.tag))
        return None if posted is None else posted.label

    def _message(self, envelope: Envelope, payload: bytes | None) -> Message:
        flags = envelope.flags
        message = Message(
            entity_id(bool(flags & FROM_AGENT), envelope.src),
            entity_id(bool(flags & TO_AGENT), envelope.dest),
            envelope.tag,
            data=None if payload is None else memoryview(payload),
        )
        if payload is None:
            return message
        message.get_body()
        if flags & RESPONSE and message.label is None:
            message.label = self._label(envelope)
        return message

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        if self.error is not None:
            return
        if not envelope.flags & RESPONSE:
            self._requests[envelope.src, envelope.tag] = envelope.number
            self._arrived.set()
        self._queue.append(envelope)

    def delivered(self) -> None:
        if self.front() is not None and self._reader is not None:
            self._reader.wake.set()

    def confirm(self, sequence: int) -> None:
        for number in [n for n in self._waiting if n <= sequence]:
            future = self._waiting.pop(number)
            if not future.done():
                future.set_result(None)

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        future = self._waiting.pop(sequence, None)
        if future is None:
            return  # its sender has been told to try again, when the exchange ended
        self._broker.heard(self._session, sequence)
        if not future.done():
            future.set_exception(error)
            future.exception()

    def lost(self, uid: bytes, error: AcademyError) -> None:
        self._end(error)
        self._broker.disconnect(self._session)

    def reset(self, error: AcademyError) -> None:
        self._end(StorageError(str(error)))

    def notice(self, changes: Mapping[bytes, Presence]) -> None:
        pass  # clients of protocol v1 watch nobody


class Reader:
    """One connection that reads a mailbox, until it ends or another one begins."""

    def __init__(self, box: V1Mailbox) -> None:
        self._box = box
        self.wake = asyncio.Event()

    async def next(self, timeout: float) -> Envelope | None:
        """Return the oldest message; None after `timeout` seconds without one.

        None comes at once when this reader is not to read any more.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._box.is_reading(self):
                    if (envelope := self._box.front()) is not None:
                        return envelope
                    self.wake.clear()
                    await self.wake.wait()
        except TimeoutError:
            pass
        return None


def _was_received(envelope: Envelope) -> bool:
    return envelope.redelivered and not envelope.flags & RESPONSE
