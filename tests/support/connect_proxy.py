"""A proxy that clients reach the outside through."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class ConnectProxy:
    """Connects whoever asks to whom they ask for, by CONNECT or with a request.

    Args:
        target: a port of this machine that everybody is connected to instead.
        status: answers with it.

    Attributes:
        asked: the heads of the requests so far.
    """

    def __init__(self, target: int | None = None, status: int = 200) -> None:
        self.asked: list[bytes] = []
        self._target = target
        self._status = status
        self._tunnels: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for tunnel in self._tunnels:
            tunnel.cancel()
        await asyncio.gather(*self._tunnels, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _begin(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._tunnels.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            method, target, _ = head.decode().split(maxsplit=2)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 %d Told so\r\n\r\n" % self._status)
            if self._status == 200:
                parts = urlsplit(target if "//" in target else f"//{target}")
                there = await asyncio.open_connection(
                    parts.hostname, self._target or parts.port
                )
                if method != "CONNECT":
                    there[1].write(head)
                try:
                    await asyncio.gather(
                        _pipe(reader, there[1]), _pipe(there[0], writer)
                    )
                finally:
                    there[1].close()
        finally:
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
