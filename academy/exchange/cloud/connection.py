"""One client's connection: records become calls of the broker, and back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import asdict, replace
from itertools import chain
from typing import Any
from uuid import UUID

from aiohttp import WSCloseCode

from academy.exception import (
    AcademyError,
    ForbiddenError,
    ProtocolError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud import protocol
from academy.exchange.cloud.rate import Rate
from academy.exchange.cloud.security.auth import Authority, Credentials
from academy.exchange.cloud.transfers import Transfers
from academy.exchange.cloud.websocket import WebSocket
from academy.exchange.cloud.writer import Writer
from academy.exchange.errors import pack_error
from academy.exchange.presence import Presence, unpack_place
from academy.exchange.store import (
    FROM_AGENT,
    LARGE,
    ONE_WAY,
    RESPONSE,
    TO_AGENT,
    Envelope,
    MailboxRecord,
)

logger = logging.getLogger(__name__)

MAX_REASON = 10_000
"""Characters that are kept of the reason for a termination."""
NEWS_AT_ONCE = 1_000
"""Mailboxes in one NEWS record."""
MOST_GATHERED = 1_000_000
"""Requests that a client names in steps."""
TOKENS_AT_ONCE = 100
"""Tokens in one TOKENS record: to sign them takes a millisecond or two."""

_ADDRESS_FLAGS = RESPONSE | FROM_AGENT | TO_AGENT | ONE_WAY
_HEAD = protocol.MESSAGE.size
_REVOKED = "the token was revoked: get a new one"
_LARGEST_SEQUENCE = (1 << 63) - 1
_SENSELESS = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
_unpack = protocol.MESSAGE.unpack_from


Method = Callable[["Connection", dict[str, Any], Credentials], Coroutine[Any, Any, Any]]
Records = Iterator[tuple[int, memoryview]]
Call = tuple[int, Method, dict[str, Any]]


class Connection:
    """One client's WebSocket: turns records into calls of the broker, and back.

    A client speaks for the mailboxes that it has attached, each opened with the
    mailbox's own token; `_credentials` keeps what each of them may do, and `_cut` whose
    token is void.

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
        self._authority = authority
        self._broker = broker
        self._websocket = websocket
        self._writer = Writer(websocket.send, self._confirmation)
        self.received = 0
        self._stored = 0
        self._awaited = False
        self._user = credentials
        self._credentials: dict[bytes, Credentials] = {}
        self._cut: set[bytes] = set()
        self._gathered: dict[bytes, list[Any]] = {}
        self._session = self._broker.connect(session, self)
        self._transfers = Transfers(broker, self._session, self._writer)
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
            self._websocket.start(self._receive)
            self._websocket.resume_reading()
            await self._websocket.ended
        except ProtocolError as error:
            logger.warning("closed the connection of %s: %s", self._user.subject, error)
            await self.close(WSCloseCode.PROTOCOL_ERROR, str(error))
        except ConnectionError:
            pass  # the client has gone while it was answered
        except StorageError as error:
            logger.warning("sent %s away for now: %s", self._user.subject, error)
            await self.close(WSCloseCode.SERVICE_RESTART, str(error))
        finally:
            self._broker.disconnect(self._session)
            self._waiting.clear()
            tasks = [pumping] if self._busy is None else [pumping, self._busy]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._writer.close()

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
        await self.renew()

    def _receive(self, message: bytes) -> None:
        """Work off what one WebSocket message says, or as much as needs no waiting."""
        self.received += len(message)
        records = protocol.records(message)
        if self._busy is not None:
            self._waiting.append(records)
            self._charge(0, len(message))
            return
        left = protocol.BURST
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
        self._charge(protocol.BURST - left, len(message))
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
                number, content = protocol.read_numbered(record)
                method = _method(content)
                # Calls of one method share a turn of the broker: a thousand agents
                # that attach are a thousand calls.
                if calls and calls[0][1] is not method:
                    await self._answer(calls)
                calls.append((number, method, content))
                continue
            if calls:
                await self._answer(calls)
            if not self._note(kind, record):
                await self._transfers.learn(kind, record)
            if not count % protocol.BURST:
                await asyncio.sleep(0)
        if calls:
            await self._answer(calls)
        self._charge(count, 0)

    async def renew(self, uids: Iterable[bytes] | None = None) -> None:
        """Send fresh tokens, for the connection and its mailboxes, or for these."""
        issue, session = self._authority.session_token, self._session.uid
        if uids is None:
            self._note_key(self._authority.key_id)
            self._put_tokens({b"": issue(self._user, session)})
            uids = self._credentials
        left = list(uids)
        while left:
            batch, left = left[:TOKENS_AT_ONCE], left[TOKENS_AT_ONCE:]
            held = {uid: c for uid in batch if (c := self._credentials.get(uid))}
            self._put_tokens({uid: issue(c, session) for uid, c in held.items()})
            if left:
                await asyncio.sleep(0)

    def _note_key(self, key_id: str) -> None:
        """Remember that all tokens here are signed with this key from now on."""
        if self._user.key_id in ("", key_id):
            return
        self._user = replace(self._user, key_id=key_id)
        for uid, held in self._credentials.items():
            self._credentials[uid] = replace(held, key_id=key_id)

    def _put_tokens(self, tokens: Mapping[bytes, str | None]) -> None:
        issued = {uid: token for uid, token in tokens.items() if token}
        if issued:
            self._writer.put(protocol.tokens(issued))

    async def cut_void(self) -> None:
        """End what was attached or connected with a token that is void now."""
        is_void = self._authority.is_void
        good = [held for held in self._credentials.values() if not is_void(held)]
        if is_void(self._user):
            logger.info("cut off %s, who is revoked", self._user.subject)
            if not good:
                await self.close(WSCloseCode.POLICY_VIOLATION, _REVOKED)
                return
            # Others of this connection go on, and one of them keeps it open.
            self._user = good[0]
            self._put_tokens(
                {b"": self._authority.session_token(good[0], self._session.uid)}
            )
        for uid, credentials in list(self._credentials.items()):
            if is_void(credentials):
                self._cut.add(uid)
                await self._broker.detach(self._session, uid)
                self.lost(uid, UnauthorizedError(_REVOKED))

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
            dest, src, tag, flags & _ADDRESS_FLAGS, payload, len(payload), answers
        )
        if flags & LARGE:
            if len(payload) != protocol.TRANSFER.size:
                raise ProtocolError("a large message comes as a transfer")
            (number,) = protocol.TRANSFER.unpack(payload)
            self._broker.large.post(self._session, sequence, number, envelope)
            return
        self._broker.post(self._session, sequence, envelope)

    async def _answer(self, calls: list[Call]) -> None:
        """Answer calls, in order, and forget them."""
        answers = [self._answer_one(*call) for call in calls]
        calls.clear()
        for problem in await asyncio.gather(*answers, return_exceptions=True):
            if problem is not None:
                raise problem

    async def _answer_one(
        self, number: int, method: Method, content: dict[str, Any]
    ) -> None:
        try:
            named = len(content.get("mailboxes", content.get("uids", ())))
            if named > protocol.MAILBOXES_AT_ONCE:
                raise ProtocolError(
                    f"a call names {named} mailboxes, which is more than "
                    f"{protocol.MAILBOXES_AT_ONCE}: make several calls"
                )
            result = await method(self, content, self._speaker(content))
            reply = {"result": result}
        except StorageError as error:
            reply = pack_error(error)
        except AcademyError as error:
            if not self._session.open:
                return  # the client asks again through its next connection
            reply = pack_error(error)
        except _SENSELESS as error:
            raise ProtocolError(f"a call that makes no sense: {error!r}") from error
        self._writer.put(protocol.numbered(protocol.REPLY, number, reply))
        if method is Connection._attach and "result" in reply:
            uids = [UUID(item["uid"]).bytes for item in content["mailboxes"]]
            self._broker.start(self._session, uids)
            await self.renew(uids)

    def _speaker(self, call: dict[str, Any]) -> Credentials:
        """Return as whom a client makes a call: one of its mailboxes, or who connected.

        Who connected speaks for own mailboxes that are not attached any more, and for
        nobody else's.
        """
        if "as" not in call:
            return self._user
        uid = UUID(call["as"]).bytes
        if uid in self._credentials:
            return self._credentials[uid]
        if uid in self._cut:
            raise UnauthorizedError(_REVOKED)
        if uid == self._user.mailbox or self._broker.creator(uid) == self._user.subject:
            return self._user
        raise ForbiddenError(f"mailbox {UUID(bytes=uid)} is not attached here")

    # --- calls

    async def _register(self, call: dict[str, Any], by: Credentials) -> Any:
        if "token" in call:
            by = self._verify(call["token"])
        records = [_record(item, by.subject) for item in call["mailboxes"]]
        await self._broker.register(records)
        return [self._token(record, by) for record in records]

    def _token(self, record: MailboxRecord, by: Credentials) -> str | None:
        # A user opens mailboxes of users with the user's own token.
        if by.mailbox is None and not record.agent:
            return None
        return self._authority.mailbox_token(record.uid, by)

    def _verify(self, token: str | None) -> Credentials:
        """Return what another token says, of the namespace of this connection."""
        credentials = self._authority.verify(token, self._session.uid)
        if credentials.namespace != self._user.namespace:
            raise UnauthorizedError(
                f"the token is of the namespace {credentials.namespace!r}, and this "
                f"connection of {self._user.namespace!r}"
            )
        return credentials

    async def _attach(self, call: dict[str, Any], by: Credentials) -> Any:
        return await asyncio.gather(*map(self._attach_one, call["mailboxes"]))

    async def _attach_one(self, item: dict[str, Any]) -> dict[str, Any] | None:
        uid = UUID(item["uid"]).bytes
        try:
            token = item.get("token")
            credentials = self._verify(token) if token else self._user
            creator = self._broker.creator(uid)
            if creator and not credentials.may_attach(uid, creator):
                raise ForbiddenError("the token does not open this mailbox")
            held = self._gather(item, uid, map(bytes.fromhex, item.get("held", ())))
            if held is None:
                return None
            await self._broker.attach(
                self._session,
                uid,
                bytes.fromhex(item["incarnation"]),
                resume=bool(item.get("resume")),
                held=held,
                place=unpack_place(item.get("place")),
            )
            self._credentials[uid] = credentials
            self._cut.discard(uid)
        except StorageError:
            raise  # it says nothing about this mailbox: to be tried again
        except AcademyError as error:
            if not self._session.open:
                raise  # nor does this: it is asked again through the next connection
            return pack_error(error)
        return None

    def _gather(
        self, said: dict[str, Any], uid: bytes, items: Iterable[Any]
    ) -> list[Any] | None:
        """Return what was said of a mailbox in steps; None while more is to follow."""
        gathered = self._gathered.pop(uid, [])
        gathered.extend(items)
        if not said.get("more"):
            return gathered
        self._gathered[uid] = gathered
        if sum(map(len, self._gathered.values())) > MOST_GATHERED:
            raise ProtocolError(f"more than {MOST_GATHERED} requests are named")
        return None

    async def _detach(self, call: dict[str, Any], by: Credentials) -> None:
        uid = UUID(call["uid"]).bytes
        released = self._gather(call, uid, map(int, call.get("released", ())))
        if released is None:
            return
        self._credentials.pop(uid, None)
        self._transfers.forget(uid)
        await self._broker.detach(self._session, uid, released)

    async def _terminate(self, call: dict[str, Any], by: Credentials) -> None:
        uid = UUID(call["uid"]).bytes
        creator = self._broker.creator(uid)
        if creator and not by.may_terminate(uid, creator):
            raise ForbiddenError(
                "a mailbox's token terminates its own and its children"
            )
        reason = call.get("reason", "")
        reason.encode()  # it is text, and such as can be stored
        speaker = bytes.fromhex(call.get("as", ""))
        await self._broker.terminate(uid, speaker, reason[:MAX_REASON])

    async def _offer(self, call: dict[str, Any], by: Credentials) -> int | None:
        number, size = int(call["transfer"]), int(call["size"])
        flags = int(call["flags"]) & _ADDRESS_FLAGS
        dest, src, tag = (bytes.fromhex(call[key]) for key in ("dest", "as", "tag"))
        answers = int(call["answers"])
        envelope = Envelope(dest, src, tag, flags, b"", size, answers)
        if size <= 0 or not protocol.UPLOADS <= number < 2 * protocol.UPLOADS:
            raise ValueError(f"transfer {number} of {size} bytes")
        return self._broker.large.offer(self._session, number, envelope)

    async def _withdraw(self, call: dict[str, Any], by: Credentials) -> None:
        self._broker.large.uploads.drop(self._session.uid, int(call["transfer"]))

    async def _missing(self, call: dict[str, Any], by: Credentials) -> list[int]:
        """Return which of some messages are not in their mailbox any more."""
        missing = []
        for uid, numbers in call["mailboxes"].items():
            key = UUID(uid).bytes
            if key in self._session.attached:
                missing += [
                    number
                    for number in map(int, numbers)
                    if not await self._broker.is_stored(key, number)
                ]
        return missing

    async def _watch(self, call: dict[str, Any], by: Credentials) -> None:
        self._broker.watch(self._session, [UUID(uid).bytes for uid in call["uids"]])

    async def _unwatch(self, call: dict[str, Any], by: Credentials) -> None:
        self._broker.unwatch(self._session, [UUID(uid).bytes for uid in call["uids"]])

    async def _status(self, call: dict[str, Any], by: Credentials) -> str:
        return self._broker.status(UUID(call["uid"]).bytes).value

    async def _silence(self, call: dict[str, Any], by: Credentials) -> float | None:
        return self._broker.silence(UUID(call["uid"]).bytes)

    async def _touch(self, call: dict[str, Any], by: Credentials) -> None:
        self._broker.touch(UUID(call["uid"]).bytes)

    async def _stats(self, call: dict[str, Any], by: Credentials) -> dict[str, int]:
        return asdict(self._broker.stats(UUID(call["uid"]).bytes))

    async def _discover(self, call: dict[str, Any], by: Credentials) -> Any:
        found = self._broker.discover(call["agent"], bool(call["allow_subclasses"]))
        return [[record.uid.hex(), record.name] for record in found]

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        payload = envelope.payload
        size = len(payload)
        flags = envelope.flags
        if flags & LARGE:
            self._transfers.deliver(envelope)
        if envelope.redelivered:
            flags |= protocol.REDELIVERED
        head = protocol.message_head(
            protocol.DELIVER,
            flags,
            envelope.number,
            0,
            envelope.dest,
            envelope.src,
            envelope.tag,
            size,
        )
        self._writer.put_parts(size + _HEAD, head, payload)

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
        self._credentials.pop(uid, None)
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


def _record(item: dict[str, Any], creator: str) -> MailboxRecord:
    name, classes = item.get("name"), tuple(item.get("classes", ()))
    for text in classes if name is None else (name, *classes):
        text.encode()  # it is text, and such as can be stored
    uid = UUID(item["uid"]).bytes
    return MailboxRecord(uid, bool(item["agent"]), name, classes, creator=creator)


_METHODS: dict[str, Method] = {
    "register": Connection._register,
    "attach": Connection._attach,
    "detach": Connection._detach,
    "terminate": Connection._terminate,
    "status": Connection._status,
    "silence": Connection._silence,
    "touch": Connection._touch,
    "stats": Connection._stats,
    "discover": Connection._discover,
    "offer": Connection._offer,
    "withdraw": Connection._withdraw,
    "missing": Connection._missing,
    "watch": Connection._watch,
    "unwatch": Connection._unwatch,
}


def _method(content: Any) -> Method:
    try:
        return _METHODS[content["method"]]
    except _SENSELESS as error:
        raise ProtocolError(f"a call that makes no sense: {error!r}") from error
