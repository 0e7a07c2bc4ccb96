"""Nobody decodes a stranger's byte: payloads that leave a trace where they are read.

A trace is a file of the reader's pid. Each test ends with a message that surely comes
after the stranger's, so that what is not there by then does not come any more.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import struct
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from academy.exception import BadEntityIdError
from academy.exchange.cloud import protocol
from academy.exchange.store import FROM_AGENT, ONE_WAY, RESPONSE, TO_AGENT
from academy.handle import Handle
from academy.identifier import AgentId, EntityId
from academy.manager import Manager
from academy.message import (
    ActionRequest,
    ActionResponse,
    Message,
    PingRequest,
    StreamItem,
    UserErrorResponse,
    encode_body,
)
from academy.serialize import PICKLE, Payload
from tests.support.launchables import Counter
from tests.support.raw import RawClient, send_record
from tests.support.redis import Redis
from tests.support.server import ExchangeServer
from tests.support.servers import relay_and_owner
from tests.support.v1_peer import (
    Entity,
    V1Client,
    action,
    encode,
    entity,
    message,
    response,
)

REQUEST, ANSWER, ITEM = 0, RESPONSE, RESPONSE | ONE_WAY


class Trap:
    """What writes the pid of whoever unpickles it to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        script = f"import os; os.makedirs({str(self.folder)!r} + f'/{{os.getpid()}}')"
        return exec, (script,)

    def readers(self) -> list[int]:
        return [int(path.name) for path in self.folder.glob("*")]

    @property
    def payload(self) -> Payload:
        return Payload.from_plain(PICKLE, pickle.dumps(((self,), {})))


@pytest.fixture(scope="module", params=["alone", "relaying"])
def exchange(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ExchangeServer]:
    folder = tmp_path_factory.mktemp("exchange")
    if request.param == "alone":
        with ExchangeServer(folder) as server:
            yield server
        return
    with (
        Redis(folder / "redis") as redis,
        relay_and_owner(folder, redis, "default", "elsewhere") as (relay, _),
    ):
        yield relay


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "readers")


@pytest.fixture
def token(exchange: ExchangeServer) -> str:
    return exchange.authority.user_token("tester")


@pytest.fixture
async def manager(exchange: ExchangeServer) -> AsyncIterator[Manager]:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    async with await Manager.from_exchange_factory(exchange.factory(), pool) as manager:
        yield manager


@pytest.fixture
async def counter(manager: Manager) -> Handle[Counter]:
    return await manager.launch(Counter)


@asynccontextmanager
async def attached(
    exchange: ExchangeServer, token: str
) -> AsyncIterator[tuple[RawClient, AgentId[Any]]]:
    """Connect, and become an agent."""
    async with RawClient(exchange.url, token) as client:
        me: AgentId[Any] = AgentId.new()
        await client.become(me.uid)
        yield client, me


def bytes_of(body: Any) -> bytes:
    nobody: AgentId[Any] = AgentId.new()
    return b"".join(encode_body(Message.create(nobody, nobody, body)))


def record(
    dest: EntityId, src: EntityId, sequence: int, body: Any, flags: int = REQUEST
) -> bytes:
    roles = FROM_AGENT | TO_AGENT * (dest.role == "agent")
    return send_record(dest.uid, src.uid, sequence, bytes_of(body), flags=flags | roles)


def v1_entity(of: EntityId) -> Entity:
    return {"uid": str(of.uid), "name": None, "role": of.role}


def v2_answers(trap: Trap) -> list[tuple[Any, int]]:
    """Make a result, an error and an item of a stream, with their flags."""
    return [
        (ActionResponse(trap.payload), ANSWER),
        (UserErrorResponse(trap.payload), ANSWER),
        (StreamItem(0, trap.payload), ITEM),
    ]


def v1_answers(dest: EntityId, src: Entity, trap: Trap) -> list[dict[str, Any]]:
    """Make a result and an error for what was never asked."""
    asked = message(v1_entity(dest), src, {"kind": "ping-request"})
    bodies: list[dict[str, Any]] = [
        {"kind": "action-response", "result": ["__serialized__", encode(trap)]},
        {"kind": "user-error-response", "exception": encode(trap)},
    ]
    return [response(asked, serialization="pickle", **body) for body in bodies]


# --- who may not come in


def tokens(exchange: ExchangeServer, folder: Path) -> dict[str, str | None]:
    stranger = ExchangeServer(folder)  # which never starts
    return {
        "none": None,
        "wrong": stranger.authority.user_token("tester"),
        "expired": exchange.authority.user_token("tester", lifetime=-1),
    }


