"""Quotas of namespaces at a real exchange: what is refused, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import aiohttp
import pytest

from academy.agent import Agent, action
from academy.exception import QuotaExceededError
from academy.exchange import HttpExchangeFactory
from academy.handle import Handle
from academy.message import PingRequest
from academy.runtime import Runtime
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy

LIMITS = {
    "max_namespace_mailboxes": 4,
    "max_namespace_messages": 6,
    "max_namespace_bytes": 10_000_000,
}
TEAM = {"max_namespace_connections": 2, "max_namespace_mailboxes": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    folder = tmp_path_factory.mktemp("exchange")
    with ExchangeServer(folder, limits=LIMITS, **{"namespaces.team": TEAM}) as server:
        yield server


def of(
    server: ExchangeServer, namespace: str, port: int | None = None
) -> HttpExchangeFactory:
    token = server.authority.user_token("ada", namespace)
    return server.factory(port, token=token)


class Echo(Agent):
    @action
    async def echo(self, data: bytes) -> bytes:
        return data


async def test_a_namespace_that_has_its_messages_is_refused_more_and_others_are_not(
    server: ExchangeServer,
) -> None:
    async with await of(server, "full").create_user_client() as client:
        agents = [await client.register_agent(Echo) for _ in range(2)]
        handles = [Handle(agent.agent_id, exchange=client) for agent in agents]
        calls = [asyncio.create_task(h.echo(b"")) for h in 3 * handles + handles[:1]]
        with pytest.raises(QuotaExceededError, match="6 of its 6 unsettled messages"):
            await calls.pop()
        other = await of(server, "other").create_user_client()
        await other.send(other.new_message(other.client_id, PingRequest()))
        await other.close()

        factory = of(server, "full")
        async with asyncio.TaskGroup() as group:
            runtimes = [
                Runtime(Echo(), exchange_factory=factory, registration=registration)
                for registration in agents
            ]
            for runtime in runtimes:
                group.create_task(runtime.run_until_complete())
            assert await asyncio.gather(*calls) == 6 * [b""]
            assert await handles[0].echo(b"again") == b"again"
            for runtime in runtimes:
                runtime.signal_shutdown()


async def test_a_large_message_beyond_the_quota_is_refused_before_it_is_sent(
    server: ExchangeServer,
) -> None:
    async with (
        TcpProxy(server.port) as proxy,
        await of(server, "large", proxy.port).create_user_client() as client,
    ):
        registration = await client.register_agent(Echo)
        handle = Handle(registration.agent_id, exchange=client)
        with pytest.raises(QuotaExceededError, match="max_namespace_bytes"):
            await handle.echo(bytes(11_000_000))
        assert proxy.forwarded < 1_000_000


async def test_agents_beyond_the_quota_are_refused_until_others_are_terminated(
    server: ExchangeServer,
) -> None:
    async with await of(server, "agents").create_user_client() as client:
        agents = [await client.register_agent(Echo) for _ in range(3)]
        with pytest.raises(QuotaExceededError, match="4 of its 4 mailboxes"):
            await client.register_agent(Echo)
        async with await of(server, "agents").create_user_client() as second:
            await second.terminate(agents[0].agent_id)
            await second.terminate(agents[1].agent_id)
        assert await client.register_agent(Echo)


async def test_a_connection_beyond_the_quota_is_refused_until_another_one_ends(
    server: ExchangeServer,
) -> None:
    factories = [of(server, "team") for _ in range(3)]
    for number, factory in enumerate(factories):
        factory.additional_headers["X-Connection"] = str(number)
    async with await factories[0].create_user_client() as one:
        async with await factories[1].create_user_client():
            with pytest.raises(QuotaExceededError, match="2 of its 2 connections"):
                await factories[2].create_user_client()
        async with asyncio.timeout(30):
            while True:
                try:
                    third = await factories[2].create_user_client()
                except QuotaExceededError:
                    continue
                break
        await third.close()
        # What is said of this namespace counts before what is said of all.
        for _ in range(6):
            await one.register_agent(Echo)


async def test_clients_of_protocol_v1_are_told_to_try_again_later(
    server: ExchangeServer,
) -> None:
    token = server.authority.user_token("ada", "v1")
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(server.url, headers=headers) as http:
        for number in range(6):
            mailbox = {"role": "agent", "uid": str(uuid4()), "name": None}
            content = {"mailbox": mailbox, "agent": "m.Echo"}
            async with http.post("/mailbox", json=content) as response:
                assert response.status == (200 if number < 4 else 429)
                if number >= 4:
                    assert response.headers["Retry-After"] == "1"
                    assert "max_namespace_mailboxes" in await response.text()


async def test_metrics_show_what_a_namespace_may_have_beside_what_it_has(
    server: ExchangeServer,
) -> None:
    async with (
        await of(server, "team").create_user_client(),
        aiohttp.ClientSession(server.url) as http,
        http.get("/metrics") as response,
    ):
        text = await response.text()
    for line in (
        'quota{namespace="team",quota="max_namespace_connections"} 2.0',
        'quota{namespace="team",quota="max_namespace_messages"} 6.0',
        'connections{namespace="team"} 1.0',
    ):
        assert f"academy_exchange_{line}" in text
    assert 'quota{namespace="team",quota="max_namespace_mailboxes"}' not in text
