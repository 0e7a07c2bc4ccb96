"""WebSocket servers that send what they like, frame by frame."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class RawConnection:
    """The server's end of a WebSocket, after its handshake."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer

    async def send(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True
    ) -> None:
        """Send one frame."""
        size = len(payload)
        head = bytes([opcode | fin << 7])
        head += bytes([size]) if size < 126 else struct.pack("!BH", 126, size)
        self._writer.write(head + payload)
        await self._writer.drain()

    async def read(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        first, second = await self._reader.readexactly(2)
        size = second & 127
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(await self._reader.readexactly(width), "big")
        mask = await self._reader.readexactly(4)
        payload = await self._reader.readexactly(size)
        repeated = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        plain = int.from_bytes(payload, "big") ^ repeated
        return first & 15, plain.to_bytes(size, "big")

    async def ended(self) -> None:
        """Wait until the client says goodbye, or hangs up without a word."""
        with suppress(asyncio.IncompleteReadError):
            while (await self.read())[0] != CLOSE:
                pass

    def reset(self) -> None:
        """Break the connection off, as a host does that has lost it."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Handler = Callable[[RawConnection], Awaitable[None]]


@asynccontextmanager
async def raw_server(handle: Handler, *, answer: bytes = b"") -> AsyncIterator[str]:
    """Serve WebSockets; yields the url. Errors of the handler end the block.

    Args:
        handle: works with each connection.
        answer: what each handshake is answered with, instead of taking it.
    """
    handling: list[asyncio.Task[None]] = []

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")[1:-2]
        headers = {k.lower(): v for k, v in (line.split(b": ", 1) for line in lines)}
        digest = hashlib.sha1(headers[b"sec-websocket-key"] + _GUID).digest()
        accept = b64encode(digest).decode()
        taken = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        writer.write(answer or taken.encode())
        try:
            await handle(RawConnection(reader, writer))
        finally:
            writer.close()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.append(asyncio.create_task(work(reader, writer)))

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/"
        await asyncio.gather(*handling)
