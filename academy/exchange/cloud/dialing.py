"""How a client opens a WebSocket: by way of a proxy, over TLS, and with headers."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohappyeyeballs
from picows import (
    WSError,
    WSHandshakeError,
    WSListener,
    WSParsedURL,
    WSTransport,
    ws_connect,
)
from python_socks import ProxyError

from academy.exchange.cloud.websocket import WebSocket, frames_logger

_NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305, section 8

_Opening = asyncio.Task[tuple[WSTransport, WSListener]]


class RefusedHandshakeError(Exception):
    """A server answers, but not by opening a WebSocket.

    Args:
        status: of its answer.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"it answers with status {self.status}"


async def dial(
    url: str,
    headers: Mapping[str, str],
    trust: ssl.SSLContext,
    *,
    heartbeat: float,
) -> WebSocket:
    """Open a WebSocket.

    Args:
        url: begins with http or https.
        headers: of the handshake.
        trust: which certificates are trusted. It is asked before anything is sent.
        heartbeat: seconds of silence after which the far side is pinged; it has half of
            that for an answer.

    Raises:
        RefusedHandshakeError: the server answers otherwise.
        OSError: it cannot be reached, or is not trusted.

    Cancellation: leaves nothing behind.
    """
    sockets: list[socket.socket] = []

    async def connect(endpoint: WSParsedURL) -> socket.socket:
        sockets.append(await _connect(endpoint.host, endpoint.port))
        return sockets[-1]

    opening = asyncio.create_task(
        ws_connect(
            lambda request, response: WebSocket(),
            "ws" + url.removeprefix("http"),
            ssl_context=trust,
            disconnect_on_exception=False,
            websocket_handshake_timeout=None,
            logger_name=frames_logger,
            enable_auto_ping=True,
            auto_ping_idle_timeout=heartbeat,
            auto_ping_reply_timeout=heartbeat / 2,
            max_frame_size=sys.maxsize,
            extra_headers=headers,
            max_redirects=0,  # the headers are for this server alone
            proxy=_proxy(url),
            socket_factory=connect,
            # It does TLS past Python's ssl module, and so past `trust`.
            use_aiofastnet=False,
        )
    )
    try:
        await asyncio.wait([opening])
    except BaseException:
        await _give_up(opening, sockets)
        raise
    return _opened(opening)


def _opened(opening: _Opening) -> WebSocket:
    try:
        _, websocket = opening.result()
    except WSHandshakeError as error:
        if (status := _status(error.raw_header)) is not None:
            raise RefusedHandshakeError(status) from error
        raise ConnectionError(str(error)) from error
    except (WSError, ProxyError) as error:
        raise ConnectionError(str(error)) from error
    if not isinstance(websocket, WebSocket):  # there is no listener then
        raise ConnectionResetError("it hung up before it answered")
    return websocket


def _status(head: bytes | None) -> int | None:
    """Return the status of an HTTP answer that is none of a WebSocket."""
    answer = re.match(rb"HTTP/1\.[01] (\d{3}) ", head or b"")
    return int(answer[1]) if answer and answer[1] != b"101" else None


async def _give_up(opening: _Opening, sockets: Sequence[socket.socket]) -> None:
    if not opening.done():
        if sockets:
            # It ends by itself then; cancelled, it would leave its transport open.
            with suppress(OSError):
                sockets[-1].shutdown(socket.SHUT_RDWR)
        else:
            opening.cancel()
        await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        transport, _ = opening.result()
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


async def _connect(host: str, port: int) -> socket.socket:
    """Connect to the address of a host that answers first."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(
        found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS
    )


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a url."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxy = getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
