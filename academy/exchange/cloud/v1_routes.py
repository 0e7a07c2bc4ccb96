"""Routes of protocol v1: who asks, in which namespace, and what errors are called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from academy.exception import AcademyError, StorageError, UnauthorizedError
from academy.exchange.cloud import v1_http
from academy.exchange.cloud.auth import Authority, Credentials, bearer
from academy.exchange.cloud.logs import current_client
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.cloud.v1 import ROUTES, Handler, V1Server

logger = logging.getLogger(__name__)

PREFIXES = ("", "/v1")
GRACE = 30.0
"""Seconds without a request after which an owner counts as away."""


def add_routes(
    app: web.Application,
    namespaces: Namespaces,
    authority: Authority,
    *,
    grace: float = GRACE,
) -> None:
    """Serve protocol v1 under `/` and under `/v1`.

    Args:
        app: where to.
        namespaces: keep the mailboxes.
        authority: knows who may do what.
        grace: seconds without a request after which an owner counts as away.
    """
    routes = V1Routes(namespaces, authority, grace)
    for prefix in PREFIXES:
        for (method, path), handler in ROUTES.items():
            app.router.add_route(method, prefix + path, routes.answers(handler))
    app.cleanup_ctx.append(routes.run)
    app.on_shutdown.append(routes.stop)


class V1Routes:
    """Hands each request to the server of its namespace."""

    def __init__(
        self, namespaces: Namespaces, authority: Authority, grace: float
    ) -> None:
        self._namespaces = namespaces
        self._authority = authority
        self._grace = grace
        self._servers: dict[str, V1Server] = {}
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
            try:
                if self._stopping:
                    raise StorageError("the exchange is stopping")
                token = bearer(request.headers)
                try:
                    by = self._authority.verify(token)
                except UnauthorizedError as error:
                    logger.warning("turned away %s: %s", request.remote, error)
                    return v1_http.refusal(error, 403 if token else 401)
                current_client.set(by)
                limit = self._namespaces.limits.max_message_bytes
                parameters = await v1_http.read_parameters(request, limit)
                server = await self._server(by)
                return await handler(server, request, by, parameters)
            except AcademyError as error:
                return v1_http.refusal(error)

        return answer

    async def _server(self, by: Credentials) -> V1Server:
        broker = await self._namespaces.broker(by.namespace)
        server = self._servers.get(by.namespace)
        if server is None or server.broker is not broker:
            server = self._servers[by.namespace] = V1Server(broker)
        return server
