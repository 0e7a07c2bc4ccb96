"""From a request of aiohttp's server to a WebSocket of picows.

aiohttp serves all that is HTTP on the port of an exchange, and asks who is let in. The
bytes of a client that is go to picows, which calls back with each frame: most of what
a small message costs a server is otherwise the waking of a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from picows import WSAutoPingStrategy

# There is no public way to give picows a connection that is open.
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # not in its stubs

from academy.exchange.cloud.websocket import WebSocket, frames_logger

_HANDSHAKE = (
    "Host",
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Key",
)
"""Headers of a request that picows looks at."""
_HANDSHAKE_SECONDS = 5.0
_READ_BYTES = 16 * 1024


class Answered(web.StreamResponse):
    """What a handler returns when the request was answered without aiohttp."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing."""


@contextmanager
def upgraded(
    request: web.Request, *, heartbeat: float, max_message_bytes: int
) -> Iterator[WebSocket]:
    """Answer the handshake of a WebSocket, and serve it from then on.

    Nothing is read until `WebSocket.resume_reading`. The handler of the request returns
    an `Answered` after this.

    Args:
        request: asks for one, as it should (`web.WebSocketResponse.can_prepare`).
        heartbeat: seconds of silence after which the client is pinged; it has half of
            that for an answer.
        max_message_bytes: the connection of who sends a larger message is closed.
    """
    transport, http = request.transport, request.protocol
    if transport is None:
        raise ConnectionResetError("the client has gone")
    websocket = WebSocket(max_message_bytes, heartbeat)
    protocol = WSProtocol(
        *(None, None, False, lambda _: websocket, frames_logger),
        *(False, _HANDSHAKE_SECONDS),
        *(True, heartbeat, heartbeat / 2, WSAutoPingStrategy.PING_WHEN_IDLE, True),
        *(max_message_bytes, None, _READ_BYTES),
    )
    # Who switches protocols may have to read otherwise.
    transport.pause_reading()
    transport.set_protocol(protocol)
    try:
        protocol.connection_made(transport)
        head = _head(request)
        protocol.get_buffer(len(head))[: len(head)] = head
        protocol.buffer_updated(len(head))
        if not websocket.opened:
            raise ConnectionResetError("picows does not agree to the handshake")
        yield websocket
    finally:
        transport.abort()
        http.connection_lost(None)


def _head(request: web.Request) -> bytes:
    lines = [f"GET {request.rel_url.raw_path} HTTP/1.1"]
    for name in _HANDSHAKE:
        lines += [f"{name}: {value}" for value in request.headers.getall(name, ())]
    return "\r\n".join([*lines, "", ""]).encode()
