"""How a link connects, and connects again."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import aiohttp

from academy.exception import ExchangeConnectionError, ExchangeError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.security.pinning import explain
from academy.exchange.errors import unpack_error

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 15.0
"""Seconds between two attempts; twice as many after each."""


class Connector:
    """Makes the connections of a link, one after the other.

    Args:
        factory: where the exchange is, and what it takes.
        session: names the link in the exchange.
        token: what was given from outside, to be let in.

    Attributes:
        tokens: what the exchange has issued for this session, by mailbox; "" is for
            the connection.
    """

    def __init__(
        self, factory: HttpExchangeFactory, session: bytes, token: str | None
    ) -> None:
        self._factory = factory
        self._session = session
        self._token = token
        self.tokens: dict[bytes, str] = {}

    async def connect(
        self, http: aiohttp.ClientSession, patience: float
    ) -> aiohttp.ClientWebSocketResponse:
        """Connect, trying again for `patience` seconds."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + patience
        # So that an answer which never comes takes no longer than no answer.
        limit = begun + max(patience, self._factory.request_timeout_s)
        pause = FIRST_PAUSE
        while True:
            try:
                left = max(limit - loop.time(), FIRST_PAUSE)
                return await self._connect_once(http, left)
            except (OSError, aiohttp.ClientError, TimeoutError) as error:
                if loop.time() + pause > deadline:
                    url = self._factory.url
                    raise ExchangeConnectionError(url, explain(error, url)) from error
            # Jitter: the workers of a campaign do not come back all at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect_once(
        self, http: aiohttp.ClientSession, limit: float
    ) -> aiohttp.ClientWebSocketResponse:
        headers = dict(self._factory.additional_headers)
        headers[protocol.PROTOCOL_HEADER] = str(protocol.PROTOCOL)
        headers[protocol.SESSION_HEADER] = self._session.hex()
        # Who was away for long is let in by what was given from outside.
        token = self.tokens.get(b"") or self._factory.find_token() or self._token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        async with asyncio.timeout(min(self._factory.request_timeout_s, limit)):
            try:
                return await http.ws_connect(
                    self._factory.address + protocol.PATH,
                    headers=headers,
                    max_msg_size=0,
                    heartbeat=self._factory.client_config.heartbeat_interval,
                    compress=0,
                    ssl=self._factory.trust,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1),
                )
            except aiohttp.WSServerHandshakeError as error:
                _forget_request(error)
                if error.status >= 500 or error.status == 429:
                    raise
                if error.status == 401 and self.tokens:
                    self.tokens.clear()
                    raise  # it is tried again with what was given from outside
                raise await self._explain(http, headers, error) from error

    async def _explain(
        self,
        http: aiohttp.ClientSession,
        headers: dict[str, str],
        error: aiohttp.WSServerHandshakeError,
    ) -> Exception:
        """Ask again without the upgrade, since only then the answer has a body."""
        address = self._factory.address
        async with http.get(
            address + protocol.PATH, headers=headers, ssl=self._factory.trust
        ) as r:
            try:
                problem = unpack_error(await r.json())
            except (aiohttp.ClientError, ValueError):
                text = f"it is not an exchange of this protocol (status {error.status})"
                return ExchangeConnectionError(address, text)
        if isinstance(problem, ExchangeError) and len(problem.args) == 1:
            return type(problem)(f"{address}: {problem}")
        return problem


def _forget_request(error: aiohttp.ClientResponseError) -> None:
    """Take the headers of the request, a token among them, out of an error's repr."""
    info = error.request_info
    headers = info.headers.copy()
    headers.clear()
    error.request_info = aiohttp.RequestInfo(
        info.url, info.method, type(info.headers)(headers), info.real_url
    )
    error.args = (error.request_info, error.history)


def is_unknown_path(error: ExchangeError) -> bool:
    """Whether a connection failed because the server knows no path of our protocol."""
    cause = error.__cause__
    if not isinstance(cause, aiohttp.WSServerHandshakeError):
        return False
    return cause.status in (404, 405)
