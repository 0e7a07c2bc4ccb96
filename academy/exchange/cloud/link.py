"""One outbound connection of an event loop to an exchange, shared by its mailboxes.

A `Link` outlives its connections: when one is lost it connects again, says for each
mailbox what it still holds, and sends again what was not confirmed. Calls in flight
do not notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp

from academy.exception import (
    AcademyError,
    ExchangeConnectionError,
    ExchangeError,
    ProtocolError,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.attachments import Attachments, attach_arguments
from academy.exchange.cloud.calls import Calls
from academy.exchange.cloud.connector import FIRST_PAUSE, LONGEST_PAUSE, Connector
from academy.exchange.cloud.pump import Pump
from academy.exchange.cloud.security.pinning import break_off
from academy.exchange.cloud.sender import MessageSender
from academy.exchange.cloud.writer import Writer
from academy.exchange.errors import unpack_error
from academy.exchange.presence import PresenceCallback, Watched, dispatch

if TYPE_CHECKING:
    from academy.exchange.cloud.attachments import Attachment
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.exchange.cloud.postings import Begin, Posting
    from academy.identifier import EntityId

logger = logging.getLogger(__name__)

_CLOSE_PATIENCE = 10.0


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


class Link:
    """A connection to one exchange and everything that has to survive its loss.

    `key` is what its users have in common: the exchange, and who they are there.

    Invariants: what `sender` has posted and what `_calls` ask for is sent again through
    each new connection, in order, until it is confirmed. `_watched` has what each user
    of this link watches. `_writer` is of the connection, while there is one to be used.
    `_error` is set when there will be no more connections.

    Attributes:
        sender: sends messages.
    """

    def __init__(
        self, factory: HttpExchangeFactory, token: str | None, patience: float
    ) -> None:
        self.users = 0
        self.key = factory.link_key(token)
        self._factory = factory
        self._patience = patience
        self._connector = Connector(factory, os.urandom(16), token)
        self._calls = Calls()
        self.sender = MessageSender(self.call)
        self._attachments = Attachments()
        self._watched: dict[object, Watched] = {}
        self._writer: Writer | None = None
        self._transport: asyncio.Transport | None = None
        self._welcomed = False
        self._given_up = False
        self._error: AcademyError | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._run())

    # --- life

    @property
    def failed(self) -> bool:
        """Whether this link has given up."""
        return self._error is not None

    async def ready(self) -> None:
        """Wait for the first connection.

        Raises:
            ExchangeConnectionError: nobody answers, within the factory's retries.
            UnauthorizedError: the token is refused.
        """
        await asyncio.wait([self._ready])
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Disconnect, after what was posted is confirmed (10 s at most)."""
        await self._drained(None)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail(ExchangeError(f"the connection to {self._factory.url} was closed"))

    async def _drained(self, source: bytes | None) -> None:
        """Wait until what was posted is confirmed, unless that was in vain before.

        Large messages are waited for while they move: of one mailbox, or of all.
        """
        if self._given_up:
            return
        try:
            if not await self.sender.postings.drained(source, _CLOSE_PATIENCE):
                raise TimeoutError
            await asyncio.wait_for(self.sender.outbox.drained(), _CLOSE_PATIENCE)
        except TimeoutError:
            self._given_up = True
            logger.error("%s did not confirm all messages", self._factory.url)

    async def _run(self) -> None:
        url = self._factory.url
        try:
            traces = [self._trace()]
            async with aiohttp.ClientSession(
                trust_env=True, trace_configs=traces
            ) as http:
                ws = await self._connector.connect(http, self._patience)
                pause = FIRST_PAUSE
                while True:
                    self._welcomed = False
                    reason = await self._use(ws)
                    logger.warning("lost %s: %s", url, reason)
                    restarting = ws.close_code == aiohttp.WSCloseCode.SERVICE_RESTART
                    if self._welcomed and not restarting:
                        pause = FIRST_PAUSE
                    else:
                        # Something is there, but cannot do its work for now.
                        await asyncio.sleep(pause * random.uniform(0.5, 1))
                        pause = min(pause * 2, LONGEST_PAUSE)
                    patience = self._factory.reconnect_timeout_s
                    ws = await self._connector.connect(http, patience)
                    logger.info("connected to %s again", url)
        except AcademyError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the connection to %s failed", url)
            self._fail(ExchangeConnectionError(url, repr(error)))

    def _trace(self) -> aiohttp.TraceConfig:
        """Note what each connection runs over."""

        async def note(_: Any, __: Any, end: aiohttp.TraceRequestEndParams) -> None:
            connection = end.response.connection
            self._transport = connection and connection.transport

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(note)
        return trace

    # --- one connection

    async def _use(self, ws: aiohttp.ClientWebSocketResponse) -> str:
        """Work with a connection until it is lost; return why."""
        receipts, outbox = Receipts(), self.sender.outbox
        writer = Writer(ws.send_bytes, receipts.take)
        pump = Pump(writer)
        tasks: list[asyncio.Task[None]] = [asyncio.create_task(pump.run())]
        try:
            async for message in ws:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    return f"a {message.type.name} message is not expected"
                records = protocol.records(message.data)
                for count, (kind, record) in enumerate(records, 1):
                    if kind == protocol.DELIVER:
                        receipts.count += self._attachments.deliver(record)
                    elif kind == protocol.CONFIRM:
                        outbox.confirm(protocol.read_confirm(record))
                    elif kind == protocol.REFUSE:
                        receipts.refused, error = protocol.read_refuse(record)
                        outbox.refuse(receipts.refused, error)
                    elif kind == protocol.WELCOME:
                        welcome = protocol.read_json(record)
                        if large := self._resume(writer, pump, welcome):
                            sending = self._send_large_again(writer, large)
                            tasks.append(asyncio.create_task(sending))
                        else:
                            self._send_again(writer)
                    else:
                        self._learn(kind, record)
                    if not count % protocol.BURST:
                        await asyncio.sleep(0)
                if receipts.count or receipts.refused:
                    writer.later()
            return f"closed with code {ws.close_code}"
        except ProtocolError as error:
            return str(error)
        finally:
            self._writer = self.sender.writer = None
            self.sender.postings.disconnected()
            self._attachments.downloads.disconnected()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await writer.close()
            await ws.close()
            break_off(self._transport)

    def _resume(
        self, writer: Writer, pump: Pump, welcome: dict[str, Any]
    ) -> list[Posting]:
        """Take up the work where the last connection has left it.

        Returns large messages whose body the exchange may have lost.
        """
        self._calls.forget_own()
        sender, attachments = self.sender, self._attachments
        largest, inline = welcome["max_message_bytes"], welcome["spill_bytes"]
        sender.postings.connected(pump, largest, inline)
        attachments.downloads.connected(writer.put)
        sender.outbox.confirm(welcome["sequence"])
        attachments.again(
            *(self._calls, writer, welcome["number"]),
            *(self._connector.tokens, sender.unconfirmed()),
        )
        self._watch_again(writer)
        self._welcomed = True
        return [sent.posting for sent in sender.outbox if sent.posting is not None]

    async def _send_large_again(self, writer: Writer, large: list[Posting]) -> None:
        def ask(method: str, then: Begin, /, **arguments: Any) -> asyncio.Future[Any]:
            return self._calls.ask(writer, then, method=method, **arguments)

        await self.sender.postings.send_again(large, ask)
        self._send_again(writer)

    def _send_again(self, writer: Writer) -> None:
        """Send what was not confirmed, and use the connection for what will come."""
        unsent = deque(sent for sent in self.sender.outbox if sent.record)
        for after, record in self._calls.to_repeat():
            while unsent and unsent[0].sequence <= after:
                writer.put(unsent.popleft().record)
            writer.put(record)
        for sent in unsent:
            writer.put(sent.record)
        self._writer = self.sender.writer = writer
        self._given_up = False
        if not self._ready.done():
            self._ready.set_result(None)

    def _watch_again(self, writer: Writer) -> None:
        uids = {uid for watched in self._watched.values() for uid in watched}
        if uids:
            self._calls.ask(writer, method="watch", uids=[uid.hex() for uid in uids])

    def _learn(self, kind: int, record: memoryview) -> None:
        if kind == protocol.REPLY:
            self._calls.replied(record)
        elif kind == protocol.LOST:
            self._attachments.lost(*protocol.read_lost(record))
        elif kind == protocol.TOKENS:
            self._connector.tokens |= protocol.read_tokens(record)
        elif kind == protocol.PART:
            self._attachments.downloads.part(*protocol.read_part(record))
        elif kind == protocol.TAKEN:
            self.sender.postings.taken(*protocol.read_taken(record))
        elif kind == protocol.DROP:
            number, error = protocol.read_drop(record)
            if number >= protocol.UPLOADS:
                self.sender.postings.dropped(number, error)
            else:
                self._attachments.downloads.drop(number)
        elif kind == protocol.NEWS:
            changes = protocol.read_news(record)
            for watched in list(self._watched.values()):
                dispatch(changes, watched)
        else:
            raise ProtocolError(f"records of kind {kind} come from clients")

    def _fail(self, error: AcademyError) -> None:
        """Tell everybody who waits that nothing will come any more."""
        if self._error is not None:
            return
        self._error = error
        if not self._ready.done():
            self._ready.set_result(None)
        self.sender.fail(error)
        self._calls.fail(error)
        self._attachments.fail(error)

    # --- what transports use

    async def call(
        self,
        method: str,
        then: Callable[[Any], None] | None = None,
        /,
        **arguments: Any,
    ) -> Any:
        """Ask the exchange; survives a lost connection, since calls are idempotent.

        Args:
            method: what is asked for.
            then: told the result before anything that came behind it is read.
            **arguments: of the method.
        """
        if self._error is not None:
            raise self._error
        content = {"method": method, **arguments}
        after = self.sender.outbox.last_sequence
        number, done = self._calls.begin(content, after, then)
        if self._writer is not None:
            # Receipts go before, since the call may let go of what they are about.
            self._writer.put_late()
            self._writer.put(protocol.numbered(protocol.CALL, number, content))
        try:
            return await done
        finally:
            self._calls.drop(number)

    async def attach(self, box: Attachment) -> None:
        """Become the consumer of a mailbox."""

        def attached(problems: list[Any]) -> None:
            if problems[0] is None:
                self._attachments.add(box)

        try:
            (problem,) = await self.call(
                "attach", attached, mailboxes=[attach_arguments(box, box.token)]
            )
        except asyncio.CancelledError:
            self._abandon(box)
            raise
        if problem is not None:
            raise unpack_error(problem)

    def _abandon(self, box: Attachment) -> None:
        """Undo an attachment that may be under way, without waiting."""
        uid = box.mailbox_id.uid.bytes
        if self._writer is not None and self._attachments.get(uid) in (None, box):
            self._attachments.remove(uid)
            self._calls.tell(self._writer, method="detach", uid=box.mailbox_id.uid.hex)

    async def detach(self, box: Attachment, released: list[int]) -> None:
        """Let go of a mailbox, after what it has sent; give requests back unserved."""
        uid = box.mailbox_id.uid.bytes
        if self._attachments.get(uid) is not box:
            return
        # Attached until it is confirmed, since only who is attached may send it again.
        await self._drained(uid)
        if self._attachments.get(uid) is not box:
            return
        released = released + self._attachments.remove(uid)
        # Without a connection there is nothing to detach from: the next one
        # attaches only what is attached here.
        if self._writer is not None:
            with suppress(ExchangeError, TimeoutError):
                call = self.call(
                    "detach", uid=box.mailbox_id.uid.hex, released=released
                )
                await asyncio.wait_for(call, _CLOSE_PATIENCE)

    async def watch(
        self, user: object, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Have a callback told where owners are; see `ExchangeTransport.watch`."""
        watched = self._watched.setdefault(user, {})
        watched.update((uid.uid.bytes, (uid, callback)) for uid in uids)
        await self.call("watch", uids=[uid.uid.hex for uid in uids])

    def unwatch(self, user: object, uids: Collection[EntityId] | None) -> None:
        """Tell a user of this link no more about these, or about anybody."""
        watched = self._watched.get(user, {})
        keys = list(watched) if uids is None else [uid.uid.bytes for uid in uids]
        for key in keys:
            watched.pop(key, None)
        if not watched:
            self._watched.pop(user, None)
        left = [k.hex() for k in keys if not self._is_watched(k)]
        # Nobody need wait for it: news of them are dropped here, and the next
        # connection watches only what is watched here.
        if left and self._writer is not None:
            self._calls.tell(self._writer, method="unwatch", uids=left)

    def _is_watched(self, uid: bytes) -> bool:
        return any(uid in watched for watched in self._watched.values())
