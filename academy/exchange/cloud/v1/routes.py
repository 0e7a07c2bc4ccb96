"""Routes of protocol v1: who asks, in which namespace, and what errors are called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from academy.exception import (
    AcademyError,
    ForbiddenError,
    StorageError,
    UnauthorizedError,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.cloud.operations.logs import current_client
from academy.exchange.cloud.security.auth import Authority, Credentials, bearer
from academy.exchange.cloud.v1 import http
from academy.exchange.cloud.v1.mailbox import LARGEST
from academy.exchange.cloud.v1.server import ROUTES, Handler, V1Server

if TYPE_CHECKING:
    from academy.exchange.cloud.globus.identities import GlobusIdentities

logger = logging.getLogger(__name__)

PREFIXES = ("", "/v1")
PATHS = frozenset(prefix + path for prefix in PREFIXES for _, path in ROUTES)
GRACE = 30.0
"""Seconds without a request after which an owner counts as away."""


def add_routes(
    app: web.Application,
    namespaces: Namespaces,
    authority: Authority,
    globus: GlobusIdentities | None = None,
    *,
    grace: float = GRACE,
) -> V1Routes:
    """Serve protocol v1 under `/` and under `/v1`.

    Args:
        app: where to.
        namespaces: keep the mailboxes.
        authority: knows who may do what.
        globus: knows whose access tokens of Globus Auth are, if they are good here.
        grace: seconds without a request after which an owner counts as away.
    """
    routes = V1Routes(namespaces, authority, globus, grace)
    for prefix in PREFIXES:
        for (method, path), handler in ROUTES.items():
            app.router.add_route(method, prefix + path, routes.answers(handler))
    app.cleanup_ctx.append(routes.run)
    app.on_shutdown.append(routes.stop)
    return routes


async def identify(
    request: web.Request, authority: Authority, globus: GlobusIdentities | None
) -> Credentials:
    """Return who asks.

    Raises:
        UnauthorizedError: nobody whom this exchange knows.
    """
    token = bearer(request.headers)
    # Tokens of Globus Auth are opaque; those of the exchange have three parts.
    if globus is None or not token or token.count(".") == 2:
        return authority.verify(token, _session(request))
    namespace = request.headers.get(protocol.NAMESPACE_HEADER, "")
    by = await globus.identify(token, namespace)
    if authority.is_void(by):
        raise UnauthorizedError(f"{by.subject} is revoked here")
    return by


def _session(request: web.Request) -> bytes:
    try:
        return bytes.fromhex(request.headers.get(protocol.SESSION_HEADER, ""))
    except ValueError:
        return b""


class V1Routes:
    """Hands each request to the server of its namespace."""

    def __init__(
        self,
        namespaces: Namespaces,
        authority: Authority,
        globus: GlobusIdentities | None,
        grace: float,
    ) -> None:
        self._namespaces = namespaces
        self._authority = authority
        self._globus = globus
        self._grace = grace
        self._servers: dict[str, V1Server] = {}
        self._open: dict[int, tuple[web.Request, Credentials]] = {}
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
            for server in list(self._servers.values()):
                await server.let_go_of_silent(self._grace)

    async def stop(self, _: web.Application) -> None:
        """End the streams; what was not received stays for when the clients return."""
        self._stopping = True
        await asyncio.gather(*(server.stop() for server in self._servers.values()))

    def answers(
        self, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap a route."""

        async def answer(request: web.Request) -> web.StreamResponse:
            current_client.set(None)  # of the request before, on the same connection
            try:
                if self._stopping:
                    raise StorageError("the exchange is stopping")
                token = bearer(request.headers)
                try:
                    by = await identify(request, self._authority, self._globus)
                except UnauthorizedError as error:
                    logger.warning("turned away %s: %s", request.remote, error)
                    return http.refusal(error, 403 if token else 401)
                current_client.set(by)
                limit = min(self._namespaces.limits.max_message_bytes, LARGEST)
                server = await self._server(by)
                if (rate := self._namespaces.rate(by.namespace)) is not None:
                    rate.check()
                parameters, size = await http.read_parameters(request, limit)
                if rate is not None:
                    rate.take(1, size)
                self._open[id(request)] = request, by
                return await handler(server, request, by, parameters)
            except AcademyError as error:
                return http.refusal(error)
            finally:
                self._open.pop(id(request), None)

        return answer

    def cut_void(self) -> None:
        """Break off what was asked for with a token that is void now."""
        for request, by in list(self._open.values()):
            if self._authority.is_void(by) and request.transport is not None:
                request.transport.abort()

    async def _server(self, by: Credentials) -> V1Server:
        # Guests open no namespaces: they could be anybody, and name anything.
        if by.groups is not None and by.namespace not in self._namespaces.brokers:
            raise ForbiddenError(
                f"{by.namespace!r} shares nothing with you, or is not connected"
            )
        broker = await self._namespaces.broker(by.namespace)
        server = self._servers.get(by.namespace)
        if server is None or server.broker is not broker:
            server = self._servers[by.namespace] = V1Server(
                broker, has_groups=self._globus is not None
            )
        return server
