"""The hosted exchange as a web application: who is let in, and to what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

from aiohttp import WSCloseCode, web

from academy.exception import (
    AcademyError,
    ExchangeError,
    IncompatibleNetworkProtocolError,
    ProtocolError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.cloud import protocol, v1_routes
from academy.exchange.cloud.auth import Authority, Credentials
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.connection import Connection
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.errors import pack_error

logger = logging.getLogger(__name__)


def create_app(config: ExchangeServingConfig | None = None) -> web.Application:
    """Make the exchange's web application; it opens its store when it starts."""
    config = config or ExchangeServingConfig()
    server = Server(config)
    app = web.Application()
    app.router.add_get(protocol.PATH, server.connect)
    v1_routes.add_routes(app, server.namespaces, server.authority)
    app.cleanup_ctx.append(server.run)
    return app


class Server:
    """What the connections of one exchange share."""

    def __init__(self, config: ExchangeServingConfig) -> None:
        self.config = config
        self.authority: Authority = config.auth.authority()
        limits = config.limits.broker_limits()
        self.namespaces = Namespaces(config.backend, limits)
        self._connections: set[Connection] = set()

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Keep the stores open for as long as the application runs."""
        await self.namespaces.open()
        app.on_shutdown.append(self._disconnect_all)
        yield
        await self.namespaces.close()

    async def _disconnect_all(self, _: web.Application) -> None:
        # So long that confirmations go out; who keeps sending must not keep us.
        with suppress(TimeoutError):
            await asyncio.wait_for(self.namespaces.settle(), 1)
        closing = [c.close(WSCloseCode.GOING_AWAY) for c in self._connections]
        await asyncio.gather(*closing, return_exceptions=True)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Serve one client's WebSocket."""
        try:
            credentials = self._admit(request)
            session = bytes.fromhex(request.headers.get(protocol.SESSION_HEADER, ""))
            if len(session) != 16:
                raise ProtocolError(
                    f"{protocol.SESSION_HEADER} has to be 32 hex digits"
                )
            broker = await self.namespaces.broker(credentials.namespace)
        except UnauthorizedError as error:
            return _refusal(401, error)
        except StorageError as error:
            return _refusal(503, error)
        except (ExchangeError, IncompatibleNetworkProtocolError) as error:
            return _refusal(400, error)
        except ValueError as error:
            return _refusal(400, ProtocolError(str(error)))
        limit = self.config.limits.max_message_bytes
        ws = web.WebSocketResponse(
            max_msg_size=limit + 2 * 1_000_000,
            heartbeat=self.config.heartbeat_interval,
            compress=False,
        )
        await ws.prepare(request)
        connection = Connection(broker, self.authority, ws, session, credentials)
        self._connections.add(connection)
        try:
            await connection.serve()
        finally:
            self._connections.discard(connection)
        return ws

    def _admit(self, request: web.Request) -> Credentials:
        version = request.headers.get(protocol.PROTOCOL_HEADER)
        if version != str(protocol.PROTOCOL):
            raise IncompatibleNetworkProtocolError(version, protocol.PROTOCOL)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self.authority.verify(token if scheme == "Bearer" else None)


def _refusal(status: int, error: AcademyError) -> web.Response:
    return web.json_response(pack_error(error), status=status)
