"""Protocol v1 (REST and SSE) on our server, for clients that speak nothing newer.

Parameters travel in a JSON body on every method; an entity is JSON text inside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from uuid import UUID

from aiohttp import web

from academy.exception import (
    BadEntityIdError,
    ExchangeError,
    ForbiddenError,
    MailboxTerminatedError,
    ProtocolError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud.security.auth import Credentials
from academy.exchange.cloud.v1 import http
from academy.exchange.cloud.v1.http import Parameters
from academy.exchange.cloud.v1.mailbox import V1Mailbox
from academy.exchange.cloud.v1.messages import read_message
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.store import MailboxRecord
from academy.identifier import EntityId
from academy.stats import AgentStats

KEEP_ALIVE = 15.0
"""Seconds of silence after which a stream carries a comment."""
RETRY = 1000
"""Milliseconds after which a client is to open a stream again."""

Handler = Callable[
    ["V1Server", web.Request, Credentials, Parameters], Awaitable[web.StreamResponse]
]


class V1Server:
    """Holds the mailboxes of v1 clients at one broker while these come and go.

    Args:
        broker: keeps the mailboxes.
        has_groups: some who ask are members of groups.
    """

    def __init__(self, broker: Broker, has_groups: bool) -> None:
        self.broker = broker
        self._has_groups = has_groups
        self._boxes: dict[bytes, V1Mailbox] = {}

    async def let_go_of_silent(self, grace: float) -> None:
        """Let go of mailboxes whose owners have asked nothing for `grace` seconds."""
        now = asyncio.get_running_loop().time()
        for uid, box in list(self._boxes.items()):
            if box.error is not None and box.closing is None:
                del self._boxes[uid]
            elif not box.users and now - box.last_used > grace:
                await self._let_go(box)

    async def _let_go(self, box: V1Mailbox) -> None:
        with suppress(ExchangeError):
            await box.close()
        if self._boxes.get(box.uid) is box:
            del self._boxes[box.uid]

    async def stop(self) -> None:
        """End the streams; what was not received stays for when the clients return."""
        closing = [self._let_go(box) for box in self._boxes.values()]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), 1)

    # --- mailboxes

    @asynccontextmanager
    async def _box(self, owner: EntityId, by: Credentials) -> AsyncIterator[V1Mailbox]:
        """Hold a mailbox for its owner."""
        uid = owner.uid.bytes
        self._check(owner, by)
        while (box := self._boxes.get(uid)) is not None and box.error is not None:
            if box.closing is not None:
                await asyncio.wait([box.closing])
            if self._boxes.get(uid) is box:
                del self._boxes[uid]
        if box is None:
            self._check(owner, by)
            if self.broker.silence(uid) == 0.0:
                raise ForbiddenError(
                    f"{owner} is attached by a client of a newer protocol"
                )
            box = self._boxes[uid] = V1Mailbox(self.broker, uid)
        box.users += 1
        try:
            await asyncio.shield(box.opened)
            yield box
        finally:
            box.users -= 1
            box.last_used = asyncio.get_running_loop().time()

    def _check(self, owner: EntityId, by: Credentials) -> None:
        """Refuse who may not speak for a mailbox."""
        uid = owner.uid.bytes
        status = self._status(owner, by)
        if status is MailboxStatus.MISSING:
            raise BadEntityIdError(owner)
        if not by.may_attach(uid, self.broker.creator(uid)):
            raise ForbiddenError("the token does not open this mailbox")
        if status is MailboxStatus.TERMINATED:
            raise MailboxTerminatedError(owner)

    async def register(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST /mailbox."""
        owner = http.owner(parameters)
        if by.groups is not None and owner.role == "agent":
            raise ForbiddenError(f"guests register no agents in {by.namespace!r}")
        classes = http.parameter(parameters, "agent", str, "")
        if not classes.isprintable():
            raise ProtocolError(f"not the names of classes: {classes!r:.80}")
        record = MailboxRecord(
            owner.uid.bytes,
            owner.role == "agent",
            owner.name,
            tuple(name for name in classes.split(",") if name),
            creator=by.subject,
        )
        await self.broker.register([record])
        return web.Response()

    async def status(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox."""
        status = self._status(http.owner(parameters), by)
        return web.json_response({"status": status.value})

    def _status(self, owner: EntityId, by: Credentials) -> MailboxStatus:
        if not self._sees(owner.uid.bytes, by):
            return MailboxStatus.MISSING
        return self.broker.status(owner.uid.bytes)

    def _sees(self, uid: bytes, by: Credentials) -> bool:
        return by.may_see(self.broker.creator(uid), self.broker.groups(uid))

    async def terminate(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """DELETE /mailbox."""
        uid = http.owner(parameters).uid.bytes
        creator = self.broker.creator(uid)
        if not self._sees(uid, by):
            return web.Response()
        if creator and not by.may_terminate(uid, creator):
            raise ForbiddenError("the token does not terminate this mailbox")
        await self.broker.terminate(uid)
        return web.Response()

    async def discover(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /discover."""
        name = http.parameter(parameters, "agent", str)
        subclasses = http.parameter(parameters, "allow_subclasses", bool)
        found = self.broker.discover(name, subclasses)
        uids = ",".join(
            str(UUID(bytes=record.uid))
            for record in found
            if self._sees(record.uid, by)
        )
        return web.json_response({"agent_ids": uids})

    async def touch(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST /mailbox/heartbeat."""
        owner = http.owner(parameters)
        self._check(owner, by)
        self.broker.touch(owner.uid.bytes)
        if (box := self._boxes.get(owner.uid.bytes)) is not None:
            box.last_used = asyncio.get_running_loop().time()
        return web.Response()

    async def silence(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/heartbeat."""
        owner = self._known(parameters, by)
        return web.json_response({"heartbeat": self.broker.silence(owner.uid.bytes)})

    async def stats(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/stats."""
        stats: AgentStats = self.broker.stats(self._known(parameters, by).uid.bytes)
        return web.json_response(asdict(stats))

    async def shared(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/share."""
        owner = http.owner(parameters)
        self._check(owner, by)
        groups = self.broker.groups(owner.uid.bytes)
        return web.json_response({"group_ids": sorted(groups)})

    async def share(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST and DELETE /mailbox/share."""
        owner, group = http.owner(parameters), http.group(parameters)
        self._check(owner, by)
        if not self._has_groups:
            raise ForbiddenError(
                "this exchange shares no mailboxes: its tokens belong to no groups"
            )
        await self.broker.share(owner.uid.bytes, group, request.method == "POST")
        return web.Response()

    def _known(self, parameters: Parameters, by: Credentials) -> EntityId:
        owner = http.owner(parameters)
        if self._status(owner, by) is MailboxStatus.MISSING:
            raise BadEntityIdError(owner)
        return owner

    # --- messages

    async def send(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """PUT /message."""
        message = read_message(http.parameter(parameters, "message", str))
        async with self._box(message.src, by) as box:
            if not self._sees(message.dest.uid.bytes, by):
                raise BadEntityIdError(message.dest)
            await box.post(message)
        return web.Response()

    async def receive(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.StreamResponse:
        """GET /message."""
        owner, timeout = http.owner(parameters), http.timeout(parameters)
        async with self._box(owner, by) as box:
            reader = box.read()
            while (envelope := await reader.next(timeout)) is not None:
                text = await box.text(envelope)
                if text is None:
                    continue
                response = web.json_response({"message": text})
                with suppress(ConnectionError):
                    if http.is_open(request):
                        await response.prepare(request)
                        await response.write_eof()
                        box.received(envelope)
                return response
            self._check(owner, by)
        return web.Response(status=408, text="no message has come")

    async def listen(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.StreamResponse:
        """GET /mailbox/listen."""
        owner, timeout = http.owner(parameters), http.timeout(parameters)
        async with self._box(owner, by) as box:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            response = web.StreamResponse(headers=headers)
            with suppress(ConnectionError):
                await response.prepare(request)
                http.notice_death(request)
                await response.write(b"retry: %d\n\n" % RETRY)
                await _stream(box, response, timeout)
                await response.write_eof()
        return response


async def _stream(box: V1Mailbox, response: web.StreamResponse, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    reader = box.read()
    ends = loop.time() + timeout
    while box.is_reading(reader) and (left := ends - loop.time()) > 0:
        envelope = await reader.next(min(left, KEEP_ALIVE))
        if envelope is None:
            await response.write(b":\n\n")
        elif (text := await box.text(envelope)) is not None:
            await response.write(b"data: %b\n\n" % text.encode())
            box.received(envelope)
            ends = loop.time() + timeout


ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/mailbox"): V1Server.register,
    ("GET", "/mailbox"): V1Server.status,
    ("DELETE", "/mailbox"): V1Server.terminate,
    ("PUT", "/message"): V1Server.send,
    ("GET", "/message"): V1Server.receive,
    ("GET", "/mailbox/listen"): V1Server.listen,
    ("GET", "/discover"): V1Server.discover,
    ("POST", "/mailbox/heartbeat"): V1Server.touch,
    ("GET", "/mailbox/heartbeat"): V1Server.silence,
    ("GET", "/mailbox/stats"): V1Server.stats,
    ("GET", "/mailbox/share"): V1Server.shared,
    ("POST", "/mailbox/share"): V1Server.share,
    ("DELETE", "/mailbox/share"): V1Server.share,
}
