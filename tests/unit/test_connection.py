"""A connection to a broker whose store waits, or fails, while calls are under way."""

from __future__ import annotations

import asyncio
import os

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from academy.exception import StorageError
from academy.exchange.broker import Broker
from academy.exchange.cloud import protocol
from academy.exchange.cloud.connection import Connection
from academy.exchange.cloud.security.open_authority import OpenAuthority
from academy.exchange.cloud.upgrade import Answered, upgraded
from tests.support.peers import GatedStore, Peer, agent

BODY = b"." * 500_000


async def test_a_session_that_is_over_says_nothing_about_mailboxes() -> None:
    """Else an agent that comes back while the store fails would end for good."""
    store = GatedStore()
    broker = Broker(store)
    await broker.open()
    reader, other, writer = agent(), agent(), agent()
    await broker.register([reader, other, writer])
    alice = await Peer(broker, writer.uid).attach()

    async def serve(request: web.Request) -> web.StreamResponse:
        authority = OpenAuthority()
        user = authority.verify(None)
        limits = {"heartbeat": 30.0, "max_message_bytes": 1_000_000}
        with upgraded(request, **limits) as websocket:
            session = os.urandom(16)
            await Connection(broker, authority, websocket, session, user).serve()
        return Answered()

    app = web.Application()
    app.router.add_get("/", serve)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        ws = await http.ws_connect(server.make_url("/"), max_msg_size=0)
        await ws.send_bytes(_attach(1, reader.uid))
        while protocol.REPLY not in await _kinds(ws):
            pass
        for _ in range(60):  # more than any buffer on the way holds
            alice.request(reader.uid, BODY)
        await broker.settle()
        store.gate.clear()
        alice.request(reader.uid)
        await store.waiting.wait()
        await ws.send_bytes(_attach(2, other.uid))
        while not broker._turns._works:
            await asyncio.sleep(0)

        store.failing = True
        store.gate.set()
        await broker.settle()
        assert isinstance(alice.resets[0], StorageError)

        kinds = []
        while not ws.closed:
            kinds += await _kinds(ws)
        assert set(kinds) == {protocol.DELIVER}
    await broker.close()


def _attach(number: int, uid: bytes) -> bytes:
    item = {"uid": uid.hex(), "incarnation": os.urandom(16).hex()}
    content = {"method": "attach", "mailboxes": [item]}
    return protocol.numbered(protocol.CALL, number, content)


async def _kinds(ws: aiohttp.ClientWebSocketResponse) -> list[int]:
    """Return of what kind the records of the next message are."""
    message = await ws.receive()
    if message.type is not aiohttp.WSMsgType.BINARY:
        return []
    return [kind for kind, _ in protocol.records(message.data)]
