"""A client that says what it likes to a hosted exchange."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Self
from uuid import UUID

import aiohttp

from academy.exchange.cloud import protocol
from academy.exchange.cloud.security.pinning import trust
from academy.exchange.errors import unpack_error
from academy.exchange.store import FROM_AGENT, TO_AGENT


class RawClient:
    """A WebSocket to an exchange, past everything that would make it behave."""

    def __init__(
        self, url: str, token: str | None, *, fingerprint: str = "", **headers: str
    ) -> None:
        self.url = url + protocol.PATH
        self.trust = trust(fingerprint or None, verify=True)
        self.session = os.urandom(16)
        self.headers = {
            protocol.PROTOCOL_HEADER: str(protocol.PROTOCOL),
            protocol.SESSION_HEADER: self.session.hex(),
            **headers,
        }
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        self._number = 0
        self._unread: list[tuple[int, memoryview]] = []

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        try:
            self.ws = await self._http.ws_connect(
                self.url, headers=self.headers, ssl=self.trust
            )
            await self.next(protocol.WELCOME)
        except BaseException:
            await self._http.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.ws.close()
        await self._http.close()

    async def next(self, wanted: int) -> memoryview:
        """Return the next record of a kind; others are skipped."""
        async with asyncio.timeout(30):
            while True:
                while self._unread:
                    kind, record = self._unread.pop(0)
                    if kind == wanted:
                        return record
                message = await self.ws.receive()
                assert message.type is aiohttp.WSMsgType.BINARY, message
                self._unread = list(protocol.records(message.data))

    async def call(self, method: str, **arguments: Any) -> Any:
        """Make a call; return its result, or raise its error."""
        self._number += 1
        content = {"method": method, **arguments}
        await self.ws.send_bytes(
            protocol.numbered(protocol.CALL, self._number, content)
        )
        number, reply = protocol.read_numbered(await self.next(protocol.REPLY))
        assert number == self._number
        if "error" in reply:
            raise unpack_error(reply)
        return reply["result"]

    async def attach(self, uid: UUID, token: str | None) -> None:
        item = {"uid": uid.hex, "token": token, "incarnation": os.urandom(16).hex()}
        (problem,) = await self.call("attach", mailboxes=[item])
        if problem is not None:
            raise unpack_error(problem)

    async def become(self, uid: UUID) -> None:
        """Register an agent, and attach as its owner."""
        item = {"uid": uid.hex, "agent": True}
        (token,) = await self.call("register", mailboxes=[item])
        await self.attach(uid, token)

    async def closed(self) -> tuple[int | None, str]:
        """Wait until the exchange closes the connection; return why."""
        async with asyncio.timeout(30):
            while True:
                message = await self.ws.receive()
                if message.type is aiohttp.WSMsgType.CLOSE:
                    return message.data, message.extra or ""
                assert message.type is aiohttp.WSMsgType.BINARY, message


def send_record(
    dest: UUID,
    src: UUID,
    sequence: int = 1,
    payload: bytes = b"\x03\0\0",
    flags: int = FROM_AGENT | TO_AGENT,
) -> bytes:
    """Pack a message: a ping from one agent to another unless told otherwise."""
    tag = os.urandom(16)
    head = protocol.message_head(
        protocol.SEND, flags, sequence, 0, dest.bytes, src.bytes, tag, len(payload)
    )
    return head + payload
