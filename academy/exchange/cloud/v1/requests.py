"""Requests to an exchange that speaks protocol v1 only: tried again, and explained."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from academy.exception import (
    BadEntityIdError,
    ExchangeConnectionError,
    ExchangeError,
    ForbiddenError,
    MailboxTerminatedError,
    MessageTooLargeError,
    ProtocolError,
    UnauthorizedError,
)
from academy.exchange.cloud.security.pinning import break_off, explain

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.identifier import EntityId

logger = logging.getLogger(__name__)

MESSAGE_LIMIT = 524_288
"""Largest message of the public exchange, in bytes; others do not say theirs."""

_RETRIED = (429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 15.0
_DATA, _RETRY = b"data:", b"retry:"
_TROUBLE = (OSError, aiohttp.ClientError, TimeoutError)


class Pauses:
    """Pauses that grow, and end the work when it has lasted too long.

    Args:
        url: of the exchange, for the error.
        patience: seconds until then.
    """

    def __init__(self, url: str, patience: float) -> None:
        self._url = url
        self._deadline = asyncio.get_running_loop().time() + patience
        self._pause = _FIRST_PAUSE

    async def wait(self, trouble: Exception | str) -> None:
        """Wait before the next try.

        Raises:
            ExchangeConnectionError: there is none, because of this trouble.
        """
        if asyncio.get_running_loop().time() + self._pause > self._deadline:
            if isinstance(trouble, Exception):
                hung_up = isinstance(trouble, aiohttp.ServerDisconnectedError)
                trouble = explain(trouble, self._url, hung_up=hung_up)
            raise ExchangeConnectionError(self._url, trouble)
        # Jitter: the workers of a campaign do not come back all at once.
        await asyncio.sleep(self._pause * random.uniform(0.5, 1))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


class V1Requests:
    """Asks one exchange, with one token, until `close`.

    Attributes:
        token: what is shown; None for nothing, or before the first request.
    """

    def __init__(self, factory: HttpExchangeFactory) -> None:
        self.token: str | None = None
        self._factory = factory
        self._has_token = False
        self._getting_token = asyncio.Lock()
        self._stream_renewed = False
        self._address = factory.address
        self._trust = factory.trust
        # Each mailbox holds one connection for its stream.
        self._http = aiohttp.ClientSession(
            trust_env=True, connector=aiohttp.TCPConnector(limit=0)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        about: EntityId | None = None,
        patience: float | None = None,
        optional: bool = False,
        **parameters: Any,
    ) -> Any:
        """Make a request and return the JSON of its answer; None for an empty one.

        Args:
            method: of HTTP.
            path: of the route.
            about: whose mailbox does not exist if the answer is 404.
            patience: seconds that it is tried again; default: as long as a lost
                connection.
            optional: None also if the exchange has no such route.
            **parameters: of the route.

        Raises:
            ExchangeConnectionError: nobody answers, or something else than an exchange.
            ExchangeError: the exchange refuses.
        """
        if patience is None:
            patience = self._factory.reconnect_timeout_s
        pauses = Pauses(self._factory.url, patience)
        timeout = aiohttp.ClientTimeout(total=self._factory.request_timeout_s)
        renewed = False
        while True:
            try:
                token = await self._find_token()
                async with self._send(method, path, parameters, timeout) as response:
                    text = await response.text()
                    status = response.status
                if status == 403 and not renewed and await self._renew_token(token):
                    renewed = True
                    continue
            except _TROUBLE as error:
                await pauses.wait(error)
                continue
            if status == 200:
                return self._content(path, text)
            if optional and status in (404, 405):
                return None
            if status not in _RETRIED:
                raise self._error(status, text, about, len(str(parameters)))
            await pauses.wait(f"it answered with status {status}: {text[:200]}")

    def _content(self, path: str, text: str) -> Any:
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            raise self._stranger(f"{path} answers with no JSON") from None

    def _stranger(self, how: str) -> ExchangeConnectionError:
        text = f"it is not an exchange of a known protocol ({how})"
        return ExchangeConnectionError(self._factory.url, text)

    @asynccontextmanager
    async def stream(
        self, path: str, silence: float, *, about: EntityId, **parameters: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a stream, which is broken off after so many seconds of silence.

        Raises:
            ExchangeError: the exchange refuses.
            OSError | aiohttp.ClientError | TimeoutError: try again.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._factory.request_timeout_s, sock_read=silence
        )
        token = await self._find_token()
        async with self._send("GET", path, parameters, timeout) as response:
            if response.status in _RETRIED:
                raise aiohttp.ClientConnectionError(f"status {response.status}")
            if response.status == 403 and not self._stream_renewed:
                self._stream_renewed = await self._renew_token(token)
                if self._stream_renewed:
                    raise aiohttp.ClientConnectionError("the token was replaced")
            if response.status != 200:
                text = await response.text()
                raise self._error(response.status, text, about)
            self._stream_renewed = False
            yield response

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        parameters: dict[str, Any],
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": "application/json"}
        headers |= self._factory.additional_headers
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            async with self._http.request(
                method,
                self._address + path,
                # A file, since aiohttp warns of large bodies that are none.
                data=io.BytesIO(json.dumps(parameters).encode()),
                headers=headers,
                ssl=self._trust,
                timeout=timeout,
            ) as response:
                try:
                    yield response
                finally:
                    # There is one if the response has not been read to its end.
                    if (connection := response.connection) is not None:
                        transport = connection.transport
                        response.close()
                        break_off(transport)
        except _TROUBLE:
            self._address = self._factory.address  # it may be elsewhere by now
            raise

    async def _find_token(self) -> str | None:
        if not self._has_token:
            async with self._getting_token:
                if not self._has_token:
                    self.token = await self._ask_for_token()
                    self._has_token = True
        return self.token

    async def _ask_for_token(self, refused: str | None = None) -> str | None:
        try:
            return await self._factory.access_token(refused)
        except ExchangeConnectionError as error:
            # Whoever issues tokens is away for now, as the exchange itself may be.
            raise aiohttp.ClientConnectionError(str(error)) from error

    async def _renew_token(self, refused: str | None) -> bool:
        """Whether there is another token than the one that was refused."""
        async with self._getting_token:
            if self.token == refused:
                try:
                    self.token = await self._ask_for_token(refused)
                except UnauthorizedError as error:
                    logger.warning("no fresh token for %s: %s", self._factory, error)
        return self.token != refused

    def _error(
        self, status: int, text: str, about: EntityId | None, size: int = 0
    ) -> ExchangeError:
        text = f"{self._factory.url}: {text[:500] or f'status {status}'}"
        if status == 404 and about is not None:
            return BadEntityIdError(about)
        if status == 419 and about is not None:
            return MailboxTerminatedError(about)
        if status in (404, 405):
            return self._stranger(f"status {status}")
        if status == 413:
            return MessageTooLargeError(size, min(size, MESSAGE_LIMIT))
        kinds: dict[int, type[ExchangeError]] = {
            400: ProtocolError,
            401: UnauthorizedError,
            403: ForbiddenError,
        }
        return kinds.get(status, ExchangeError)(text)


class Events:
    """Cuts a stream of server-sent events into what they carry.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html

    Attributes:
        retry: seconds that the server asks for before the stream is opened again.
    """

    def __init__(self) -> None:
        self.retry = 0.0
        self._buffer = bytearray()
        self._searched = 0
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take what has arrived; yield the data of each event that is complete."""
        buffer = self._buffer
        buffer += chunk
        while (end := buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(buffer[:end]).rstrip(b"\r")
            del buffer[: end + 1]
            self._searched = 0
            if line.startswith(_DATA):
                self._data.append(line[len(_DATA) :].removeprefix(b" "))
            elif line.startswith(_RETRY) and line[len(_RETRY) :].strip().isdigit():
                self.retry = int(line[len(_RETRY) :]) / 1000
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                if data:
                    yield data
        self._searched = len(buffer)
