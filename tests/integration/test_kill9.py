"""What breaks in the middle of 1,000 calls: none is lost, none runs twice, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from academy.exchange import HttpExchangeFactory
from tests.support.calls import Server, calls_from, register
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "record") as server:
        yield server


def own_connection(
    exchange: ExchangeServer, name: str, port: int | None = None, **options: float
) -> HttpExchangeFactory:
    """Make a factory that shares its connection with no other."""
    return exchange.factory(port, additional_headers={"X-Name": name}, **options)


def senders(
    exchange: ExchangeServer, port: int | None = None, **options: float
) -> list[HttpExchangeFactory]:
    """Make the factories of five programs, two of which share a connection."""
    names = ["a", "b", "c", "d", "d"]
    return [own_connection(exchange, name, port, **options) for name in names]


def exchange_with(folder: Path, durability: str) -> ExchangeServer:
    backend = {"path": str(folder / "exchange.db"), "durability": durability}
    return ExchangeServer(folder, backend=backend)


@pytest.mark.parametrize(
    ("durability", "moments"),
    [("process", [1, 150, 333, 500, 777, 995]), ("power", [250, 750])],
)
async def test_the_exchange_is_killed_in_mid_traffic(
    tmp_path: Path, server: Server, durability: str, moments: list[int]
) -> None:
    with exchange_with(tmp_path / "exchange", durability) as exchange:

        def kill() -> Awaitable[None]:
            exchange.shoot()
            return exchange.restart()

        server.at = dict.fromkeys(moments, kill)
        registration = await register(exchange.factory())
        await server.start(own_connection(exchange, "agent"), registration)
        await calls_from(senders(exchange), registration, server)

    assert len(server.begun) == len(moments)


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_the_exchange_is_stopped_and_started_in_mid_traffic(
    tmp_path: Path, server: Server, durability: str
) -> None:
    codes = []
    with exchange_with(tmp_path / "exchange", durability) as exchange:

        async def restart() -> None:
            codes.append(await asyncio.to_thread(exchange.stop))
            await asyncio.to_thread(exchange.start)

        server.at = dict.fromkeys([100, 600], restart)
        registration = await register(exchange.factory())
        await server.start(own_connection(exchange, "agent"), registration)
        await calls_from(senders(exchange), registration, server)

    assert codes == [0, 0]


async def test_every_connection_is_cut_again_and_again(
    exchange: ExchangeServer, server: Server
) -> None:
    cuts = []
    registration = await register(exchange.factory())
    async with TcpProxy(exchange.port) as proxy:
        server.at = {n: lambda: cuts.append(proxy.cut()) for n in range(10, 1000, 20)}
        await server.start(own_connection(exchange, "agent", proxy.port), registration)
        await calls_from(senders(exchange, proxy.port), registration, server)

    assert len(cuts) == 50
    assert sum(cuts) > 50


@pytest.mark.parametrize("seed", range(3))
async def test_connections_break_at_any_byte(
    exchange: ExchangeServer, server: Server, seed: int
) -> None:
    """In the handshake, in the middle of a frame, or between two."""
    dice = random.Random(seed)
    registration = await register(exchange.factory())
    async with TcpProxy(exchange.port) as proxy:
        await server.start(own_connection(exchange, "agent", proxy.port), registration)

        proxy.budget = lambda: int(dice.lognormvariate(8.3, 1.2))
        proxy.cut()
        server.at[1000] = proxy.heal
        await calls_from(senders(exchange, proxy.port), registration, server)
        assert proxy.accepted > 30


async def test_the_network_stalls_and_delivers_late(
    exchange: ExchangeServer, server: Server
) -> None:
    """Old connections come to life again when they were replaced long ago."""
    registration = await register(exchange.factory())
    options = {"request_timeout_s": 0.5, "heartbeat": 0.3}
    async with TcpProxy(exchange.port) as proxy:

        async def stall() -> None:
            proxy.stall()
            await proxy.has_accepted(proxy.accepted + 3)
            proxy.resume()

        server.at = dict.fromkeys([100, 400, 700], stall)
        agent = own_connection(exchange, "agent", proxy.port, **options)
        await server.start(agent, registration)
        await calls_from(senders(exchange, proxy.port, **options), registration, server)

    assert len(server.begun) == 3
