"""Large messages while connections, exchanges, disks and people break."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from academy.exception import AgentTerminatedError, ExchangeError, MessageExpiredError
from academy.exchange.cloud import protocol
from academy.handle import Handle
from academy.message import ActionRequest
from academy.runtime import Runtime
from academy.serialize import PICKLE, Payload
from tests.support.library import (
    Library,
    bodies,
    content,
    digest,
    library,
    until_bodies_are,
)
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture
def durable(tmp_path: Path) -> Any:
    with ExchangeServer(tmp_path) as server:
        yield server


async def test_an_exchange_that_is_killed_in_mid_transfer_gets_it_again(
    durable: ExchangeServer,
) -> None:
    async with (
        TcpProxy(durable.port) as proxy,
        library(durable.factory(), durable.factory(proxy.port)) as (handle, agent),
    ):
        data = content(30_000_000)
        proxy.delay = 0.001
        call = asyncio.create_task(handle.digest(data))
        await until_bodies_are(durable, 5_000_000)
        await durable.restart()
        proxy.delay = 0
        assert await call == digest(data)
        assert agent.calls == [len(data)]
        await until_bodies_are(durable, 0)


@asynccontextmanager
async def killed_before_it_stores(
    server: ExchangeServer, proxy: TcpProxy, size: int
) -> AsyncIterator[None]:
    """Kill an exchange that has all parts of a body, but not the message behind them.

    The one who sends it comes through the proxy, and comes back at the end.
    """
    assert size < protocol.WINDOW  # so that all parts are sent without a word from it
    proxy.delay = 0.01
    await until_bodies_are(server, 1)
    proxy.mute()
    await until_bodies_are(server, size)
    proxy.deafen()
    await proxy.held.wait()  # the message
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    assert bodies(server) == {}
    yield
    proxy.delay = 0
    proxy.resume()


async def test_a_body_is_sent_again_if_its_exchange_was_killed_before_the_commit(
    durable: ExchangeServer,
) -> None:
    data = content(3_000_000)
    async with (
        TcpProxy(durable.port) as proxy,
        library(durable.factory(), durable.factory(proxy.port)) as (handle, agent),
    ):
        calls = [asyncio.create_task(handle.digest(each)) for each in (data, b"small")]
        async with killed_before_it_stores(durable, proxy, len(data)):
            pass
        assert await asyncio.gather(*calls) == [digest(data), digest(b"small")]
        assert agent.calls == [len(data), 5]
        await until_bodies_are(durable, 0)


async def test_a_body_is_not_sent_again_to_who_is_gone_by_then(
    durable: ExchangeServer,
) -> None:
    factory = durable.factory()
    async with (
        TcpProxy(durable.port) as proxy,
        library(factory) as (other, agent),
        await factory.create_user_client() as direct,
        await durable.factory(proxy.port).create_user_client() as client,
    ):
        gone = (await client.register_agent(Library)).agent_id
        handle: Handle[Library] = Handle(gone, exchange=client)
        data = content(3_000_000)
        call = asyncio.create_task(handle.digest(data))
        async with killed_before_it_stores(durable, proxy, len(data)):
            await direct.terminate(gone)
            sent = proxy.forwarded
        with pytest.raises(AgentTerminatedError):
            await call
        assert proxy.forwarded - sent < 1_000_000
        # What comes after it is in order.
        handle = Handle(other.agent_id, exchange=client)
        assert await handle.digest(data) == digest(data)
        assert agent.calls == [len(data)]
        await until_bodies_are(durable, 0)


async def test_an_answer_is_not_sent_again_to_who_is_gone_by_then(
    durable: ExchangeServer,
) -> None:
    factory = durable.factory()
    size = 3_000_000
    async with (
        TcpProxy(durable.port) as proxy,
        library(durable.factory(proxy.port), factory) as (handle, _),
    ):
        client = await factory.create_user_client()
        asking: Handle[Library] = Handle(
            handle.agent_id, exchange=client, ignore_context=True
        )
        call = asyncio.create_task(asking.random(size))
        async with killed_before_it_stores(durable, proxy, size):
            await client.close()
            with pytest.raises(ExchangeError, match="was closed"):
                await call
            sent = proxy.forwarded
        assert await handle.echo("after it") == "after it"
        assert proxy.forwarded - sent < 1_000_000
        assert (await handle.agent_stats()).in_progress == 0
        await until_bodies_are(durable, 0)


async def test_a_transfer_goes_on_where_a_cut_connection_left_it(
    durable: ExchangeServer,
) -> None:
    """No connection lives long enough for a third of it."""
    factory = durable.factory()
    chance = random.Random(1)
    async with TcpProxy(durable.port) as proxy:
        proxied = durable.factory(proxy.port)
        async with library(factory, proxied) as (up, _), library(proxied) as (down, _):
            proxy.budget = lambda: chance.randrange(6_000_000, 9_000_000)
            proxy.cut()
            data = content(30_000_000)
            assert await up.digest(data) == digest(data)
            async with await factory.create_user_client():
                assert await down.digest(data) == digest(data)
            assert digest(await up.random(len(data))) == digest(data)
            proxy.heal()
        await until_bodies_are(durable, 0)


async def test_a_message_waits_for_an_agent_through_a_restart(
    durable: ExchangeServer,
) -> None:
    factory = durable.factory()
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(Library)
        data = content(3_000_000)
        arguments = Payload(PICKLE, ((data,), {}))
        message = client.new_message(
            registration.agent_id, ActionRequest("digest", arguments)
        )
        answer = client.request(message)
        await until_bodies_are(durable, len(data))
        await durable.restart()
        runtime = Runtime(
            Library(), exchange_factory=factory, registration=registration
        )
        running = asyncio.create_task(runtime.run_until_complete())
        body = (await answer).get_body()
        assert body.get_result() == digest(data)
        await until_bodies_are(durable, 0)
        runtime.signal_shutdown()
        await running


async def test_a_transfer_waits_while_the_disk_is_full(durable: ExchangeServer) -> None:
    limit = resource.RLIMIT_FSIZE
    async with library(durable.factory()) as (handle, _):
        _, hard = resource.prlimit(durable.pid, limit)
        resource.prlimit(durable.pid, limit, (2_000_000, hard))
        data = content(5_000_000)
        call = asyncio.create_task(handle.digest(data))
        async with asyncio.timeout(60):
            while "gave up an upload" not in durable.log.read_text():
                await asyncio.sleep(0.01)
        resource.prlimit(durable.pid, limit, (hard, hard))
        assert await call == digest(data)


# --- time


@pytest.mark.parametrize("way", ["to the exchange", "to the agent"])
async def test_a_message_does_not_expire_while_it_is_on_its_way(
    tmp_path: Path, way: str
) -> None:
    limits = {"message_lifetime": 0.5}
    with ExchangeServer(tmp_path, limits=limits) as server:
        async with TcpProxy(server.port) as proxy:
            agents, callers = server.factory(), server.factory(proxy.port)
            if way == "to the agent":
                agents, callers = callers, agents
            async with library(agents, callers) as (handle, agent):
                data = content(10_000_000)
                proxy.delay = 0.01
                call = asyncio.create_task(handle.digest(data))
                while proxy.forwarded < 2_000_000:
                    await asyncio.sleep(0.005)
                proxy.stall()
                await until_expired(server)
                assert agent.calls == []
                proxy.delay = 0
                proxy.resume()
                assert await call == digest(data)
                await until_bodies_are(server, 0)


async def until_expired(server: ExchangeServer) -> None:
    """Wait until what is sent now, to somebody who is away, has expired."""
    async with await server.factory().create_user_client() as client:
        away = (await client.register_agent(Library)).agent_id
        with pytest.raises(MessageExpiredError):
            await Handle(away, exchange=client).ping()


async def test_a_message_that_has_waited_too_long_takes_its_body_along(
    tmp_path: Path,
) -> None:
    limits = {"message_lifetime": 0.5}
    with ExchangeServer(tmp_path, limits=limits) as server:
        async with await server.factory().create_user_client() as client:
            away = (await client.register_agent(Library)).agent_id
            with pytest.raises(MessageExpiredError):
                await Handle(away).digest(content(3_000_000))
            await until_bodies_are(server, 0)


async def test_a_call_that_takes_too_long_to_send_leaves_nothing(
    durable: ExchangeServer,
) -> None:
    async with (
        TcpProxy(durable.port) as proxy,
        library(durable.factory(), durable.factory(proxy.port)) as (handle, agent),
    ):
        proxy.delay = 0.02
        call = asyncio.create_task(handle.with_timeout(1).digest(content(30_000_000)))
        await until_bodies_are(durable, 1)
        with pytest.raises(TimeoutError):
            await call
        await until_bodies_are(durable, 0)
        proxy.delay = 0
        assert await handle.digest(b"small") == digest(b"small")
        assert agent.calls == [5]