async def push(url: str, token: str | None, sent: bytes) -> bytes:
    """Send a record right after the handshake, whatever comes of that."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    lines = [
        f"GET {protocol.PATH} HTTP/1.1",
        f"Host: {where.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"{protocol.PROTOCOL_HEADER}: {protocol.PROTOCOL}",
        f"{protocol.SESSION_HEADER}: {os.urandom(16).hex()}",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    handshake = "\r\n".join([*lines, "", ""]).encode()
    # One binary frame under a mask of zeros.
    frame = b"\x82\xfe" + struct.pack(">H", len(sent)) + bytes(4) + sent
    writer.write(handshake + frame)
    async with asyncio.timeout(30):
        answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("which", ["none", "wrong", "expired"])
async def test_who_shows_no_good_token_makes_nobody_decode_anything(
    exchange: ExchangeServer,
    manager: Manager,
    counter: Handle[Counter],
    trap: Trap,
    tmp_path: Path,
    which: str,
) -> None:
    token = tokens(exchange, tmp_path / "stranger")[which]
    for dest in (counter.agent_id, manager.user_id):
        body = ActionRequest("add", trap.payload)
        sent = record(dest, AgentId.new(), 1, body)
        answer = await push(exchange.url, token, sent)
        assert answer.startswith(b"HTTP/1.1 401 "), answer
        async with V1Client(exchange.url, entity("agent"), token) as old:
            request = action(old.me, v1_entity(dest), "add", trap)
            refused, _ = await old.ask("PUT", "/message", message=json.dumps(request))
        assert refused in (401, 403)
    assert await counter.add() == 1

    assert trap.readers() == []


# --- who is of another namespace


async def test_another_namespace_makes_nobody_decode_anything(
    exchange: ExchangeServer, manager: Manager, counter: Handle[Counter], trap: Trap
) -> None:
    token = exchange.authority.user_token("tester", "elsewhere")
    bodies = [(ActionRequest("add", trap.payload), REQUEST), *v2_answers(trap)]
    sequence = 0
    async with attached(exchange, token) as (client, me):
        for dest in (counter.agent_id, manager.user_id):
            for body, flags in bodies:
                sequence += 1
                await client.ws.send_bytes(record(dest, me, sequence, body, flags))
        # The last one is a request, which is refused after all that came before.
        ping = record(counter.agent_id, me, sequence + 1, PingRequest())
        await client.ws.send_bytes(ping)
        while True:
            refused, error = protocol.read_refuse(await client.next(protocol.REFUSE))
            assert isinstance(error, BadEntityIdError)
            if refused == sequence + 1:
                break
    async with V1Client(exchange.url, entity("agent"), token) as old:
        await old.register()
        for dest in (counter.agent_id, manager.user_id):
            request = action(old.me, v1_entity(dest), "add", trap)
            status, _ = await old.ask("PUT", "/message", message=json.dumps(request))
            assert status == 404
            for answer in v1_answers(dest, old.me, trap):
                await old.send(answer)  # what answers nothing is dropped in silence
    assert await counter.add() == 1

    assert trap.readers() == []


# --- who was not asked


async def test_what_nobody_has_asked_for_is_decoded_by_nobody(
    exchange: ExchangeServer,
    manager: Manager,
    counter: Handle[Counter],
    trap: Trap,
    token: str,
) -> None:
    """Not even if it comes from the same namespace."""
    sequence = 0
    async with attached(exchange, token) as (client, me):
        for dest in (counter.agent_id, manager.user_id):
            for body, flags in v2_answers(trap):
                sequence += 1
                await client.ws.send_bytes(record(dest, me, sequence, body, flags))
            sequence += 1
            await client.ws.send_bytes(record(dest, me, sequence, PingRequest()))
            await client.next(protocol.DELIVER)  # its answer
    async with V1Client(exchange.url, entity("agent"), token) as old:
        await old.register()
        for dest in (counter.agent_id, manager.user_id):
            for answer in v1_answers(dest, old.me, trap):
                await old.ask("PUT", "/message", message=json.dumps(answer))
            await old.call(message(old.me, v1_entity(dest), {"kind": "ping-request"}))
    assert await counter.add() == 1

    assert trap.readers() == []


async def test_a_user_decodes_no_request(
    exchange: ExchangeServer, manager: Manager, trap: Trap, token: str
) -> None:
    async with attached(exchange, token) as (client, me):
        body = ActionRequest("add", trap.payload)
        await client.ws.send_bytes(record(manager.user_id, me, 1, body))
        await client.next(protocol.DELIVER)  # its answer

    assert trap.readers() == []


# --- and who may


@pytest.mark.parametrize("speaks", ["v2", "v1"])
async def test_what_the_same_namespace_sends_is_decoded_by_the_agent_alone(
    exchange: ExchangeServer,
    counter: Handle[Counter],
    trap: Trap,
    token: str,
    speaks: str,
) -> None:
    """So that the traps above would have shut."""
    agent = await counter.pid()
    if speaks == "v2":
        async with attached(exchange, token) as (client, me):
            body = ActionRequest("add", trap.payload)
            await client.ws.send_bytes(record(counter.agent_id, me, 1, body))
            await client.next(protocol.DELIVER)
    else:
        async with V1Client(exchange.url, entity("agent"), token) as old:
            await old.register()
            await old.call(action(old.me, v1_entity(counter.agent_id), "add", trap))

    assert trap.readers() == [agent]
    assert agent not in (os.getpid(), exchange.pid)


async def test_a_caller_decodes_the_result_that_it_has_asked_for(
    exchange: ExchangeServer, manager: Manager, trap: Trap, token: str
) -> None:
    async with attached(exchange, token) as (client, me):
        call = asyncio.create_task(manager.get_handle(me).action("add"))
        head = protocol.MESSAGE.unpack_from(await client.next(protocol.DELIVER))
        number, tag = head[3], head[7]
        sent = bytes_of(ActionResponse(trap.payload))
        flags = FROM_AGENT | RESPONSE
        ids = manager.user_id.uid.bytes, me.uid.bytes, tag
        answer = protocol.message_head(protocol.SEND, flags, 1, number, *ids, len(sent))
        await client.ws.send_bytes(answer + sent)
        await call

    assert trap.readers() == [os.getpid()]
