"""Whatever an admitted client sends, the exchange lives and others do not notice."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import psutil
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from academy.exchange import UserExchangeClient
from academy.exchange.cloud import protocol
from academy.message import PingRequest
from tests.support.agents import Adder
from tests.support.raw import RawClient, send_record
from tests.support.server import ExchangeServer

GROWTH = 40_000_000
"""Bytes by which a server may grow while it is sent everything below."""


class Witness:
    """A server, and another program that uses it all the time.

    Attributes:
        uid: of a mailbox that a fuzzing client may attach, with `token`.
        victim: of a mailbox that it may not.
    """

    def __init__(self, server: ExchangeServer) -> None:
        self.server = server
        self.runner = asyncio.Runner()
        self.user: UserExchangeClient = self.runner.run(self._connect())
        self.process = psutil.Process(server.pid)
        self.before = self.process.memory_info().rss

    async def _connect(self) -> UserExchangeClient:
        user = await self.server.factory().create_user_client()
        mine, other = await user.register_agents([(Adder, "mine"), (Adder, "other")])
        self.uid, self.token = mine.agent_id.uid, mine.token
        self.victim = other.agent_id.uid
        return user

    async def ping(self) -> None:
        request = self.user.new_message(self.user.client_id, PingRequest())
        async with asyncio.timeout(30):
            await self.user.request(request)

    async def close(self) -> None:
        await self.user.close()

    async def send(self, messages: list[bytes]) -> None:
        """Send WebSocket messages, and see that they have done no harm."""
        async with RawClient(self.server.url, self.token) as client:
            await client.attach(self.uid, self.token)
            for message in messages:
                if not client.ws.closed:
                    await client.ws.send_bytes(message)
            await client.ws.ping()
            code = await ending(client)
        assert code in (None, aiohttp.WSCloseCode.PROTOCOL_ERROR, 1009)
        await self.ping()
        assert self.server.process is not None
        assert self.server.process.poll() is None, self.server.log.read_text()


async def ending(client: RawClient) -> int | None:
    """Return with which code the exchange closes a connection; None if it answers."""
    call = {"method": "status", "uid": uuid4().hex}
    if not client.ws.closed:
        await client.ws.send_bytes(protocol.numbered(protocol.CALL, 2**32 - 1, call))
    async with asyncio.timeout(30):
        while True:
            message = await client.ws.receive()
            if message.type is aiohttp.WSMsgType.CLOSE:
                return int(message.data)
            if message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING):
                return client.ws.close_code
            if message.type is aiohttp.WSMsgType.ERROR:
                return aiohttp.WSCloseCode.PROTOCOL_ERROR
            for kind, record in protocol.records(message.data):
                if kind == protocol.REPLY and protocol.read_count(record) == 2**32 - 1:
                    return None


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Witness]:
    with ExchangeServer(tmp_path_factory.mktemp("exchange")) as server:
        witness = Witness(server)
        yield witness
        witness.runner.run(witness.close())
        witness.runner.close()


uids = st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)]) | st.uuids()
uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
words = st.sampled_from(
    [
        "method",
        "uid",
        "mailboxes",
        "token",
        "incarnation",
        "held",
        "released",
        "resume",
        "as",
        "agent",
        "name",
        "classes",
        "reason",
        "uids",
        "allow_subclasses",
        "place",
    ]
)
methods = st.sampled_from(
    [
        "register",
        "attach",
        "detach",
        "terminate",
        "status",
        "silence",
        "touch",
        "stats",
        "discover",
        "watch",
        "unwatch",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | uids.map(lambda uid: uid.hex)
    | st.sampled_from(["mine", "victim"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(words | st.text(), inner)
    ),
    max_leaves=8,
)
calls = st.builds(
    lambda method, arguments: {"method": method, **arguments},
    methods | values,
    st.dictionaries(words, values, max_size=5),
)
records = st.one_of(
    st.builds(protocol.numbered, st.just(protocol.CALL), uint32, calls | values),
    st.builds(protocol.numbered, st.just(protocol.RECEIPT), uint32),
    st.builds(protocol.confirm, uint64),
    st.builds(
        lambda dest, src, sequence, payload, flags, answers: (
            protocol.message_head(
                protocol.SEND,
                flags,
                sequence,
                answers,
                dest,
                src,
                os.urandom(16),
                len(payload),
            )
            + payload
        ),
        uids.map(lambda uid: uid.bytes)
        | st.sampled_from([b"mine" * 4, b"victim__" * 2]),
        uids.map(lambda uid: uid.bytes)
        | st.sampled_from([b"mine" * 4, b"victim__" * 2]),
        uint64 | st.integers(1, 9),
        st.binary(max_size=100),
        st.integers(0, 255),
        uint64,
    ),
    st.builds(
        lambda length, kind, rest: struct.pack("<IB", length, kind) + rest,
        st.integers(0, 300) | uint32,
        st.integers(0, 255),
        st.binary(max_size=300),
    ),
    st.binary(max_size=100),
)


def at_home(data: bytes, witness: Witness) -> bytes:
    """Put the uids of the witness where a strategy could only name them."""
    for name, wide, uid in (
        (b'"mine"', b"mine" * 4, witness.uid),
        (b'"victim"', b"victim__" * 2, witness.victim),
    ):
        data = data.replace(wide, uid.bytes)
        if data.find(name) >= 0:
            data = data.replace(name, b'"%s"' % uid.hex.encode())
            if len(data) >= 5 and data[4] == protocol.CALL:
                data = struct.pack("<I", len(data)) + data[4:]
    return data


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@fuzz(150)
@given(messages=st.lists(st.lists(records, max_size=6), max_size=4))
def test_arbitrary_records_harm_nobody(
    witness: Witness, messages: list[list[bytes]]
) -> None:
    at = [b"".join(at_home(record, witness) for record in m) for m in messages]
    witness.runner.run(witness.send(at))


def conversation(witness: Witness) -> bytes:
    """Return what a client may say, all of it."""
    uid, other = witness.uid.hex, witness.victim.hex
    box = {"uid": uid, "token": None, "incarnation": "ab" * 16, "held": ["cd" * 16]}
    kinds = [
        {"method": "attach", "mailboxes": [box]},
        {"method": "register", "mailboxes": [{"uid": uuid4().hex, "agent": True}]},
        {"method": "watch", "uids": [uid, other]},
        {"method": "unwatch", "uids": [uid]},
        {"method": "discover", "agent": "a.B", "allow_subclasses": True},
        {"method": "terminate", "uid": other, "reason": "no"},
        {"method": "detach", "uid": uid, "released": [1]},
    ]
    sends = [send_record(witness.uid, witness.uid, n) for n in range(1, 5)]
    call = [protocol.numbered(protocol.CALL, n, kind) for n, kind in enumerate(kinds)]
    return b"".join(
        [
            *(call[0], *sends, protocol.numbered(protocol.RECEIPT, 4), *call[1:]),
            protocol.confirm(3),
        ]
    )


@fuzz(150)
@given(
    flips=st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 255)), max_size=8),
    cut=st.integers(0, 5_000),
    twice=st.booleans(),
)
def test_a_damaged_conversation_harms_nobody(
    witness: Witness, flips: list[tuple[int, int]], cut: int, twice: bool
) -> None:
    data = bytearray(conversation(witness))
    for at, change in flips:
        data[at % len(data)] ^= change
    if cut < len(data):
        del data[cut:]
    witness.runner.run(witness.send([bytes(data)] * (1 + twice)))


def test_a_server_has_not_grown_by_all_of_it(witness: Witness) -> None:
    """Runs after the others of this module."""

    async def flood() -> None:
        for _ in range(20):
            await witness.send([os.urandom(100_000)])
            await witness.send([conversation(witness) for _ in range(50)])

    witness.runner.run(flood())
    assert witness.process.memory_info().rss < witness.before + GROWTH
    assert "Traceback" not in witness.server.log.read_text()
