"""Relays what belongs to a namespace that lives on another server.

Bytes go through as they come: whatever the client and the owner say to each other,
heartbeats included, is theirs. No more is read from one side than the other one takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from academy.exception import AcademyError, StorageError
from academy.exchange.cloud.ownership import Ownership, Peer
from academy.exchange.cloud.security.auth import Credentials
from academy.exchange.cloud.security.pinning import trust
from academy.exchange.cloud.v1 import http as v1_http

logger = logging.getLogger(__name__)

RELAYED_HEADER = "Academy-Relayed"
"""Says that a request comes from another server, which must not get it back."""
CONNECT_TIMEOUT = 5.0
"""Seconds until the owner has to have taken a connection."""
LOOK_INTERVAL = 0.5
"""Seconds after which a relay that waits for the owner looks after its client."""

_OF_ONE_HOP = {
    *("connection", "content-length", "host", "keep-alive", "proxy-authorization"),
    *("te", "trailer", "transfer-encoding", "upgrade"),
}
_OF_THE_HANDSHAKE = "sec-websocket-"

Headers = list[tuple[str, str]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


class Relay:
    """Sends each request to the server where its namespace lives.

    Args:
        ownership: knows where that is.
        identify: tells who asks, and hence of which namespace a request is.
        paths: the routes that belong to a namespace.
        max_frame_bytes: largest WebSocket message of a client.
    """

    def __init__(
        self,
        ownership: Ownership,
        identify: Callable[[web.Request], Awaitable[Credentials]],
        paths: Container[str],
        max_frame_bytes: int,
    ) -> None:
        self._ownership = ownership
        self._identify = identify
        self._paths = paths
        self._max_frame_bytes = max_frame_bytes
        self._stopping = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Be ready to relay for as long as the application runs."""
        self._http = aiohttp.ClientSession(
            auto_decompress=False,
            # One connection per client, as the client has one.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        )
        app.on_shutdown.append(self._stop)
        yield
        await self._http.close()

    async def _stop(self, _: web.Application) -> None:
        self._stopping.set()

    @web.middleware
    async def to_owner(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Answer a request here or, if it is none of ours, by its owner."""
        try:
            if self._stopping.is_set():
                raise StorageError("this server is stopping")
            peer = await self._owner(request)
        except StorageError as error:
            return _try_again(str(error))
        if peer is None:
            return await handler(request)
        if RELAYED_HEADER in request.headers:
            return _try_again("the namespace has just moved")
        try:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                return await self._relay_websocket(request, peer)
            return await self._relay_request(request, peer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.warning("cannot relay to %s: %s", peer.url, error)
            return _try_again("the server of this namespace does not answer")

    async def _owner(self, request: web.Request) -> Peer | None:
        resource = request.match_info.route.resource
        if resource is None or resource.canonical not in self._paths:
            return None
        try:
            by = await self._identify(request)
        except StorageError:
            raise
        except AcademyError:
            return None  # whoever answers it says so
        if by.groups is not None:  # guests open no namespaces
            return await self._ownership.owner(by.namespace)
        handed_on = RELAYED_HEADER in request.headers
        return await self._ownership.elsewhere(by.namespace, handed_on=handed_on)

    # --- WebSockets

    async def _relay_websocket(
        self, request: web.Request, peer: Peer
    ) -> web.StreamResponse:
        assert self._http is not None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                far = await self._http.ws_connect(
                    peer.url + request.path_qs,
                    headers=_forwarded(request.headers),
                    autoping=False,
                    autoclose=False,
                    compress=0,
                    max_msg_size=0,  # it is one of us
                    ssl=trust(peer.fingerprint, verify=True),
                    timeout=aiohttp.ClientWSTimeout(ws_close=1),
                )
        except aiohttp.WSServerHandshakeError as error:
            # Why is in a body, which nobody gets with a handshake: clients ask again.
            return web.Response(status=error.status)
        near = web.WebSocketResponse(
            autoping=False,
            autoclose=False,
            compress=False,
            max_msg_size=self._max_frame_bytes,
            timeout=1,
        )
        try:
            await near.prepare(request)
            code, reason = await self._pump_both(near, far)
            await near.close(code=code, message=reason)
            await far.close(code=code, message=reason)
        finally:
            await far.close()
        return near

    async def _pump_both(
        self, near: web.WebSocketResponse, far: aiohttp.ClientWebSocketResponse
    ) -> tuple[int, bytes]:
        """Carry messages both ways until one side closes; return code and reason."""
        up = asyncio.create_task(_pump(near, far))
        down = asyncio.create_task(_pump(far, near))
        stop = asyncio.create_task(self._stopping.wait())
        tasks = (up, down, stop)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        if ends[2] is True:
            return WSCloseCode.SERVICE_RESTART, b"this server is about to end"
        for end in ends[:2]:
            if isinstance(end, tuple) and end[0] is not None:
                return end[0], end[1]
        # The owner is gone without a word, and so is whatever was on its way.
        return WSCloseCode.SERVICE_RESTART, b"the server of this namespace is gone"

    # --- requests of protocol v1

    async def _relay_request(
        self, request: web.Request, peer: Peer
    ) -> web.StreamResponse:
        assert self._http is not None
        async with self._http.request(
            request.method,
            peer.url + request.path_qs,
            headers=_forwarded(request.headers),
            data=request.content if request.body_exists else None,
            allow_redirects=False,
            ssl=trust(peer.fingerprint, verify=True),
        ) as reply:
            response = web.StreamResponse(status=reply.status, reason=reply.reason)
            response.headers.extend(_of_many_hops(reply.headers))
            if "Content-Length" in reply.headers:
                response.content_length = int(reply.headers["Content-Length"])
            try:
                await response.prepare(request)
                async for chunk in self._chunks(reply, request):
                    await response.write(chunk)
                await response.write_eof()
            except (aiohttp.ClientError, ConnectionError) as error:
                logger.debug("a relayed answer was cut: %s", error)
                if request.transport is not None:
                    request.transport.close()  # so that nobody takes it for whole
            return response

    async def _chunks(
        self, reply: aiohttp.ClientResponse, request: web.Request
    ) -> AsyncIterator[bytes]:
        """Read on until the answer, its reader, or this server ends."""
        while not self._stopping.is_set() and v1_http.is_open(request):
            reading = asyncio.ensure_future(reply.content.readany())
            try:
                while not (await asyncio.wait([reading], timeout=LOOK_INTERVAL))[0]:
                    if self._stopping.is_set() or not v1_http.is_open(request):
                        return
                chunk = reading.result()
            finally:
                reading.cancel()
            if not chunk:
                return
            yield chunk


async def _pump(source: WebSocket, sink: WebSocket) -> tuple[int | None, bytes]:
    """Carry messages one way until the source closes.

    Returns:
        Code and reason of its close frame; no code if it is gone without a word.
    """
    while True:
        message = await source.receive()
        if message.type is WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        elif message.type is WSMsgType.PING:
            await sink.ping(message.data)
        elif message.type is WSMsgType.PONG:
            await sink.pong(message.data)
        elif message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is WSMsgType.CLOSE:
            return message.data or WSCloseCode.OK, (message.extra or "").encode()
        else:
            return None, b""


def _of_many_hops(headers: Mapping[str, str]) -> Headers:
    return [item for item in headers.items() if item[0].lower() not in _OF_ONE_HOP]


def _forwarded(headers: Mapping[str, str]) -> Headers:
    kept = [
        (name, value)
        for name, value in _of_many_hops(headers)
        if not name.lower().startswith(_OF_THE_HANDSHAKE)
    ]
    return [*kept, (RELAYED_HEADER, "1")]


def _try_again(reason: str) -> web.Response:
    return web.Response(status=503, headers={"Retry-After": "1"}, text=reason)
