"""What clients ask of an exchange, beside sending and receiving messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from typing import Any
from uuid import UUID

from academy.exception import (
    AcademyError,
    ForbiddenError,
    ProtocolError,
    StorageError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud import protocol
from academy.exchange.cloud.security.auth import Authority, Credentials
from academy.exchange.cloud.speakers import Speakers
from academy.exchange.cloud.transfers import Transfers
from academy.exchange.cloud.writer import Writer
from academy.exchange.errors import pack_error
from academy.exchange.mailbox import Session
from academy.exchange.presence import unpack_place
from academy.exchange.store import ADDRESS_FLAGS, Envelope, MailboxRecord

MAX_REASON = 10_000
"""Characters that are kept of the reason for a termination."""
MOST_GATHERED = 1_000_000
"""Requests that a client names in steps."""

_SENSELESS = (LookupError, TypeError, ValueError, AttributeError, OverflowError)

Method = Callable[["Requests", dict[str, Any], Credentials], Coroutine[Any, Any, Any]]
Call = tuple[int, Method, dict[str, Any]]


class Requests:
    """Answers the calls of one client."""

    def __init__(
        self,
        broker: Broker,
        authority: Authority,
        session: Session,
        speakers: Speakers,
        transfers: Transfers,
        writer: Writer,
    ) -> None:
        self._broker = broker
        self._authority = authority
        self._session = session
        self._speakers = speakers
        self._transfers = transfers
        self._writer = writer
        self._gathered: dict[bytes, list[Any]] = {}

    async def answer(self, calls: list[Call]) -> None:
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
            result = await method(self, content, self._speakers.speaker(content))
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
        if method is Requests._attach and "result" in reply:
            uids = [UUID(item["uid"]).bytes for item in content["mailboxes"]]
            self._broker.start(self._session, uids)
            await self._speakers.renew(uids)

    # --- calls

    async def _register(self, call: dict[str, Any], by: Credentials) -> Any:
        if "token" in call:
            by = self._speakers.verify(call["token"])
        records = [_record(item, by.subject) for item in call["mailboxes"]]
        await self._broker.register(records)
        return [self._token(record, by) for record in records]

    def _token(self, record: MailboxRecord, by: Credentials) -> str | None:
        # A user opens mailboxes of users with the user's own token.
        if by.mailbox is None and not record.agent:
            return None
        return self._authority.mailbox_token(record.uid, by)

    async def _attach(self, call: dict[str, Any], by: Credentials) -> Any:
        return await asyncio.gather(*map(self._attach_one, call["mailboxes"]))

    async def _attach_one(self, item: dict[str, Any]) -> dict[str, Any] | None:
        uid = UUID(item["uid"]).bytes
        try:
            token = item.get("token")
            credentials = self._speakers.verify(token) if token else self._speakers.user
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
            self._speakers.admit(uid, credentials)
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
        self._speakers.forget(uid)
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
        flags = int(call["flags"]) & ADDRESS_FLAGS
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


def _record(item: dict[str, Any], creator: str) -> MailboxRecord:
    name, classes = item.get("name"), tuple(item.get("classes", ()))
    for text in classes if name is None else (name, *classes):
        text.encode()  # it is text, and such as can be stored
    uid = UUID(item["uid"]).bytes
    return MailboxRecord(uid, bool(item["agent"]), name, classes, creator=creator)


_METHODS: dict[str, Method] = {
    "register": Requests._register,
    "attach": Requests._attach,
    "detach": Requests._detach,
    "terminate": Requests._terminate,
    "status": Requests._status,
    "silence": Requests._silence,
    "touch": Requests._touch,
    "stats": Requests._stats,
    "discover": Requests._discover,
    "offer": Requests._offer,
    "withdraw": Requests._withdraw,
    "missing": Requests._missing,
    "watch": Requests._watch,
    "unwatch": Requests._unwatch,
}


def read_call(record: memoryview) -> Call:
    """Unpack a CALL record: its number, what is asked for, and the particulars.

    Raises:
        ProtocolError: nothing of the kind can be asked for.
    """
    number, content = protocol.read_numbered(record)
    try:
        return number, _METHODS[content["method"]], content
    except _SENSELESS as error:
        raise ProtocolError(f"a call that makes no sense: {error!r}") from error
