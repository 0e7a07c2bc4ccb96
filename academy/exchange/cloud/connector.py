"""How a link connects, and connects again."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

from academy.exception import (
    ExchangeConnectionError,
    ExchangeError,
    QuotaExceededError,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.dialing import RefusedHandshakeError, dial
from academy.exchange.cloud.security.pinning import explain
from academy.exchange.errors import unpack_error

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.exchange.cloud.websocket import WebSocket

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

    async def connect(self, patience: float) -> WebSocket:
        """Connect, trying again for `patience` seconds.

        Raises:
            ExchangeConnectionError: nobody answers, or not as an exchange does.
            QuotaExceededError: too many are connected already.
            ExchangeError: the exchange does not want to be connected to.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        deadline = begun + patience
        # So that an answer which never comes takes no longer than no answer.
        limit = begun + max(patience, self._factory.request_timeout_s)
        pause = FIRST_PAUSE
        while True:
            try:
                left = max(limit - loop.time(), FIRST_PAUSE)
                async with asyncio.timeout(min(self._factory.request_timeout_s, left)):
                    return await self._connect_once()
            except QuotaExceededError:
                if loop.time() + pause > deadline:
                    raise
            except (OSError, RefusedHandshakeError) as error:
                if loop.time() + pause > deadline:
                    url = self._factory.url
                    raise ExchangeConnectionError(url, explain(error, url)) from error
            # Jitter: the workers of a campaign do not come back all at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _connect_once(self) -> WebSocket:
        url = self._factory.address + protocol.PATH
        headers = dict(self._factory.additional_headers)
        headers[protocol.PROTOCOL_HEADER] = str(protocol.PROTOCOL)
        headers[protocol.SESSION_HEADER] = self._session.hex()
        # Who was away for long is let in by what was given from outside.
        token = self.tokens.get(b"") or self._factory.find_token() or self._token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        trust = self._factory.trust
        heartbeat = self._factory.client_config.heartbeat_interval
        try:
            return await dial(url, headers, trust, heartbeat=heartbeat)
        except RefusedHandshakeError as error:
            if error.status == 429:
                problem = await self._explain(url, headers, error.status)
                if isinstance(problem, QuotaExceededError):
                    raise problem from error
            if error.status >= 500 or error.status == 429:
                raise
            if error.status == 401 and self.tokens:
                self.tokens.clear()
                raise  # it is tried again with what was given from outside
            raise await self._explain(url, headers, error.status) from error

    async def _explain(
        self, url: str, headers: dict[str, str], status: int
    ) -> Exception:
        """Ask again without the upgrade, since only then the answer has a body."""
        import aiohttp  # loaded only by who is refused: it takes 0.2 s

        address = self._factory.address
        try:
            async with (
                aiohttp.ClientSession(trust_env=True) as http,
                http.get(url, headers=headers, ssl=self._factory.trust) as answer,
            ):
                is_json = answer.content_type == "application/json"
                body = await answer.read() if is_json else b""
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error)) from error
        try:
            problem = unpack_error(json.loads(body))
        except ValueError:
            text = f"it is not an exchange of this protocol (status {status})"
            return ExchangeConnectionError(address, text)
        if isinstance(problem, ExchangeError) and len(problem.args) == 1:
            return type(problem)(f"{address}: {problem}")
        return problem


def is_unknown_path(error: ExchangeError) -> bool:
    """Whether a connection failed because the server knows no path of our protocol."""
    cause = error.__cause__
    return isinstance(cause, RefusedHandshakeError) and cause.status in (404, 405)
