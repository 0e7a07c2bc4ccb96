"""The hosted exchange as a web application: who is let in, and to what."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial

from aiohttp import WSCloseCode, web

from academy.exception import (
    AcademyError,
    ExchangeError,
    IncompatibleNetworkProtocolError,
    ProtocolError,
    QuotaExceededError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.cloud import login, protocol
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.connection import Connection
from academy.exchange.cloud.guard import Guard
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.cloud.operations.logs import current_client
from academy.exchange.cloud.operations.routes import Operations
from academy.exchange.cloud.security.auth import Authority, Credentials, bearer
from academy.exchange.cloud.upgrade import Answered, upgraded
from academy.exchange.cloud.v1 import routes as v1_routes
from academy.exchange.cloud.v1.http import is_open
from academy.exchange.cloud.writer import CHUNK_BYTES
from academy.exchange.errors import pack_error

logger = logging.getLogger(__name__)

ENDING = "the exchange is about to end: connect again"
GROUP = 100
"""Clients that are disconnected at once when it ends."""
SERVER: web.AppKey[Server] = web.AppKey("server")
"""Where an application keeps its server."""
PATHS = frozenset({protocol.PATH, *v1_routes.PATHS})
"""Paths of what belongs to a namespace."""


def create_app(config: ExchangeServingConfig | None = None) -> web.Application:
    """Make the exchange's web application; it opens its store when it starts."""
    config = config or ExchangeServingConfig()
    server = Server(config)
    app = web.Application(middlewares=[_unless_it_has_gone])
    app[SERVER] = server
    app.router.add_get(protocol.PATH, server.connect)
    server.operations.add_routes(app)
    globus = config.auth.globus()
    v1 = v1_routes.add_routes(app, server.namespaces, server.authority, globus)
    if globus is not None:
        login.add_route(app, server.authority, globus)
    guard = Guard(server.authority, server.operations.connections, v1.cut_void)
    app.cleanup_ctx.extend([server.run, guard.run])
    if (ownership := server.namespaces.ownership) is not None:
        from academy.exchange.cloud.relay import Relay

        identify = partial(
            v1_routes.identify, authority=server.authority, globus=globus
        )
        relay = Relay(ownership, identify, PATHS, server.max_frame_bytes)
        app.middlewares.append(relay.to_owner)
        app.cleanup_ctx.append(relay.run)
    return app


@web.middleware
async def _unless_it_has_gone(
    request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Make no error of a client that vanishes before it is answered."""
    try:
        return await handler(request)
    except ConnectionError:
        if is_open(request):
            raise
        return web.Response()  # which nobody gets


class Server:
    """What the connections of one exchange share."""

    def __init__(self, config: ExchangeServingConfig) -> None:
        self.config = config
        self.authority: Authority = config.authority()
        own = {name: config.broker_limits(name) for name in config.namespaces}
        self.namespaces = Namespaces(config.backend, config.broker_limits(), own)
        self.operations = Operations(config.operations, self.namespaces, self.authority)

    @property
    def max_frame_bytes(self) -> int:
        """Bytes of the largest WebSocket message: a large record behind small ones."""
        message = self.namespaces.limits.spill_bytes + protocol.MESSAGE.size
        return CHUNK_BYTES + max(message, protocol.CALL_BYTES)

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Keep the stores open for as long as the application runs."""
        await self.authority.refresh()
        await self.namespaces.open()
        app.on_shutdown.append(self._drain)
        yield
        await self.namespaces.close()
        await self.authority.close()

    async def _drain(self, _: web.Application) -> None:
        """Confirm what has arrived and ask clients to connect anew.

        They go in groups, so that those of another server do not come all at once.
        """
        self.operations.draining = True
        # So long that confirmations go out; who keeps sending must not keep us.
        with suppress(TimeoutError):
            await asyncio.wait_for(self.namespaces.settle(), 1)
        left = list(self.operations.connections)
        random.shuffle(left)
        # A quarter of the time is for these pauses.
        longest = self.config.operations.drain_seconds / 4 / (1 + len(left) // GROUP)
        while left:
            group, left = left[:GROUP], left[GROUP:]
            closing = [c.close(WSCloseCode.SERVICE_RESTART, ENDING) for c in group]
            await asyncio.gather(*closing, return_exceptions=True)
            if left:
                await asyncio.sleep(random.uniform(0, min(longest, 0.2)))

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Serve one client's WebSocket."""
        current_client.set(None)  # of the request before, on the same connection
        try:
            if self.operations.draining:
                raise StorageError(ENDING)
            session = bytes.fromhex(request.headers.get(protocol.SESSION_HEADER, ""))
            credentials = self._admit(request, session)
            current_client.set(credentials)
            if len(session) != 16:
                raise ProtocolError(
                    f"{protocol.SESSION_HEADER} has to be 32 hex digits"
                )
            broker = await self.namespaces.broker(credentials.namespace)
            broker.check_room(session)
            if not web.WebSocketResponse().can_prepare(request):
                raise ProtocolError("this is not the handshake of a WebSocket")
        except QuotaExceededError as error:
            return self._refuse(request, 429, error)
        except UnauthorizedError as error:
            return self._refuse(request, 401, error)
        except StorageError as error:
            return self._refuse(request, 503, error)
        except (ExchangeError, IncompatibleNetworkProtocolError) as error:
            return self._refuse(request, 400, error)
        except ValueError as error:
            return self._refuse(request, 400, ProtocolError(str(error)))
        # Without a pause since there was room for it.
        with upgraded(
            request,
            heartbeat=self.config.heartbeat_interval,
            max_message_bytes=self.max_frame_bytes,
        ) as websocket:
            rate = self.namespaces.rate(credentials.namespace)
            connection = Connection(
                broker, self.authority, websocket, session, credentials, rate
            )
            self.operations.connections[connection] = credentials.namespace
            logger.debug("connected from %s", request.remote)
            try:
                await connection.serve()
            finally:
                logger.debug("disconnected from %s", request.remote)
                self.operations.disconnected(connection)
        return Answered()

    def _admit(self, request: web.Request, session: bytes) -> Credentials:
        version = request.headers.get(protocol.PROTOCOL_HEADER)
        if version != str(protocol.PROTOCOL):
            raise IncompatibleNetworkProtocolError(version, protocol.PROTOCOL)
        return self.authority.verify(bearer(request.headers), session)

    def _refuse(
        self, request: web.Request, status: int, error: AcademyError
    ) -> web.Response:
        self.operations.turned_away[type(error).__name__] += 1
        if not self.operations.draining:
            logger.warning("turned away %s: %s", request.remote, error)
        return web.json_response(pack_error(error), status=status)
