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
    AcademyError,
    BadEntityIdError,
    ExchangeError,
    ForbiddenError,
    MailboxTerminatedError,
    ProtocolError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.broker import Broker
from academy.exchange.cloud import v1_http
from academy.exchange.cloud.auth import Authority, Credentials
from academy.exchange.cloud.v1_http import Parameters
from academy.exchange.cloud.v1_mailbox import V1Mailbox
from academy.exchange.cloud.v1_messages import read_message
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.store import MailboxRecord
from academy.identifier import EntityId
from academy.stats import AgentStats

PREFIXES = ("", "/v1")
KEEP_ALIVE = 15.0
"""Seconds of silence after which a stream carries a comment."""
GRACE = 30.0
"""Seconds without a request after which an owner counts as away."""
RETRY = 1000
"""Milliseconds after which a client is to open a stream again."""

Handler = Callable[
    ["V1Server", web.Request, Credentials, Parameters], Awaitable[web.StreamResponse]
]


def add_routes(
    app: web.Application,
    broker: Broker,
    authority: Authority,
    *,
    grace: float = GRACE,
) -> None:
    """Serve protocol v1 under `/` and under `/v1`.

    Args:
        app: where to.
        broker: keeps the mailboxes.
        authority: knows who may do what.
        grace: seconds without a request after which an owner counts as away.
    """
    server = V1Server(broker, authority, grace)
    for prefix in PREFIXES:
        for (method, path), handler in _ROUTES.items():
            app.router.add_route(method, prefix + path, server.answers(handler))
    app.cleanup_ctx.append(server.run)
    app.on_shutdown.append(server.stop)


