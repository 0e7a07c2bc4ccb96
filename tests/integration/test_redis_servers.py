"""Several exchange servers over one Redis: any of them serves every mailbox."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from academy.exchange import HttpExchangeFactory
from academy.exchange.presence import PresenceState
from academy.manager import Manager
from academy.message import ActionRequest, Message
from tests.support.agents import Adder
from tests.support.calls import Server, call, calls_from, register, result
from tests.support.raw import RawClient
from tests.support.redis import Redis, redis_server
from tests.support.server import ExchangeServer
from tests.support.servers import Balancer, ExchangeServers
from tests.support.tcp_proxy import TcpProxy
from tests.support.v1_peer import V1Client, action, decode, entity
from tests.support.watcher import Watcher

pytestmark = pytest.mark.slow


@pytest.fixture
async def servers(tmp_path: Path, redis: Redis) -> AsyncIterator[ExchangeServers]:
    async with ExchangeServers(tmp_path / "servers", redis) as servers:
        yield servers


@pytest.fixture
def haproxy(tmp_path: Path, servers: ExchangeServers) -> Iterator[Balancer]:
    with Balancer("haproxy", tmp_path / "haproxy", servers.all) as haproxy:
        yield haproxy


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "record") as server:
        yield server


def own_connection(
    servers: ExchangeServers, port: int, name: str
) -> HttpExchangeFactory:
    """Make a factory that shares its connection with no other, and finds dead ones."""
    return servers[0].factory(
        port,
        additional_headers={"X-Name": name},
        heartbeat=2,
        request_timeout_s=2,
        retries=7,
    )


async def calls_through(servers: ExchangeServers, port: int, server: Server) -> None:
    """Make the calls of five programs to an agent, all of them connected at a port."""
    registration = await register(own_connection(servers, port, "first"))
    await server.start(own_connection(servers, port, "agent"), registration)
    senders = [own_connection(servers, port, name) for name in "abcde"]
    await calls_from(senders, registration, server)


# --- one exchange


async def test_agents_and_programs_at_different_servers_find_each_other(
    servers: ExchangeServers,
) -> None:
    at_first, at_second, at_third = (one.factory() for one in servers.all)
    async with await Manager.from_exchange_factory(at_first) as manager:
        adder = await manager.launch(Adder)
        for factory in (at_second, at_third):
            async with await factory.create_user_client() as client:
                response = await call_add(client, adder.agent_id, 1, 2)
                assert response == 3
                assert await client.discover(Adder) == (adder.agent_id,)
    owner = await servers.owner()
    assert owner is not None


async def call_add(client: Any, agent_id: Any, *arguments: int) -> Any:
    request = client.new_message(agent_id, ActionRequest.of("add", arguments))
    return result(await client.request(request))


async def test_clients_of_protocol_v1_are_relayed_as_well(
    servers: ExchangeServers,
) -> None:
    token = servers[0].authority.user_token("tester")
    async with await Manager.from_exchange_factory(servers[0].factory()) as manager:
        adder = await manager.launch(Adder)
        agent = {"uid": str(adder.agent_id.uid), "name": None, "role": "agent"}
        for one in servers.all:
            async with V1Client(one.url + "/v1", entity("user"), token) as client:
                await client.register()
                answer = await client.call(action(client.me, agent, "add", 1, 2))
                assert decode(answer["body"]["result"][1]) == 3

                await client.send(action(client.me, agent, "add", 3, 4))
                async for event in client.listen():
                    assert decode(event["body"]["result"][1]) == 7
                    break
                status = await client.ask("GET", "/mailbox", mailbox="no entity")
                assert status[0] == 400


async def test_refusals_of_the_owner_reach_a_relayed_client(
    servers: ExchangeServers,
) -> None:
    token = servers[0].authority.user_token("tester")
    async with RawClient(servers[0].url, token):
        for one in servers.all[1:]:
            async with V1Client(one.url, entity("user"), token) as client:
                status = await client.ask(
                    "GET", "/mailbox/stats", mailbox=client.mailbox
                )
                assert status[0] == 404
            async with V1Client(one.url, entity("user"), "not a token") as client:
                status = await client.ask("GET", "/mailbox", mailbox=client.mailbox)
                assert status[0] == 403


async def test_new_namespaces_go_to_the_server_that_has_the_fewest(
    servers: ExchangeServers,
) -> None:
    async with AsyncExitStack() as stack:
        for number in range(6):
            token = servers[0].authority.user_token("tester", f"n{number}")
            await stack.enter_async_context(RawClient(servers[0].url, token))
        owners = [await servers.owner(f"n{number}") for number in range(6)]

    assert sorted(map(servers.all.index, filter(None, owners))) == [0, 0, 1, 1, 2, 2]


async def test_a_request_is_relayed_once_and_then_to_be_tried_again(
    servers: ExchangeServers,
) -> None:
    token = servers[0].authority.user_token("tester")
    async with RawClient(servers[0].url, token):
        owner = await servers.owner()
        for one in servers.all:
            async with V1Client(one.url, entity("user"), token) as client:
                client.headers["Academy-Relayed"] = "1"
                await client._http.close()
                async with client:
                    status, text = await client.ask(
                        "GET", "/mailbox", mailbox=client.mailbox
                    )
            assert (status, one is owner) in ((200, True), (503, False)), text


async def test_a_namespace_that_nobody_uses_is_given_up(
    tmp_path: Path, redis: Redis
) -> None:
    backend = {"idle_seconds": 0.1, "lease_seconds": 0.6}
    async with ExchangeServers(tmp_path / "s", redis, 1, **backend) as servers:
        registration = await register(servers[0].factory())
        async with asyncio.timeout(30):
            while await servers.owner() is not None:
                await asyncio.sleep(0.02)

        async with await servers[0].factory().create_user_client() as client:
            assert await client.discover(Adder) == (registration.agent_id,)
            assert await servers.owner() is servers[0]


async def test_a_client_that_vanishes_behind_a_relay_is_missed_by_the_owner(
    tmp_path: Path, redis: Redis
) -> None:
    watcher = Watcher()
    async with (
        ExchangeServers(tmp_path / "s", redis, 2, 0.5) as servers,
        await servers[0].factory().create_user_client() as user,
    ):
        owner = await servers.owner()
        assert owner is not None
        other = next(one for one in servers.all if one is not owner)
        registration = await user.register_agent(Adder)
        async with TcpProxy(other.port) as proxy:
            agent = await other.factory(proxy.port).create_agent_client(
                registration, lambda message: None
            )
            await user.watch([registration.agent_id], watcher)
            await watcher.until(registration.agent_id, PresenceState.ATTACHED)

            proxy.stall()

            await watcher.until(registration.agent_id, PresenceState.GONE)
            proxy.resume()
            proxy.cut()
            await agent.close()


# --- servers that go


@pytest.mark.parametrize("victim", ["owner", "relay"])
async def test_a_server_is_killed_in_mid_traffic(
    servers: ExchangeServers, haproxy: Balancer, server: Server, victim: str
) -> None:
    killed: list[ExchangeServer] = []

    async def kill() -> None:
        # Another one becomes the owner only when the lease of the last has ended.
        while (owner := await servers.owner()) is None:
            await asyncio.sleep(0.05)
        others = [one for one in servers.all if one not in (owner, *killed)]
        one = owner if victim == "owner" else others[0]
        one.shoot()
        killed.append(one)
        await one.restart()

    server.at = {300: kill, 700: kill}
    await calls_through(servers, haproxy.port, server)
    assert len(killed) == 2


async def test_a_server_that_stands_still_for_longer_than_its_lease_does_no_harm(
    servers: ExchangeServers, haproxy: Balancer, server: Server
) -> None:
    old = await first_owner(servers)

    async def stand_still() -> None:
        os.kill(old.pid, signal.SIGSTOP)
        try:
            await servers.owner_but(old)
        finally:
            os.kill(old.pid, signal.SIGCONT)
        async with asyncio.timeout(30):
            while "another server's now" not in old.log.read_text():
                await asyncio.sleep(0.05)

    server.at[300] = stand_still
    await calls_through(servers, haproxy.port, server)
    assert len(server.begun) == 1


async def test_a_server_that_is_stopped_hands_over_at_once(
    tmp_path: Path, redis: Redis, server: Server
) -> None:
    """Its lease would have lasted for longer than the test."""
    codes: list[int] = []
    async with ExchangeServers(tmp_path / "s", redis, lease_seconds=600) as servers:

        async def stop() -> None:
            owner = await servers.owner()
            assert owner is not None
            codes.append(await asyncio.to_thread(owner.stop))
            assert await servers.owner() is not owner
            await asyncio.to_thread(owner.start)

        server.at[300] = stop
        with Balancer("haproxy", tmp_path / "haproxy", servers.all) as haproxy:
            await calls_through(servers, haproxy.port, server)
    assert codes == [0]


async def test_a_large_message_outlives_the_server_that_has_taken_it(
    servers: ExchangeServers,
) -> None:
    """Its bytes are in Redis, not on that server."""
    payload = random.Random(1).randbytes(3_000_000)
    received: asyncio.Queue[Message] = asyncio.Queue()
    owner = await first_owner(servers)
    other = next(one for one in servers.all if one is not owner)
    async with await other.factory().create_user_client() as user:
        registration = await user.register_agent(Adder)
        request = ActionRequest.of("record", (payload,))
        await user.send(user.new_message(registration.agent_id, request))

        owner.kill()

        agent = await other.factory(retries=7).create_agent_client(
            registration, received.put_nowait
        )
        async with asyncio.timeout(30):
            body = (await received.get()).get_body()
        assert isinstance(body, ActionRequest)
        assert body.get_args() == (payload,)
        assert await servers.owner() is not owner
        await agent.close()


async def test_a_large_message_is_sent_again_when_its_owner_dies_while_it_comes(
    servers: ExchangeServers,
) -> None:
    """It goes through a server that relays it, to whoever owns the namespace then."""
    owner = await first_owner(servers)
    other = next(one for one in servers.all if one is not owner)
    payload = random.Random(2).randbytes(40_000_000)
    received: asyncio.Queue[Message] = asyncio.Queue()
    async with TcpProxy(other.port) as proxy:
        factory = own_connection(servers, proxy.port, "large")
        async with await factory.create_user_client() as user:
            registration = await user.register_agent(Adder)
            request = ActionRequest.of("record", (payload,))
            message = user.new_message(registration.agent_id, request)
            sending = asyncio.create_task(user.send(message))
            while proxy.forwarded < 10_000_000:
                await asyncio.sleep(0.001)
            assert not sending.done()

            owner.kill()

            await sending
            agent = await other.factory(retries=7).create_agent_client(
                registration, received.put_nowait
            )
            async with asyncio.timeout(60):
                body = (await received.get()).get_body()
            assert isinstance(body, ActionRequest)
            assert body.get_args() == (payload,)
            await agent.close()


async def first_owner(servers: ExchangeServers) -> ExchangeServer:
    async with await servers[0].factory().create_user_client():
        owner = await servers.owner()
    assert owner is not None
    return owner


# --- a Redis that goes, or is full


async def test_redis_is_killed_and_started_again_in_mid_traffic(
    redis: Redis, servers: ExchangeServers, haproxy: Balancer, server: Server
) -> None:
    async def restart() -> None:
        redis.kill()
        await asyncio.to_thread(redis.start)

    server.at = {300: restart, 700: restart}
    await calls_through(servers, haproxy.port, server)
    assert len(server.begun) == 2


async def test_a_full_redis_holds_a_call_up_and_does_not_lose_it(
    redis: Redis, servers: ExchangeServers, server: Server
) -> None:
    factory = own_connection(servers, servers[0].port, "user")
    async with (
        await factory.create_user_client() as user,
        redis_server(redis.url) as connection,
    ):
        owner = await servers.owner()
        assert owner is not None
        registration = await user.register_agent(Adder)
        await server.start(servers[0].factory(), registration)
        await connection.call("CONFIG", "SET", "maxmemory", "1")

        held_up = call(user, registration.agent_id, 1, 2)
        async with asyncio.timeout(30):
            while "'maxmemory'" not in owner.log.read_text():
                await asyncio.sleep(0.02)
        assert not held_up.done()

        await connection.call("CONFIG", "SET", "maxmemory", "0")
        assert result(await held_up) == (1, 4)
    assert server.executed == [(1, 2)]


# --- behind a proxy


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
async def test_clients_of_both_protocols_work_through(
    tmp_path: Path, servers: ExchangeServers, server: Server, kind: str
) -> None:
    with Balancer(kind, tmp_path / kind, servers.all) as balancer:
        port = balancer.port
        registration = await register(servers[0].factory(port))
        await server.start(own_connection(servers, port, "agent"), registration)
        token = servers[0].authority.user_token("tester")
        agent = {"uid": str(registration.agent_id.uid), "name": None, "role": "agent"}
        url = f"http://127.0.0.1:{port}"
        async with V1Client(url, entity("user"), token) as client:
            await client.register()
            await client.send(action(client.me, agent, "record", "v1", 21))
            async for event in client.listen():
                assert decode(event["body"]["result"][1]) == ("v1", 42)
                break
        async with await servers[0].factory(port).create_user_client() as user:
            answer = await call(user, registration.agent_id, "v2", 4)
            assert result(answer) == ("v2", 8)


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
async def test_clients_pin_one_certificate_of_all_servers(
    tmp_path: Path, redis: Redis, server: Server, kind: str
) -> None:
    async with ExchangeServers(tmp_path / "s", redis, tls=True) as servers:
        fingerprint = servers[1].fingerprint
        with Balancer(kind, tmp_path / kind, servers.all) as balancer:
            ports = (balancer.port, servers[0].port, servers[1].port)
            at = [servers[0].factory(p, fingerprint=fingerprint) for p in ports]
            registration = await register(at[0])
            await server.start(at[1], registration)
            for factory in at:
                async with await factory.create_user_client() as user:
                    answer = await call(user, registration.agent_id, "tls", 4)
                    assert result(answer) == ("tls", 8)
