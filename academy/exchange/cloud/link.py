"""One outbound connection of an event loop to an exchange, shared by its mailboxes.

A `Link` outlives its connections: when one is lost it connects again, says for each
mailbox what it still holds, and sends again what was not confirmed. Calls in flight
do not notice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import aiohttp

from academy.exception import (
    AcademyError,
    ExchangeConnectionError,
    ExchangeError,
    ProtocolError,
    SupersededError,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.credentials import claims_of
from academy.exchange.cloud.downloads import Downloads
from academy.exchange.cloud.postings import Begin, Posting, Postings
from academy.exchange.cloud.pump import Pump
from academy.exchange.cloud.security.pinning import break_off, explain
from academy.exchange.cloud.writer import Writer
from academy.exchange.directory import address_flags
from academy.exchange.errors import unpack_error
from academy.exchange.inbox import Inbox
from academy.exchange.outbox import Outbox
from academy.exchange.presence import (
    PresenceCallback,
    Watched,
    dispatch,
    pack_place,
)
from academy.exchange.store import FROM_AGENT, LARGE
from academy.identifier import EntityId, entity_id
from academy.message import Message, encode_body
from academy.scheduler.here import place

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.serialize import Part

logger = logging.getLogger(__name__)

_HEAD = protocol.MESSAGE.size
_unpack = protocol.MESSAGE.unpack_from
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 15.0
_CLOSE_PATIENCE = 10.0


class Attachment(Protocol):
    """A mailbox that a link serves."""

    mailbox_id: EntityId
    inbox: Inbox
    incarnation: bytes
    token: str | None


@dataclass(slots=True)
class Call:
    """A call without a reply.

    Attributes:
        content: method and arguments.
        done: gets the result or the error.
        after: sequence number of the last message that was posted before it.
        then: told the result at once, before anything that came behind it is read.
    """

    content: dict[str, Any]
    done: asyncio.Future[Any]
    after: int = 0
    then: Callable[[Any], None] | None = None


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

    `key` is what its users have in common: the exchange, and the namespace there.

    Invariants: `_outbox` holds the messages that the exchange may not have stored,
    `_calls` the calls without a reply. Both are sent again through each new
    connection, in order. `_attached` holds the mailboxes that the exchange has
    attached here, `_watched` what each user of this link watches. `_own` are the
    numbers of the calls that a connection makes for itself, which end with it.
    `_tokens` are those that the exchange has issued for this session, by mailbox, and
    for the connection. `_error` is set when there will be no more connections.
    """

    def __init__(
        self, factory: HttpExchangeFactory, token: str | None, patience: float
    ) -> None:
        self.users = 0
        self.key = (factory.link_key, claims_of(token).get("ns"))
        self._factory = factory
        self._token = token
        self._patience = patience
        self._session = os.urandom(16)
        self._tokens: dict[bytes, str] = {}
        self._outbox = Outbox()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._own: set[int] = set()
        self._postings = Postings(self)
        self._downloads = Downloads()
        self._attached: dict[bytes, Attachment] = {}
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
            if not await self._postings.drained(source, _CLOSE_PATIENCE):
                raise TimeoutError
            await asyncio.wait_for(self._outbox.drained(), _CLOSE_PATIENCE)
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
                ws = await self._connect(http, self._patience)
                pause = _FIRST_PAUSE
                while True:
                    self._welcomed = False
                    reason = await self._use(ws)
                    logger.warning("lost %s: %s", url, reason)
                    restarting = ws.close_code == aiohttp.WSCloseCode.SERVICE_RESTART
                    if self._welcomed and not restarting:
                        pause = _FIRST_PAUSE
                    else:
                        # Something is there, but cannot do its work for now.
                        await asyncio.sleep(pause * random.uniform(0.5, 1))
                        pause = min(pause * 2, _LONGEST_PAUSE)
                    ws = await self._connect(http, self._factory.reconnect_timeout_s)
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

    async def _connect(
        self, http: aiohttp.ClientSession, patience: float
    ) -> aiohttp.ClientWebSocketResponse:
        """Connect, trying again for `patience` seconds."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + patience
        # So that an answer which never comes takes no longer than no answer.
        limit = begun + max(patience, self._factory.request_timeout_s)
        pause = _FIRST_PAUSE
        while True:
            try:
                left = max(limit - loop.time(), _FIRST_PAUSE)
                return await self._connect_once(http, left)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                if loop.time() + pause > deadline:
                    url = self._factory.url
                    raise ExchangeConnectionError(url, explain(error, url)) from error
            # Jitter: the workers of a campaign do not come back all at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _connect_once(
        self, http: aiohttp.ClientSession, limit: float
    ) -> aiohttp.ClientWebSocketResponse:
        headers = dict(self._factory.additional_headers)
        headers[protocol.PROTOCOL_HEADER] = str(protocol.PROTOCOL)
        headers[protocol.SESSION_HEADER] = self._session.hex()
        # Who was away for long is let in by what was given from outside.
        token = self._tokens.get(b"") or self._factory.find_token() or self._token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with asyncio.timeout(min(self._factory.request_timeout_s, limit)):
            try:
                return await http.ws_connect(
                    self._factory.address + protocol.PATH,
                    headers=headers,
                    max_msg_size=0,
                    heartbeat=self._factory.client_config.heartbeat_interval,
                    compress=0,
                    ssl=self._factory.trust,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1),
                )
            except aiohttp.WSServerHandshakeError as error:
                _forget_request(error)
                if error.status >= 500 or error.status == 429:
                    raise
                if error.status == 401 and self._tokens:
                    self._tokens.clear()
                    raise  # it is tried again with what was given from outside
                raise await self._explain(http, headers, error) from error

    async def _explain(
        self,
        http: aiohttp.ClientSession,
        headers: dict[str, str],
        error: aiohttp.WSServerHandshakeError,
    ) -> Exception:
        """Ask again without the upgrade, since only then the answer has a body."""
        address = self._factory.address
        async with http.get(
            address + protocol.PATH, headers=headers, ssl=self._factory.trust
        ) as r:
            try:
                problem = unpack_error(await r.json())
            except (aiohttp.ClientError, ValueError):
                text = f"it is not an exchange of this protocol (status {error.status})"
                return ExchangeConnectionError(address, text)
        if isinstance(problem, ExchangeError) and len(problem.args) == 1:
            return type(problem)(f"{address}: {problem}")
        return problem

    # --- one connection

    async def _use(self, ws: aiohttp.ClientWebSocketResponse) -> str:
        """Work with a connection until it is lost; return why."""
        receipts = Receipts()
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
                        receipts.count += self._deliver(record)
                    elif kind == protocol.CONFIRM:
                        self._outbox.confirm(protocol.read_confirm(record))
                    elif kind == protocol.REFUSE:
                        receipts.refused, error = protocol.read_refuse(record)
                        self._outbox.refuse(receipts.refused, error)
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
            self._writer = None
            self._postings.disconnected()
            self._downloads.disconnected()
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
        for number in self._own:
            self._calls.pop(number, None)
        self._own.clear()
        largest, inline = welcome["max_message_bytes"], welcome["spill_bytes"]
        self._postings.connected(pump, largest, inline)
        self._downloads.connected(writer.put)
        self._outbox.confirm(welcome["sequence"])
        self._attach_again(writer, welcome["number"])
        self._watch_again(writer)
        self._welcomed = True
        return [sent.posting for sent in self._outbox if sent.posting is not None]

    async def _send_large_again(self, writer: Writer, large: list[Posting]) -> None:
        def ask(method: str, then: Begin, /, **arguments: Any) -> asyncio.Future[Any]:
            return self._ask(writer, then, method=method, **arguments)

        await self._postings.send_again(large, ask)
        self._send_again(writer)

    def _send_again(self, writer: Writer) -> None:
        """Send what was not confirmed, and use the connection for what will come."""
        unsent = deque(sent for sent in self._outbox if sent.record)
        for number, call in self._calls.items():
            if number in self._own:
                continue
            while unsent and unsent[0].sequence <= call.after:
                writer.put(unsent.popleft().record)
            writer.put(protocol.numbered(protocol.CALL, number, call.content))
        for sent in unsent:
            writer.put(sent.record)
        self._writer = writer
        self._given_up = False
        if not self._ready.done():
            self._ready.set_result(None)

    def _ask(
        self, writer: Writer, then: Begin | None = None, /, **content: Any
    ) -> asyncio.Future[Any]:
        """Make a call for one connection."""
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(_retrieve)
        number = next(self._numbers)
        self._own.add(number)
        self._calls[number] = Call(content, done, then=then)
        writer.put(protocol.numbered(protocol.CALL, number, content))
        return done

    def _attach_again(self, writer: Writer, last_number: int) -> None:
        boxes = list(self._attached.values())
        if not boxes:
            return
        for box in boxes:
            box.inbox.rewind(last_number)
        done = self._ask(writer, method="attach", mailboxes=self._holdings())
        done.add_done_callback(lambda done: self._tell_lost(boxes, done))
        if coming := self._downloads.coming():
            # What is still there is offered again, and goes on where it was.
            self._ask(writer, self._missing, method="missing", mailboxes=coming)

    def _missing(self, numbers: list[int]) -> None:
        for number in numbers:
            self._downloads.drop(number)

    def _watch_again(self, writer: Writer) -> None:
        uids = {uid for watched in self._watched.values() for uid in watched}
        if uids:
            self._ask(writer, method="watch", uids=[uid.hex() for uid in uids])

    def _tell_lost(self, boxes: list[Attachment], done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        for box, problem in zip(boxes, done.result(), strict=True):
            if problem is not None:
                uid = box.mailbox_id.uid.bytes
                if self._attached.get(uid) is box:
                    del self._attached[uid]
                    self._downloads.forget(uid)
                box.inbox.lost(unpack_error(problem))

    def _holdings(self) -> list[dict[str, Any]]:
        held = {uid: list(box.inbox.held()) for uid, box in self._attached.items()}
        for uid in held if self._downloads.lanes else ():
            held[uid] += self._downloads.held(uid)
        posted = (sent.message for sent in self._outbox)
        for message in itertools.chain(posted, self._postings.waiting()):
            uid = message.src.uid.bytes
            if uid in held and message.is_response():
                held[uid].append(message.tag)
        return [
            attach_arguments(
                box, self._tokens.get(uid, box.token), resume=True, held=held[uid]
            )
            for uid, box in self._attached.items()
        ]

    def _deliver(self, record: memoryview) -> bool:
        """Take a message; return whether it is here, and not only begun."""
        _, _, flags, number, _, dest, src, tag = _unpack(record)
        large = bool(flags & LARGE)
        box = self._attached.get(dest)
        if box is None:
            return not large
        message = Message(
            entity_id(bool(flags & FROM_AGENT), src),
            box.mailbox_id,
            tag,
            None,
            record[_HEAD:],
            None,
            number,
            bool(flags & protocol.REDELIVERED),
        )
        if large or self._downloads.lanes:
            reference = bytes(record[_HEAD:]) if large else None
            self._downloads.take(message, box.inbox, reference)
        else:
            box.inbox.deliver(message)
        return not large

    def _learn(self, kind: int, record: memoryview) -> None:
        if kind == protocol.REPLY:
            number, reply = protocol.read_numbered(record)
            call = self._calls.pop(number, None)
            if call is None or call.done.done():
                return
            if "error" in reply:
                call.done.set_exception(unpack_error(reply))
                return
            if call.then is not None:
                call.then(reply["result"])
            call.done.set_result(reply["result"])
        elif kind == protocol.LOST:
            uid, error = protocol.read_lost(record)
            box = self._attached.pop(uid, None)
            if box is not None:
                self._downloads.forget(uid)
                box.inbox.lost(error)
        elif kind == protocol.TOKENS:
            self._tokens |= protocol.read_tokens(record)
        elif kind == protocol.PART:
            self._downloads.part(*protocol.read_part(record))
        elif kind == protocol.TAKEN:
            self._postings.taken(*protocol.read_taken(record))
        elif kind == protocol.DROP:
            number, error = protocol.read_drop(record)
            if number >= protocol.UPLOADS:
                self._postings.dropped(number, error)
            else:
                self._downloads.drop(number)
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
        self._postings.fail(error)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done.done():
                call.done.set_exception(error)
        self._outbox.fail(error)
        attached, self._attached = self._attached, {}
        for box in attached.values():
            box.inbox.lost(error)

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
        number = next(self._numbers)
        done = asyncio.get_running_loop().create_future()
        content = {"method": method, **arguments}
        self._calls[number] = Call(content, done, self._outbox.last_sequence, then)
        if self._writer is not None:
            # Receipts go before, since the call may let go of what they are about.
            self._writer.put_late()
            self._writer.put(protocol.numbered(protocol.CALL, number, content))
        try:
            return await done
        finally:
            self._calls.pop(number, None)

    async def attach(self, box: Attachment) -> None:
        """Become the consumer of a mailbox."""
        uid = box.mailbox_id.uid.bytes

        def attached(problems: list[Any]) -> None:
            if problems[0] is not None:
                return
            older = self._attached.get(uid)
            self._attached[uid] = box
            if older is not None:
                older.inbox.lost(SupersededError(box.mailbox_id))

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
        if self._writer is not None and self._attached.get(uid) in (None, box):
            self._attached.pop(uid, None)
            content = {"method": "detach", "uid": box.mailbox_id.uid.hex}
            call = protocol.numbered(protocol.CALL, next(self._numbers), content)
            self._writer.put(call)

    async def detach(self, box: Attachment, released: list[int]) -> None:
        """Let go of a mailbox, after what it has sent; give requests back unserved."""
        uid = box.mailbox_id.uid.bytes
        if self._attached.get(uid) is not box:
            return
        # Attached until it is confirmed, since only who is attached may send it again.
        await self._drained(uid)
        if self._attached.get(uid) is not box:
            return
        del self._attached[uid]
        released = released + self._downloads.forget(uid)
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
            content = {"method": "unwatch", "uids": left}
            call = protocol.numbered(protocol.CALL, next(self._numbers), content)
            self._writer.put(call)

    def _is_watched(self, uid: bytes) -> bool:
        return any(uid in watched for watched in self._watched.values())

    def post(
        self,
        message: Message,
        inbox: Inbox,
        stored: asyncio.Future[None] | None = None,
    ) -> None:
        """Send a message, now or through the next connection.

        Raises:
            MessageTooLargeError: it is above the exchange's limit.
            Exception: its body does not serialize.
        """
        if self._error is not None:
            raise self._error
        parts = encode_body(message)
        size = sum(map(len, parts))
        postings = self._postings
        if (size > postings.inline or postings.lanes) and postings.take(
            message, inbox, parts, size, stored
        ):
            return
        self._put(message, inbox, parts, size, stored)

    def _put(
        self,
        message: Message,
        inbox: Inbox,
        parts: list[Part],
        size: int,
        stored: asyncio.Future[None] | None,
    ) -> None:
        flags = protocol.AWAITED if stored else 0
        record = _send_record(
            message, self._outbox.last_sequence + 1, flags, parts, size
        )
        self._outbox.add(message, inbox, record, stored)
        if self._writer is not None:
            self._writer.put(record)

    def withdraw(self, message: Message) -> None:
        """Learn that nobody waits for the answer to a request."""
        if self._postings.lanes:
            self._postings.withdraw(message)

    # --- what postings do (Sender)

    def put(self, posting: Posting) -> None:
        self._put(
            *(posting.message, posting.inbox, posting.parts),
            *(posting.size, posting.stored),
        )

    def put_large(self, posting: Posting) -> None:
        flags = LARGE | (protocol.AWAITED if posting.stored else 0)
        reference = protocol.TRANSFER.pack(posting.number)
        sequence = self._outbox.last_sequence + 1
        record = _send_record(
            posting.message, sequence, flags, [reference], len(reference)
        )
        self._outbox.add(
            posting.message, posting.inbox, record, posting.stored, posting
        )
        if self._writer is not None:
            self._writer.put(record)

    def put_hollow(self, posting: Posting) -> None:
        entry = self._outbox.entry_of(posting)
        if entry is None:
            self._put(posting.message, posting.inbox, [], 0, posting.stored)
            return
        entry.record = _send_record(posting.message, entry.sequence, 0, [], 0)
        entry.posting = None

    def give_up(self, posting: Posting, error: Exception) -> None:
        entry = self._outbox.entry_of(posting)
        if entry is not None:
            self._outbox.give_up(entry, error)


def _send_record(
    message: Message, sequence: int, flags: int, parts: list[Part], size: int
) -> bytes:
    head = protocol.message_head(
        protocol.SEND,
        address_flags(message) | flags,
        sequence,
        message.lease or message.lifetime,
        message.dest.uid.bytes,
        message.src.uid.bytes,
        message.tag,
        size,
    )
    return b"".join((head, *parts))


def _forget_request(error: aiohttp.ClientResponseError) -> None:
    """Take the headers of the request, a token among them, out of an error's repr."""
    info = error.request_info
    headers = info.headers.copy()
    headers.clear()
    error.request_info = aiohttp.RequestInfo(
        info.url, info.method, type(info.headers)(headers), info.real_url
    )
    error.args = (error.request_info, error.history)


