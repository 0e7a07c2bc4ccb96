"""One client's connection: records become calls of the broker, and back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from itertools import chain

from aiohttp import WSCloseCode

from academy.exception import (
    AcademyError,
    ProtocolError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud import protocol
from academy.exchange.cloud.protocol import message_head
from academy.exchange.cloud.rate import Rate
from academy.exchange.cloud.requests import Call, Requests, read_call
from academy.exchange.cloud.security.auth import Authority, Credentials
from academy.exchange.cloud.speakers import REVOKED, Speakers
from academy.exchange.cloud.transfers import Transfers
from academy.exchange.cloud.websocket import WebSocket
from academy.exchange.cloud.writer import Writer
from academy.exchange.presence import Presence
from academy.exchange.store import ADDRESS_FLAGS, LARGE, Envelope

logger = logging.getLogger(__name__)

RECORDS_AT_ONCE = 2 * protocol.BURST
"""Records that are worked off without a task: a burst, and what comes along with it."""
NEWS_AT_ONCE = 1_000
"""Mailboxes in one NEWS record."""

_HEAD = protocol.MESSAGE.size
_LARGEST_SEQUENCE = (1 << 63) - 1
_unpack = protocol.MESSAGE.unpack_from


Records = Iterator[tuple[int, memoryview]]


class Connection:
    """One client's WebSocket: turns records into calls of the broker, and back.

    Invariants: `_stored` is the sequence number up to which all is stored, or 0 when
    the client has been told; `_awaited` says that it waits to be told of the latest.
    `_busy` works off what is `_waiting`, since something has to be awaited for it, or
    waits until `_due`, since the client sends faster than it may; meanwhile nothing is
    read.
    """

    def __init__(
        self,
        broker: Broker,
        authority: Authority,
        websocket: WebSocket,
        session: bytes,
        credentials: Credentials,
        rate: Rate | None = None,
    ) -> None:
        self._broker = broker
        self._websocket = websocket
        self._writer = Writer(websocket.send, self._confirmation)
        self.received = 0
        self._stored = 0
        self._awaited = False
        self._session = self._broker.connect(session, self)
        writer = self._writer
        self._speakers = Speakers(broker, authority, session, credentials, writer)
        self._transfers = Transfers(broker, self._session, writer)
        self._requests = Requests(
            *(broker, authority, self._session),
            *(self._speakers, self._transfers, writer),
        )
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._waiting: deque[Records] = deque()
        self._busy: asyncio.Task[None] | None = None
        self._rate = rate
        self._due = 0.0

    @property
    def sent(self) -> int:
        """Bytes that were sent to the client."""
        return self._writer.sent

    async def serve(self) -> None:
        """Work until the connection ends."""
        pumping = asyncio.create_task(self._transfers.pump.run())
        try:
            await self._welcome()
            self._websocket.start(self._receive, self._leave)
            self._websocket.resume_reading()
            await self._websocket.ended
        except ProtocolError as error:
            logger.warning(
                "closed the connection of %s: %s", self._speakers.user.subject, error
            )
            await self.close(WSCloseCode.PROTOCOL_ERROR, str(error))
        except ConnectionError:
            pass  # the client has gone while it was answered
        except StorageError as error:
            logger.warning(
                "sent %s away for now: %s", self._speakers.user.subject, error
            )
            await self.close(WSCloseCode.SERVICE_RESTART, str(error))
        finally:
            self._leave()
            self._waiting.clear()
            tasks = [pumping] if self._busy is None else [pumping, self._busy]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._writer.close()

    def _leave(self) -> None:
        self._broker.disconnect(self._session)

    async def _welcome(self) -> None:
        broker = self._broker
        sequence, number = await broker.known(self._session)
        self._writer.put(
            protocol.welcome(
                {
                    "protocol": protocol.PROTOCOL,
                    "sequence": sequence,
                    "number": number,
                    "max_message_bytes": broker.limits.max_message_bytes,
                    "spill_bytes": broker.limits.spill_bytes,
                }
            )
        )
        await self._speakers.renew()

    def _receive(self, message: bytes) -> None:
        """Work off what one WebSocket message says, or as much as needs no waiting."""
        self.received += len(message)
        records = protocol.records(message)
        if self._busy is not None:
            self._waiting.append(records)
            self._charge(0, len(message))
            return
        left = RECORDS_AT_ONCE
        for kind, record in records:
            if kind == protocol.SEND:
                self._take(record)
            elif not self._note(kind, record):
                self._waiting.append(chain([(kind, record)], records))
                break
            left -= 1
            if not left:
                self._waiting.append(records)
                break
        else:
            if self._rate is None:
                return
        self._charge(RECORDS_AT_ONCE - left, len(message))
        if not self._waiting and self._due <= time.monotonic():
            return
        self._websocket.pause_reading()
        self._busy = self._loop.create_task(self._catch_up(), context=self._context)

    def _charge(self, messages: int, size: int) -> None:
        """Count what the client has sent."""
        if self._rate is not None:
            self._due = time.monotonic() + self._rate.take(messages, size)

    async def _pay(self, rate: Rate) -> None:
        """Let a client wait that sends faster than it may."""
        begun = time.monotonic()
        try:
            while (left := self._due - time.monotonic()) > 0:
                await self._websocket.rest(left)
        finally:
            rate.waited += time.monotonic() - begun

    def _note(self, kind: int, record: memoryview) -> bool:
        """Learn what a record says, unless something has to be awaited for that."""
        if kind == protocol.SEND:
            self._take(record)
        elif kind == protocol.RECEIPT:
            self._broker.acknowledge(self._session, protocol.read_count(record))
        elif kind == protocol.CONFIRM:
            self._broker.heard(self._session, protocol.read_confirm(record))
        else:
            return False
        return True

    async def _catch_up(self) -> None:
        """Work off what is waiting, in order."""
        try:
            while True:
                if self._rate is not None:
                    await self._pay(self._rate)
                if not self._waiting:
                    break
                await self._work_off(self._waiting[0])
                self._waiting.popleft()
        except Exception as error:
            self._websocket.fail(error)
        finally:
            self._busy = None
        self._websocket.resume_reading()

    async def _work_off(self, records: Records) -> None:
        calls: list[Call] = []
        count = 0
        for count, (kind, record) in enumerate(records, 1):
            if kind == protocol.CALL:
                call = read_call(record)
                # Calls of one method share a turn of the broker: a thousand agents
                # that attach are a thousand calls.
                if calls and calls[0][1] is not call[1]:
                    await self._requests.answer(calls)
                calls.append(call)
                continue
            if calls:
                await self._requests.answer(calls)
            if not self._note(kind, record):
                await self._transfers.learn(kind, record)
            if not count % protocol.BURST:
                await asyncio.sleep(0)
        if calls:
            await self._requests.answer(calls)
        self._charge(count, 0)

    async def renew(self) -> None:
        """Send fresh tokens to the client."""
        await self._speakers.renew()

    async def cut_void(self) -> None:
        """End what was attached or connected with a token that is void now."""
        void = self._speakers.cut_void()
        if void is None:
            await self.close(WSCloseCode.POLICY_VIOLATION, REVOKED)
            return
        for uid in void:
            await self._broker.detach(self._session, uid)
            self.lost(uid, UnauthorizedError(REVOKED))

    async def close(self, code: int, reason: str = "") -> None:
        """Send what is queued and close the WebSocket."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._writer.flushed(), 1)
        await self._websocket.close(code, reason)

    def _take(self, record: memoryview) -> None:
        _, _, flags, sequence, answers, dest, src, tag = _unpack(record)
        if sequence > _LARGEST_SEQUENCE:
            raise ProtocolError(f"there is no sequence number {sequence}")
        if flags & protocol.AWAITED:
            self._awaited = True
        payload = bytes(record[_HEAD:])
        envelope = Envelope(
            dest, src, tag, flags & ADDRESS_FLAGS, payload, len(payload), answers
        )
        if flags & LARGE:
            if len(payload) != protocol.TRANSFER.size:
                raise ProtocolError("a large message comes as a transfer")
            (number,) = protocol.TRANSFER.unpack(payload)
            self._broker.large.post(self._session, sequence, number, envelope)
            return
        self._broker.post(self._session, sequence, envelope)

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        payload, flags = envelope.payload, envelope.flags
        if flags & LARGE:
            self._transfers.deliver(envelope)
        if envelope.redelivered:
            flags |= protocol.REDELIVERED
        number, size = envelope.number, len(payload)
        dest, src, tag = envelope.dest, envelope.src, envelope.tag
        head = message_head(protocol.DELIVER, flags, number, 0, dest, src, tag, size)
        self._writer.put_parts(_HEAD + size, head, payload)

    def delivered(self) -> None:
        self._writer.flush()

    def confirm(self, sequence: int) -> None:
        self._stored = sequence
        if self._awaited:
            self._awaited = False
            self._writer.put(self._confirmation())
        else:
            self._writer.later()

    def _confirmation(self) -> bytes:
        sequence, self._stored = self._stored, 0
        return protocol.confirm(sequence) if sequence else b""

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        self._writer.put(protocol.refuse(sequence, tag, error))

    def lost(self, uid: bytes, error: AcademyError) -> None:
        self._speakers.forget(uid)
        self._transfers.forget(uid)
        self._writer.put(protocol.lost(uid, error))

    def notice(self, changes: Mapping[bytes, Presence]) -> None:
        items = list(changes.items())
        for start in range(0, len(items), NEWS_AT_ONCE):
            batch = dict(items[start : start + NEWS_AT_ONCE])
            self._writer.put(protocol.news(batch))

    def reset(self, error: AcademyError) -> None:
        closing = self.close(WSCloseCode.SERVICE_RESTART, str(error))
        self._closing = asyncio.get_running_loop().create_task(closing)
