"""What operators and their machines ask an exchange: is it alive, ready, how is it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from academy.exception import StorageError, UnauthorizedError
from academy.exchange.cloud.operations.metrics import Metrics, Numbers, capped
from academy.exchange.cloud.security.auth import DEFAULT_NAMESPACE, Authority, bearer

if TYPE_CHECKING:
    from academy.exchange.broker import Broker
    from academy.exchange.cloud.config import OperationsConfig
    from academy.exchange.cloud.connection import Connection
    from academy.exchange.cloud.namespaces import Namespaces

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How long a store may take to say that it works."""
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
"""Headers by which a proxy on this machine says that somebody else asks."""


class Operations:
    """Answers `/healthz`, `/readyz` and `/metrics`.

    Attributes:
        draining: the exchange is about to end and takes nobody in any more.
        connections: those that are open, by namespace.
        turned_away: attempts to connect that were refused, by reason.
    """

    def __init__(
        self, config: OperationsConfig, namespaces: Namespaces, authority: Authority
    ) -> None:
        self.draining = False
        self.connections: dict[Connection, str] = {}
        self.turned_away: Counter[str] = Counter()
        self._config = config
        self._namespaces = namespaces
        self._authority = authority
        self._metrics = Metrics()
        self._ended: dict[str, tuple[int, int]] = {}

    def add_routes(self, app: web.Application) -> None:
        """Serve what is asked for."""
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        if self._config.metrics != "off":
            app.router.add_get("/metrics", self._numbers)

    def disconnected(self, connection: Connection) -> None:
        """Keep what a connection that has ended has carried."""
        namespace = self.connections.pop(connection)
        received, sent = self._ended.get(namespace, (0, 0))
        received, sent = received + connection.received, sent + connection.sent
        self._ended[namespace] = received, sent

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readiness(self, request: web.Request) -> web.Response:
        if self.draining:
            return _not_ready("it is about to end: connect again, to another one")
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await self._namespaces.check()
        except (StorageError, TimeoutError) as error:
            # Who may ask need not learn where the store is.
            reason = str(error) or f"no answer within {CHECK_SECONDS} s"
            logger.warning("not ready, since the store fails: %s", reason)
            return _not_ready("its store fails, and its log says why")
        return web.json_response({"ready": True})

    async def _numbers(self, request: web.Request) -> web.Response:
        try:
            only = self._may_see(request)
        except UnauthorizedError as error:
            return web.json_response({"error": str(error)}, status=401)
        brokers = self._namespaces.brokers
        numbers = [
            (name, await self._numbers_of(name, broker))
            for name, broker in brokers.items()
            if only in (None, name)
        ]
        turned_away = self.turned_away if only is None else None
        text = self._metrics.text(capped(numbers), turned_away)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _may_see(self, request: web.Request) -> str | None:
        """Return the only namespace whose numbers somebody may see; None for all.

        Raises:
            UnauthorizedError: nothing at all.
        """
        everybody = self._config.metrics == "open"
        if everybody or (self._config.metrics == "local" and _is_local(request)):
            return None
        credentials = self._authority.verify(bearer(request.headers))
        if credentials.mailbox is not None:
            raise UnauthorizedError("the token of a mailbox shows no metrics")
        is_operator = credentials.namespace == DEFAULT_NAMESPACE
        return None if is_operator else credentials.namespace

    async def _numbers_of(self, namespace: str, broker: Broker) -> Numbers:
        store = self._namespaces.stores[namespace]
        census = await broker.census()
        open_ = [c for c, name in self.connections.items() if name == namespace]
        received, sent = self._ended.get(namespace, (0, 0))
        traffic, rate = broker.traffic, self._namespaces.rate(namespace)
        return Numbers(
            census=census,
            connections=len(open_),
            stored=traffic.stored,
            settled=traffic.settled,
            delivered=traffic.delivered,
            redelivered=traffic.redelivered,
            received_bytes=received + sum(c.received for c in open_),
            sent_bytes=sent + sum(c.sent for c in open_),
            refused=Counter(traffic.refused),
            quotas=broker.limits.quotas,
            throttles=0 if rate is None else rate.episodes,
            throttled_seconds=0.0 if rate is None else rate.waited,
            committing=store.committing,
            reading=store.reading,
        )


def _not_ready(reason: str) -> web.Response:
    headers = {"Retry-After": "1"}
    content = {"ready": False, "reason": reason}
    return web.json_response(content, status=503, headers=headers)


def _is_local(request: web.Request) -> bool:
    """Whether a program on this machine asks, and not a proxy for somebody else."""
    if request.remote is None or any(name in request.headers for name in FORWARDED):
        return False
    address = ip_address(request.remote.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