def is_unknown_path(error: ExchangeError) -> bool:
    """Whether a connection failed because the server knows no path of our protocol."""
    cause = error.__cause__
    if not isinstance(cause, aiohttp.WSServerHandshakeError):
        return False
    return cause.status in (404, 405)


def attach_arguments(
    box: Attachment,
    token: str | None,
    *,
    resume: bool = False,
    held: list[bytes] | None = None,
) -> dict[str, Any]:
    """Describe a mailbox to attach, in the words of the call."""
    return {
        "uid": box.mailbox_id.uid.hex,
        "token": token,
        "incarnation": box.incarnation.hex(),
        "resume": resume,
        "held": [tag.hex() for tag in held or ()],
        "place": pack_place(place()),
    }


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Tell asyncio that nobody need hear of an error."""
    if not done.cancelled():
        done.exception()


_links: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Link]] = (
    WeakKeyDictionary()
)


async def acquire(
    factory: HttpExchangeFactory, token: str | None, patience: float
) -> Link:
    """Return this event loop's link to a factory's exchange, connected.

    Each one acquired is to be released. A first connection is tried for `patience`
    seconds.

    Raises:
        ExchangeConnectionError: nobody answers, within the factory's retries.
        UnauthorizedError: the token is refused.
    """
    links = _links.setdefault(asyncio.get_running_loop(), {})
    key = (factory.link_key, claims_of(token).get("ns"))
    link = links.get(key)
    if link is None or link.failed:
        link = links[key] = Link(factory, token, patience)
    link.users += 1
    try:
        await link.ready()
    except BaseException:
        await release(link)
        raise
    return link


async def release(link: Link) -> None:
    """Give a link back; the last one closes it."""
    link.users -= 1
    if link.users == 0:
        links = _links.get(asyncio.get_running_loop(), {})
        if links.get(link.key) is link:
            del links[link.key]
        await link.close()
