"""A real exchange process, its peers, its files and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from academy.exception import (
    ExchangeConnectionError,
    ExchangeError,
    ForbiddenError,
    MailboxFullError,
    MessageTooLargeError,
    UnauthorizedError,
)
from academy.exchange import (
    AgentExchangeClient,
    HttpExchangeFactory,
    MailboxStatus,
    UserExchangeClient,
)
from academy.exchange.cloud import protocol
from academy.message import ActionRequest, Message, SuccessResponse
from academy.runtime import Runtime
from tests.support.agents import Adder
from tests.support.server import ExchangeServer, free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ExchangeServer]:
    with ExchangeServer(tmp_path / "exchange") as server:
        yield server


async def agent_of(
    user: UserExchangeClient, factory: HttpExchangeFactory
) -> AgentExchangeClient:
    """Register an agent that answers everything with success."""
    registration = await user.register_agent(Adder)

    def answer(request: Message) -> None:
        client.post(request.create_response(SuccessResponse()))

    client = await factory.create_agent_client(registration, answer)
    return client


async def call(user: UserExchangeClient, agent: AgentExchangeClient) -> None:
    request = user.new_message(agent.client_id, ActionRequest.of("noop"))
    assert isinstance((await user.request(request)).get_body(), SuccessResponse)


# --- who is let in


@pytest.mark.parametrize("token", ["nonsense", "eyJhbGciOiJub25lIn0.e30."])
async def test_a_token_of_another_exchange_is_refused_and_the_address_named(
    token: str, server: ExchangeServer
) -> None:
    with pytest.raises(UnauthorizedError, match=f"{server.url}: the token is not one"):
        await server.factory(token=token).create_user_client()


async def test_without_a_token_one_learns_how_to_give_one(
    server: ExchangeServer,
) -> None:
    with pytest.raises(UnauthorizedError, match="ACADEMY_EXCHANGE_TOKEN"):
        await HttpExchangeFactory(server.url).create_user_client()


async def test_an_agents_token_opens_its_own_mailbox_only(
    server: ExchangeServer,
) -> None:
    async with await server.factory().create_user_client() as user:
        mine, other = await user.register_agents([(Adder, None), (Adder, None)])
        factory = HttpExchangeFactory(server.url, token=mine.token)
        stolen = type(other)(other.agent_id, mine.token)
        with pytest.raises(ForbiddenError):
            await factory.create_agent_client(stolen, print)
        client = await factory.create_agent_client(mine, print)
        with pytest.raises(ForbiddenError):
            await client.terminate(other.agent_id)
        assert await user.status(other.agent_id) is MailboxStatus.ACTIVE
        await client.close()


async def test_an_insecure_exchange_lets_everybody_in_and_says_so(
    tmp_path: Path,
) -> None:
    with ExchangeServer(tmp_path, auth={"method": "none"}) as server:
        factory = HttpExchangeFactory(server.url)
        async with await factory.create_user_client() as user:
            agent = await agent_of(user, factory)
            await call(user, agent)
            await agent.close()
        assert "INSECURE" in server.log.read_text()


async def test_an_exchange_that_is_not_there_is_named_in_bounded_time() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    factory = HttpExchangeFactory(url, initial_retry_backoff=0.1)
    with pytest.raises(ExchangeConnectionError, match=url):
        await factory.create_user_client()


async def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        factory = HttpExchangeFactory(url, request_timeout_s=0.2, retries=0)
        with pytest.raises(ExchangeConnectionError, match=url):
            await factory.create_user_client()


# --- what it refuses


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00",
        b"\xff" * 100,
        protocol.confirm(1),
        protocol.numbered(protocol.CALL, 1, {"method": "no such"}),
        protocol.numbered(protocol.CALL, 1, ["attach"]),
        protocol.MESSAGE.pack(200, 4, 0, 1, 0, b"", b"", b""),
        "text",
    ],
    ids=["short", "noise", "servers", "method", "list", "truncated", "text"],
)
async def test_a_malformed_frame_closes_its_connection_and_disturbs_nobody(
    garbage: bytes | str, server: ExchangeServer
) -> None:
    factory = server.factory()
    headers = {
        "Authorization": f"Bearer {factory.find_token()}",
        protocol.PROTOCOL_HEADER: str(protocol.PROTOCOL),
        protocol.SESSION_HEADER: os.urandom(16).hex(),
    }
    async with await factory.create_user_client() as user:
        agent = await agent_of(user, factory)
        url = server.url + protocol.PATH
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(url, headers=headers) as ws,
        ):
            if isinstance(garbage, str):
                await ws.send_str(garbage)
            else:
                await ws.send_bytes(garbage)
            while (message := await ws.receive()).type != aiohttp.WSMsgType.CLOSE:
                assert message.type is aiohttp.WSMsgType.BINARY
            assert message.data == aiohttp.WSCloseCode.PROTOCOL_ERROR
            assert message.extra  # the reason
        await call(user, agent)
        await agent.close()


async def test_a_frame_above_the_limit_closes_its_connection_only(
    tmp_path: Path,
) -> None:
    limits = {"max_message_bytes": 1000}
    with ExchangeServer(tmp_path, limits=limits) as server:
        factory = server.factory()
        async with await factory.create_user_client() as user:
            agent = await agent_of(user, factory)
            request = ActionRequest.of("noop", (b"x" * 1001,))
            with pytest.raises(MessageTooLargeError, match="1000 bytes"):
                user.request(user.new_message(agent.client_id, request))
            await call(user, agent)
            await agent.close()


async def test_a_full_mailbox_refuses_its_senders_and_no_others(
    tmp_path: Path,
) -> None:
    with ExchangeServer(tmp_path, limits={"max_mailbox_messages": 3}) as server:
        factory = server.factory()
        async with await factory.create_user_client() as user:
            full = await user.register_agent(Adder)
            agent = await agent_of(user, factory)
            calls = [
                user.request(user.new_message(full.agent_id, ActionRequest.of("noop")))
                for _ in range(4)
            ]
            with pytest.raises(MailboxFullError, match="3 unsettled messages"):
                await calls[3]
            await call(user, agent)
            assert not any(waiting.done() for waiting in calls[:3])
            await agent.close()


# --- its process


def run(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "academy.exchange.cloud", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_port_in_use_is_named(server: ExchangeServer, tmp_path: Path) -> None:
    config = tmp_path / "second.toml"
    config.write_text(f'port = {server.port}\n[backend]\nkind = "memory"\n')
    second = run(config)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {server.port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_second_exchange_on_the_same_file_is_refused(
    server: ExchangeServer, tmp_path: Path
) -> None:
    config = tmp_path / "second.toml"
    config.write_text(f'port = 0\n[backend]\npath = "{server.database}"\n')
    second = run(config)
    assert second.returncode == 1
    assert f"{server.database} is in use by another exchange" in second.stderr
    assert "Traceback" not in second.stderr


def test_an_unknown_key_is_named_with_its_neighbours(tmp_path: Path) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text("prot = 1\n")
    result = run(config)
    assert result.returncode == 1
    assert "unknown key 'prot', did you mean 'port'?" in result.stderr


async def test_sigterm_ends_it_in_order_and_what_it_has_outlives_it(
    server: ExchangeServer,
) -> None:
    factory = server.factory()
    user = await factory.create_user_client()
    registration = await user.register_agent(Adder)
    await user.send(user.new_message(registration.agent_id, ActionRequest.of("noop")))
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(server.start)
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE
    assert (await user.agent_stats(registration.agent_id)).queued == 1
    await user.close()


async def test_its_files_are_private_and_its_secrets_are_nowhere_else(
    server: ExchangeServer,
) -> None:
    factory = server.factory()
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        process = psutil.Process(server.pid)
        token = factory.find_token()
        assert token is not None
        assert registration.token is not None
        secrets = [server.key_file.read_text().strip(), token, registration.token]
        seen = [" ".join(process.cmdline()), str(process.environ())]
        seen += [server.log.read_text(), repr(factory), repr(registration), repr(user)]
        for secret in secrets:
            assert not any(secret in text for text in seen)
    files = [server.key_file, server.database, server.log.parent / "home/exchange.json"]
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_many_mailboxes_of_a_loop_share_one_connection(
    server: ExchangeServer,
) -> None:
    factory = server.factory()
    async with await factory.create_user_client() as user:
        agents = [await agent_of(user, factory) for _ in range(20)]
        await asyncio.gather(*(call(user, agent) for agent in agents))
        connections = [
            connection
            for connection in psutil.Process().net_connections("tcp")
            if getattr(connection.raddr, "port", None) == server.port
        ]
        assert len(connections) == 1
        for agent in agents:
            await agent.close()


def test_a_spawned_exchange_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from academy.exchange.cloud import spawn_http_exchange\n"
        "with spawn_http_exchange() as factory:\n"
        "    print(factory.url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("http://")
        (exchange,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
        gone, _ = psutil.wait_procs([exchange], timeout=20)
        assert gone == [exchange]


async def test_an_agent_that_ends_gives_an_exchange_up_that_is_gone(
    server: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("academy.exchange.client.TERMINATE_PATIENCE", 0.1)
    factory = server.factory()
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        runtime = Runtime(Adder(), exchange_factory=factory, registration=registration)
        with pytest.raises(ExchangeError, match="was not terminated"):
            async with runtime:
                await asyncio.to_thread(server.kill)
