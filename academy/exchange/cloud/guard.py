"""Keeps who is connected in line with who may be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection

from aiohttp import web

from academy.exception import StorageError
from academy.exchange.cloud.connection import Connection
from academy.exchange.cloud.security.auth import Authority

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds after which a revocation or a new key is noticed, if not at once."""


class Guard:
    """Renews the tokens of connections before they expire, and cuts who is revoked.

    Args:
        authority: knows who may do what.
        connections: those that are open.
        cut_others: ends what else the revoked have open.
    """

    def __init__(
        self,
        authority: Authority,
        connections: Collection[Connection],
        cut_others: Callable[[], None],
    ) -> None:
        self._authority = authority
        self._connections = connections
        self._cut_others = cut_others

    async def run(self, _: web.Application) -> AsyncIterator[None]:
        """Work for as long as the application runs."""
        renewal = self._authority.renewal
        if renewal is None:
            yield
            return
        working = asyncio.get_running_loop().create_task(self._work(renewal))
        yield
        working.cancel()
        await asyncio.wait([working])

    async def _work(self, renewal: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + renewal
        seen = self._authority.version
        while True:
            await self._authority.wait(min(INTERVAL, renewal))
            try:
                await self._authority.refresh()
                if changed := self._authority.version != seen:
                    seen = self._authority.version
                    await self._cut()
                if changed or loop.time() >= due:
                    due = loop.time() + renewal
                    await self._renew()
            except (OSError, ValueError, StorageError) as error:
                logger.error("what was known before still holds: %s", error)
            except Exception:
                logger.exception("the guard failed, and goes on")

    async def _cut(self) -> None:
        self._cut_others()
        cuts = [connection.cut_void() for connection in self._connections]
        for error in await asyncio.gather(*cuts, return_exceptions=True):
            if isinstance(error, Exception):
                logger.error("a connection was not cut: %r", error)

    async def _renew(self) -> None:
        for connection in list(self._connections):
            await connection.renew()