class V1Server:
    """Holds the mailboxes of v1 clients at one broker while these come and go."""

    def __init__(self, broker: Broker, authority: Authority, grace: float) -> None:
        self._grace = grace
        self._broker = broker
        self._authority = authority
        self._boxes: dict[bytes, V1Mailbox] = {}
        self._stopping = False

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Look after owners that go away, for as long as the application runs."""
        watching = asyncio.get_running_loop().create_task(self._watch())
        yield
        watching.cancel()
        await asyncio.wait([watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._grace / 4)
            now = asyncio.get_running_loop().time()
            for uid, box in list(self._boxes.items()):
                if box.error is not None and box.closing is None:
                    del self._boxes[uid]
                elif not box.users and now - box.last_used > self._grace:
                    await self._let_go(box)

    async def _let_go(self, box: V1Mailbox) -> None:
        with suppress(ExchangeError):
            await box.close()
        if self._boxes.get(box.uid) is box:
            del self._boxes[box.uid]

    async def stop(self, _: web.Application) -> None:
        """End the streams; what was not received stays for when the clients return."""
        self._stopping = True
        closing = [self._let_go(box) for box in self._boxes.values()]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), 1)

    # --- every request

    def answers(
        self, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a route: who asks, for what, and what an error is called in v1."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                if self._stopping:
                    raise StorageError("the exchange is stopping")
                header = request.headers.get("Authorization", "")
                scheme, _, token = header.partition(" ")
                try:
                    by = self._authority.verify(token if scheme == "Bearer" else None)
                except UnauthorizedError as error:
                    return v1_http.refusal(error, 403 if token else 401)
                limit = self._broker.limits.max_message_bytes
                parameters = await v1_http.read_parameters(request, limit)
                return await handler(self, request, by, parameters)
            except AcademyError as error:
                return v1_http.refusal(error)

        return answer

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
            if self._broker.silence(uid) == 0.0:
                raise ForbiddenError(
                    f"{owner} is attached by a client of a newer protocol"
                )
            box = self._boxes[uid] = V1Mailbox(self._broker, uid)
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
        status = self._broker.status(uid)
        if status is MailboxStatus.MISSING:
            raise BadEntityIdError(owner)
        if not by.may_attach(uid, self._broker.creator(uid)):
            raise ForbiddenError("the token does not open this mailbox")
        if status is MailboxStatus.TERMINATED:
            raise MailboxTerminatedError(owner)

    async def register(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST /mailbox."""
        owner = v1_http.owner(parameters)
        classes = v1_http.parameter(parameters, "agent", str, "")
        if not classes.isprintable():
            raise ProtocolError(f"not the names of classes: {classes!r:.80}")
        record = MailboxRecord(
            owner.uid.bytes,
            owner.role == "agent",
            owner.name,
            tuple(name for name in classes.split(",") if name),
            creator=by.subject,
        )
        await self._broker.register([record])
        return web.Response()

    async def status(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox."""
        status = self._broker.status(v1_http.owner(parameters).uid.bytes)
        return web.json_response({"status": status.value})

    async def terminate(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """DELETE /mailbox."""
        uid = v1_http.owner(parameters).uid.bytes
        creator = self._broker.creator(uid)
        if creator and not by.may_terminate(uid, creator):
            raise ForbiddenError("the token does not terminate this mailbox")
        await self._broker.terminate(uid)
        return web.Response()

    async def discover(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /discover."""
        name = v1_http.parameter(parameters, "agent", str)
        subclasses = v1_http.parameter(parameters, "allow_subclasses", bool)
        found = self._broker.discover(name, subclasses)
        uids = ",".join(str(UUID(bytes=record.uid)) for record in found)
        return web.json_response({"agent_ids": uids})

    async def touch(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST /mailbox/heartbeat."""
        owner = v1_http.owner(parameters)
        self._check(owner, by)
        self._broker.touch(owner.uid.bytes)
        if (box := self._boxes.get(owner.uid.bytes)) is not None:
            box.last_used = asyncio.get_running_loop().time()
        return web.Response()

    async def silence(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/heartbeat."""
        owner = self._known(parameters)
        return web.json_response({"heartbeat": self._broker.silence(owner.uid.bytes)})

    async def stats(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/stats."""
        stats: AgentStats = self._broker.stats(self._known(parameters).uid.bytes)
        return web.json_response(asdict(stats))

    async def shared(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """GET /mailbox/share."""
        self._known(parameters)
        return web.json_response({"group_ids": []})

    async def share(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """POST and DELETE /mailbox/share."""
        self._known(parameters)
        v1_http.parameter(parameters, "group_id", str)
        raise ForbiddenError(
            "this exchange shares no mailboxes: its tokens belong to no groups"
        )

    def _known(self, parameters: Parameters) -> EntityId:
        owner = v1_http.owner(parameters)
        if self._broker.status(owner.uid.bytes) is MailboxStatus.MISSING:
            raise BadEntityIdError(owner)
        return owner

    # --- messages

    async def send(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.Response:
        """PUT /message."""
        message = read_message(v1_http.parameter(parameters, "message", str))
        async with self._box(message.src, by) as box:
            await box.post(message)
        return web.Response()

    async def receive(
        self, request: web.Request, by: Credentials, parameters: Parameters
    ) -> web.StreamResponse:
        """GET /message."""
        owner, timeout = v1_http.owner(parameters), v1_http.timeout(parameters)
        async with self._box(owner, by) as box:
            reader = box.read()
            while (envelope := await reader.next(timeout)) is not None:
                text = box.text(envelope)
                if text is None:
                    continue
                response = web.json_response({"message": text})
                with suppress(ConnectionError):
                    if v1_http.is_open(request):
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
        owner, timeout = v1_http.owner(parameters), v1_http.timeout(parameters)
        async with self._box(owner, by) as box:
            headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
            response = web.StreamResponse(headers=headers)
            with suppress(ConnectionError):
                await response.prepare(request)
                v1_http.notice_death(request)
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
        elif (text := box.text(envelope)) is not None:
            await response.write(b"data: %b\n\n" % text.encode())
            box.received(envelope)
            ends = loop.time() + timeout


_ROUTES: dict[tuple[str, str], Handler] = {
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
