"""What a link and its exchange say to each other over one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from academy.exception import ProtocolError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.calls import batched
from academy.exchange.cloud.pump import Pump
from academy.exchange.cloud.writer import Writer

if TYPE_CHECKING:
    from academy.exchange.cloud.link import Link
    from academy.exchange.cloud.postings import Begin, Posting
    from academy.exchange.cloud.websocket import WebSocket

_Records = Iterator[tuple[int, memoryview]]


class Receipts:
    """Counts what one connection has received and not acknowledged yet.

    Attributes:
        count: deliveries.
        refused: sequence number of the latest message that was refused, or 0.
    """

    __slots__ = ("count", "refused")

    def __init__(self) -> None:
        self.count = self.refused = 0

    def take(self) -> bytes:
        """Return the records that acknowledge it, if there is anything."""
        count, self.count = self.count, 0
        receipt = protocol.numbered(protocol.RECEIPT, count) if count else b""
        if not self.refused:
            return receipt
        refused, self.refused = self.refused, 0
        return receipt + protocol.confirm(refused)


class Conversation:
    """Works with one connection of a link until it is lost.

    Invariant: `_waiting` has the WebSocket messages that are not worked off; the first
    of them is begun, and a callback will go on with it.

    Attributes:
        welcomed: whether the exchange has begun to work with it.
    """

    def __init__(self, link: Link, websocket: WebSocket) -> None:
        self._link = link
        self._websocket = websocket
        self._loop = asyncio.get_running_loop()
        self._receipts = Receipts()
        self._writer = Writer(websocket.send, self._receipts.take)
        self._pump = Pump(self._writer)
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: deque[_Records] = deque()
        self.welcomed = False

    async def run(self) -> str:
        """Work until the connection is lost; return why."""
        link = self._link
        self._tasks.append(self._loop.create_task(self._pump.run()))
        try:
            self._websocket.start(self._take)
            return await self._websocket.ended
        except ProtocolError as error:
            return str(error)
        finally:
            self._websocket.stop()
            link.sender.writer = None
            link.sender.postings.disconnected()
            link.attachments.downloads.disconnected()
            self._waiting.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            await self._writer.close()
            await self._websocket.close()

    # --- what the exchange says

    def _take(self, message: bytes) -> None:
        records = protocol.records(message)
        if self._waiting:
            self._waiting.append(records)
            self._websocket.pause_reading()
        elif not self._work_off(records):
            self._waiting.append(records)
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Go on with what is waiting, after others had their turn."""
        if not self._waiting:
            return
        try:
            if self._work_off(self._waiting[0]):
                self._waiting.popleft()
        except Exception as error:
            self._waiting.clear()
            self._websocket.fail(error)
        if self._waiting:
            self._loop.call_soon(self._go_on)
        else:
            self._websocket.resume_reading()

    def _work_off(self, records: _Records) -> bool:
        """Work off so many records; return whether those were all."""
        link, receipts = self._link, self._receipts
        left = protocol.BURST
        for kind, record in records:
            if kind == protocol.DELIVER:
                receipts.count += link.attachments.deliver(record)
            elif kind == protocol.CONFIRM:
                link.sender.outbox.confirm(protocol.read_confirm(record))
            else:
                self._learn(kind, record)
            left -= 1
            if not left:
                break
        if receipts.count or receipts.refused:
            self._writer.later()
        if self._writer.queued:
            self._writer.flush()
        else:
            self._writer.expect()
        return left > 0

    def _learn(self, kind: int, record: memoryview) -> None:
        link = self._link
        if kind == protocol.REPLY:
            link.calls.replied(record)
        elif kind == protocol.REFUSE:
            refused, error = protocol.read_refuse(record)
            self._receipts.refused = refused
            link.sender.outbox.refuse(refused, error)
        elif kind == protocol.WELCOME:
            self._resume(protocol.read_json(record))
        elif kind == protocol.LOST:
            link.attachments.lost(*protocol.read_lost(record))
        elif kind == protocol.TOKENS:
            link.connector.tokens |= protocol.read_tokens(record)
        elif kind == protocol.PART:
            link.attachments.downloads.part(*protocol.read_part(record))
        elif kind == protocol.TAKEN:
            link.sender.postings.taken(*protocol.read_taken(record))
        elif kind == protocol.DROP:
            number, error = protocol.read_drop(record)
            if number >= protocol.UPLOADS:
                link.sender.postings.dropped(number, error)
            else:
                link.attachments.downloads.drop(number)
        elif kind == protocol.NEWS:
            link.watching.learn(record)
        else:
            raise ProtocolError(f"records of kind {kind} come from clients")

    # --- the beginning

    def _resume(self, welcome: dict[str, Any]) -> None:
        """Take up the work where the last connection has left it."""
        link, writer = self._link, self._writer
        sender, attachments, calls = link.sender, link.attachments, link.calls
        calls.forget_own()
        largest, inline = welcome["max_message_bytes"], welcome["spill_bytes"]
        sender.postings.connected(self._pump, largest, inline)
        attachments.downloads.connected(writer.put)
        sender.outbox.confirm(welcome["sequence"])
        attachments.again(
            *(calls, writer, welcome["number"]),
            *(link.connector.tokens, sender.unconfirmed()),
        )
        for uids in batched(link.watching.everybody()):
            calls.ask(writer, method="watch", uids=[uid.hex() for uid in uids])
        self.welcomed = True
        # The exchange may have lost the bodies of large messages.
        large = [sent.posting for sent in sender.outbox if sent.posting is not None]
        if large:
            sending = self._loop.create_task(self._send_large_again(large))
            self._tasks.append(sending)
        else:
            self._send_again()

    async def _send_large_again(self, large: list[Posting]) -> None:
        def ask(method: str, then: Begin, /, **arguments: Any) -> asyncio.Future[Any]:
            return self._link.calls.ask(self._writer, then, method=method, **arguments)

        await self._link.sender.postings.send_again(large, ask)
        self._send_again()

    def _send_again(self) -> None:
        """Send what was not confirmed, and use the connection for what will come."""
        link, writer = self._link, self._writer
        unsent = deque(sent for sent in link.sender.outbox if sent.record)
        for after, record in link.calls.to_repeat():
            while unsent and unsent[0].sequence <= after:
                writer.put(unsent.popleft().record)
            writer.put(record)
        for sent in unsent:
            writer.put(sent.record)
        link.use(writer)
