"""Clients that send faster than their namespace may: they wait, and lose nothing."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from academy.agent import Agent, action
from academy.exception import QuotaExceededError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud import protocol
from academy.handle import Handle
from academy.runtime import Runtime
from tests.support.raw import RawClient, send_record
from tests.support.redis import Redis
from tests.support.server import ExchangeServer
from tests.support.servers import relay_and_owner
from tests.support.tcp_proxy import TcpProxy

HEARTBEAT = 0.4
DAY = 86_400
RATES = {
    "namespaces.messages": {"messages_per_second": 250, "burst_seconds": 0.1},
    "namespaces.bytes": {"bytes_per_second": 1_000_000, "burst_seconds": 0.1},
    "namespaces.stopped": {"messages_per_second": 1 / DAY, "burst_seconds": DAY},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    folder = tmp_path_factory.mktemp("exchange")
    with ExchangeServer(folder, heartbeat_interval=HEARTBEAT, **RATES) as server:
        yield server


def of(
    server: ExchangeServer, namespace: str, port: int | None = None
) -> HttpExchangeFactory:
    token = server.authority.user_token("ada", namespace)
    return server.factory(port, token=token, heartbeat=HEARTBEAT)


class Echo(Agent):
    def __init__(self) -> None:
        self.got: list[int] = []

    @action
    async def echo(self, number: int) -> int:
        self.got.append(number)
        return number

    @action
    async def digest(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def echo(factory: HttpExchangeFactory) -> AsyncIterator[tuple[Any, Echo]]:
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(Echo)
        runtime = Runtime(Echo(), exchange_factory=factory, registration=registration)
        running = asyncio.create_task(runtime.run_until_complete())
        yield Handle(registration.agent_id, exchange=client), runtime.agent
        runtime.signal_shutdown()
        await running


async def metric(server: ExchangeServer, name: str, namespace: str) -> float:
    async with (
        aiohttp.ClientSession(server.url) as http,
        http.get("/metrics") as response,
    ):
        line = rf'^academy_exchange_{name}{{namespace="{namespace}"}} (.*)$'
        found = re.search(line, await response.text(), flags=re.MULTILINE)
    assert found is not None
    return float(found[1])


async def test_calls_beyond_the_rate_wait_in_order_and_no_connection_is_lost(
    server: ExchangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with echo(of(server, "messages")) as (handle, agent):
        calls = [asyncio.create_task(handle.echo(n)) for n in range(400)]
        async with echo(of(server, "other")) as (other, _):
            more = await asyncio.gather(*(other.echo(n) for n in range(400)))
            assert more == list(range(400))
        assert await asyncio.gather(*calls) == list(range(400))
        assert agent.got == list(range(400))

    # The client and the agent share a connection, which was silent for much longer
    # than it takes to count as dead.
    assert await metric(server, "throttled_seconds_total", "messages") > 3 * HEARTBEAT
    assert await metric(server, "throttles_total", "messages") >= 1
    assert await metric(server, "throttles_total", "other") == 0
    assert "lost" not in caplog.text
    assert "namespace messages sends faster than it may" in server.log.read_text()


async def test_a_large_message_beyond_the_rate_arrives_whole_by_the_same_connection(
    server: ExchangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with echo(of(server, "bytes")) as (handle, _):
        data = bytes(range(250)) * 10_000
        assert await handle.digest(data) == hashlib.sha256(data).hexdigest()
    assert await metric(server, "throttled_seconds_total", "bytes") > 2 * HEARTBEAT
    assert "lost" not in caplog.text


async def test_a_client_that_vanishes_while_it_has_to_wait_is_missed(
    server: ExchangeServer,
) -> None:
    token = server.authority.user_token("ada", "stopped")
    uid = uuid4()
    async with TcpProxy(server.port) as proxy:
        client = RawClient(f"http://127.0.0.1:{proxy.port}", token)
        async with client:
            boxes = [{"uid": uid.hex, "agent": False}]
            await client.ws.send_bytes(
                protocol.numbered(
                    protocol.CALL, 1, {"method": "register", "mailboxes": boxes}
                )
            )
            await client.next(protocol.REPLY)
            # It has used up what it may send in a day, and is read no more.
            while not await metric(server, "throttles_total", "stopped"):
                await client.ws.send_bytes(send_record(uid, uid))
            assert await metric(server, "connections", "stopped") == 1
            proxy.cut()
            async with asyncio.timeout(30):
                while await metric(server, "connections", "stopped"):
                    await asyncio.sleep(0.05)


async def test_rates_and_quotas_hold_at_a_server_that_relays_the_namespace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    config = {**RATES, "namespaces.few": {"max_namespace_connections": 1}}
    names = ("messages", "few")
    options = {"heartbeat_interval": HEARTBEAT, "config": config}
    with (
        Redis(tmp_path / "redis") as redis,
        relay_and_owner(tmp_path, redis, *names, **options) as (relay, owner),
    ):
        async with echo(of(relay, "messages")) as (handle, _):
            calls = [handle.echo(n) for n in range(300)]
            assert await asyncio.gather(*calls) == list(range(300))
        throttled = await metric(owner, "throttled_seconds_total", "messages")
        assert throttled > 2 * HEARTBEAT
        assert "lost" not in caplog.text

        async with await of(relay, "few").create_user_client():
            for server in (owner, relay):
                with pytest.raises(QuotaExceededError, match="1 of its 1 connections"):
                    await server.factory(
                        token=server.authority.user_token("bob", "few"), retries=0
                    ).create_user_client()


async def test_requests_of_protocol_v1_beyond_the_rate_are_told_when_to_come_again(
    tmp_path: Path,
) -> None:
    limits = {"messages_per_second": 2 / DAY, "burst_seconds": DAY}
    with ExchangeServer(tmp_path, limits=limits) as server:
        token = server.authority.user_token("ada")
        headers = {"Authorization": f"Bearer {token}"}
        statuses = []
        async with aiohttp.ClientSession(server.url, headers=headers) as http:
            mailbox = {"role": "agent", "uid": str(uuid4()), "name": None}
            content = {"mailbox": mailbox, "agent": "m.Echo"}
            for _ in range(4):
                async with http.post("/mailbox", json=content) as response:
                    statuses.append(response.status)
                    words = await response.text()
        assert statuses == [200, 200, 200, 429]
        wait = int(response.headers["Retry-After"])
        assert math.isclose(wait, DAY / 2, rel_tol=0.01)
        assert "messages per second, and has sent more" in words
