"""A hosted exchange as a process: how it starts, ends, and treats bad clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psutil
import pytest

from academy.exception import (
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeConnectionError,
    ForbiddenError,
    IncompatibleNetworkProtocolError,
    MailboxFullError,
    MessageTooLargeError,
    SupersededError,
    UnauthorizedError,
)
from academy.exchange import (
    HttpExchangeFactory,
    MailboxStatus,
    UserExchangeClient,
)
from academy.exchange.cloud import protocol, spawn_http_exchange
from academy.exchange.errors import unpack_error
from academy.identifier import AgentId
from academy.message import ActionRequest, Message, PingRequest, SuccessResponse
from tests.support.agents import Adder
from tests.support.calls import Server, call, calls_from, register, result
from tests.support.raw import RawClient, send_record
from tests.support.server import ExchangeServer, free_port
from tests.support.tcp_proxy import TcpProxy

SMALL = {
    "max_message_bytes": 20_000,
    "max_mailbox_messages": 20,
    "max_mailbox_bytes": 50_000,
}


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    """One for all tests that leave it alive."""
    folder = tmp_path_factory.mktemp("exchange")
    with ExchangeServer(folder, limits=SMALL, logger={"level": "DEBUG"}) as exchange:
        yield exchange


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ExchangeServer]:
    """One that a test may stop or kill."""
    with ExchangeServer(tmp_path / "exchange") as exchange:
        yield exchange


@pytest.fixture
async def user(exchange: ExchangeServer) -> AsyncIterator[UserExchangeClient]:
    async with await exchange.factory().create_user_client() as client:
        yield client


def another(exchange: ExchangeServer, **options: Any) -> HttpExchangeFactory:
    """Make a factory of clients that share their connection with no others."""
    headers = {"X-Name": str(uuid4())}
    return exchange.factory(additional_headers=headers, **options)


async def ping(client: UserExchangeClient) -> bool:
    """Whether messages cross."""
    request = client.new_message(client.client_id, PingRequest())
    async with asyncio.timeout(30):
        response = await client.request(request)
    return isinstance(response.get_body(), SuccessResponse)


def run_exchange(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an exchange that is expected to end by itself."""
    command = [sys.executable, "-m", "academy.exchange.cloud", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# --- how it starts


def test_a_port_in_use_is_named(exchange: ExchangeServer, tmp_path: Path) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text(f"port = {exchange.port}\n[backend]\nkind = 'memory'\n")
    ended = run_exchange("--config", str(config))

    assert ended.returncode == 1
    assert "The exchange cannot run: cannot listen on 127.0.0.1 port " in ended.stderr
    assert f"port {exchange.port}" in ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr

    with (
        pytest.raises(ExchangeConnectionError, match=f"127.0.0.1:{exchange.port}"),
        spawn_http_exchange(port=exchange.port),
    ):
        pass


def test_an_unknown_key_in_its_configuration_is_named_with_its_neighbours(
    tmp_path: Path,
) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text("prot = 1")
    ended = run_exchange("--config", str(config))

    assert ended.returncode == 1
    assert f"The exchange cannot run: {config}:" in ended.stderr
    assert "unknown key 'prot', did you mean 'port'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_configuration_is_checked_and_shown_without_starting_anything(
    tmp_path: Path, academy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text("port = 1\n")
    monkeypatch.setenv("ACADEMY_EXCHANGE__BACKEND__KIND", "memory")
    shown = run_exchange("--check", "--config", str(config))

    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"port = 1  # {config}" in shown.stdout
    assert 'kind = "memory"  # ACADEMY_EXCHANGE__BACKEND__KIND' in shown.stdout
    assert not academy_home.exists()

    monkeypatch.setenv("ACADEMY_EXCHANGE__PROT", "1")
    refused = run_exchange("--check")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "ACADEMY_EXCHANGE__PROT: did you mean" in refused.stderr


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = run_exchange("--config", str(tmp_path / "none.toml"))

    assert ended.returncode == 1
    assert "none.toml" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_exchange_on_the_same_file_is_refused(
    exchange: ExchangeServer, tmp_path: Path
) -> None:
    config = tmp_path / "exchange.toml"
    path = json.dumps(str(exchange.database))
    config.write_text(f"port = 0\n[backend]\npath = {path}\n")
    ended = run_exchange("--config", str(config))

    assert ended.returncode == 1
    assert f"{exchange.database} is in use by another exchange" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_exchange_that_asks_for_no_token_says_so(tmp_path: Path) -> None:
    auth = {"method": "none"}
    with ExchangeServer(tmp_path, auth=auth, backend={"kind": "memory"}) as exchange:

        async def use() -> None:
            factory = exchange.factory(token=None)
            async with await factory.create_user_client() as client:
                registration = await client.register_agent(Adder)
                assert registration.token is None
                assert await ping(client)

        asyncio.run(use())
    assert "INSECURE: everybody who reaches" in exchange.log.read_text()


# --- how it ends


async def test_sigterm_ends_it_with_nothing_lost(
    own: ExchangeServer, tmp_path: Path
) -> None:
    registration = await register(own.factory())
    async with await another(own).create_user_client() as client:
        calls = [call(client, registration.agent_id, 0, n) for n in range(500)]
        await asyncio.sleep(0)
        assert await asyncio.to_thread(own.stop) == 0
        await asyncio.to_thread(own.start)
        server = Server(tmp_path / "record")
        await server.start(another(own), registration)
        answers = [result(answer) for answer in await asyncio.gather(*calls)]
        await server.close()

    assert answers == [(0, 2 * n) for n in range(500)]
    assert server.executed == [(0, n) for n in range(500)]


def test_sigint_ends_it_as_well(own: ExchangeServer) -> None:
    os.kill(own.pid, signal.SIGINT)
    assert own.wait() == 0


async def test_mailboxes_and_messages_outlive_it(
    own: ExchangeServer, tmp_path: Path
) -> None:
    async with await own.factory().create_user_client() as client:
        kept, gone = await client.register_agents([(Adder, "kept"), (Adder, "gone")])
        await client.terminate(gone.agent_id)
        calls = [call(client, kept.agent_id, 0, n) for n in range(10)]
        await client.send(client.new_message(kept.agent_id, PingRequest()))
        assert await asyncio.to_thread(own.stop) == 0
        await asyncio.to_thread(own.start)

        assert await client.status(kept.agent_id) is MailboxStatus.ACTIVE
        assert await client.status(gone.agent_id) is MailboxStatus.TERMINATED
        assert await client.discover(Adder) == (kept.agent_id,)
        assert [a.name for a in await client.discover(Adder)] == ["kept"]
        assert (await client.agent_stats(kept.agent_id)).queued == 11
        await client.terminate(kept.agent_id)
        bodies = [answer.get_body() for answer in await asyncio.gather(*calls)]
        assert {type(body).__name__ for body in bodies} == {"AcademyErrorResponse"}


def test_a_spawned_exchange_ends_and_tidies_up_when_its_parent_is_killed(
    tmp_path: Path,
) -> None:
    program = (
        "import sys\n"
        "from academy.exchange.cloud import spawn_http_exchange\n"
        "with spawn_http_exchange() as factory:\n"
        "    print(factory.url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith(b"https://127.0.0.1:")
    assert list(temporary.iterdir())
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()

    child.wait(30)
    assert list(temporary.iterdir()) == []


def test_a_spawned_exchange_is_not_what_the_environment_says_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACADEMY_EXCHANGE__PORT", "1")
    monkeypatch.setenv("ACADEMY_EXCHANGE__PROT", "1")
    with spawn_http_exchange() as factory:
        assert not factory.url.endswith(":1")


async def test_a_spawned_exchange_ends_with_its_block() -> None:
    before = set(psutil.Process().children())
    with spawn_http_exchange() as factory:
        (child,) = set(psutil.Process().children()) - before
        async with await factory.create_user_client() as client:
            assert await ping(client)

    assert not child.is_running()


async def test_an_exchange_in_memory_that_is_gone_is_told_to_who_had_a_mailbox(
    tmp_path: Path,
) -> None:
    """Nobody waits for an answer that cannot come."""
    with ExchangeServer(tmp_path, backend={"kind": "memory"}) as exchange:
        client = await exchange.factory().create_user_client()
        registration = await client.register_agent(Adder)
        pending = call(client, registration.agent_id, 0, 0)
        await client.status(client.client_id)
        await exchange.restart()

        with pytest.raises(BadEntityIdError):
            await pending
        await client.close()


# --- who cannot reach it


async def test_an_exchange_that_is_not_there_is_named_with_the_reason() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    factory = HttpExchangeFactory(url, token="x", retries=0)
    with pytest.raises(ExchangeConnectionError) as refused:
        await factory.create_user_client()

    assert refused.value.address == url
    assert str(refused.value).startswith(f"Exchange {url} cannot be reached: ")
    assert "refused" in str(refused.value) or "Cannot connect" in str(refused.value)


async def test_an_exchange_that_does_not_answer_is_given_up(
    exchange: ExchangeServer,
) -> None:
    async with TcpProxy(exchange.port) as proxy:
        proxy.stall()
        factory = exchange.factory(proxy.port, retries=0, request_timeout_s=0.2)
        with pytest.raises(ExchangeConnectionError, match=f"{proxy.port}.*Timeout"):
            await factory.create_user_client()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
    ids=["404", "web page", "ssh", "hang up"],
)
async def test_what_is_not_an_exchange_is_named(answer: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        factory = HttpExchangeFactory(
            f"http://127.0.0.1:{port}", token="x", retries=0, request_timeout_s=5
        )
        with pytest.raises(ExchangeConnectionError, match=f"http://127.0.0.1:{port}"):
            await factory.create_user_client()


async def test_a_client_waits_for_an_exchange_that_is_starting(tmp_path: Path) -> None:
    exchange = ExchangeServer(tmp_path)
    factory = exchange.factory(retries=6, initial_retry_backoff=1)
    connecting = asyncio.ensure_future(factory.create_user_client())
    await asyncio.sleep(0)
    await asyncio.to_thread(exchange.start)
    with exchange.running():
        async with await connecting as client:
            assert await ping(client)


async def test_calls_fail_when_a_lost_exchange_does_not_come_back(
    own: ExchangeServer,
) -> None:
    factory = own.factory(reconnect_timeout_s=0.2)
    client = await factory.create_user_client()
    registration = await client.register_agent(Adder)
    pending = call(client, registration.agent_id, 0, 0)
    await client.status(client.client_id)
    await asyncio.to_thread(own.kill)

    with pytest.raises(ExchangeConnectionError, match=own.url):
        await pending
    with pytest.raises(ExchangeConnectionError, match=own.url):
        call(client, registration.agent_id, 0, 1)
    with pytest.raises(ExchangeConnectionError, match=own.url):
        await client.status(client.client_id)
    await client.close()


# --- who may not use it


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_a_missing_or_wrong_token_is_refused_with_address_and_reason(
    exchange: ExchangeServer, token: str | None
) -> None:
    with pytest.raises(UnauthorizedError, match=exchange.url) as refused:
        await exchange.factory(token=token).create_user_client()
    reason = "got none" if token is None else "not one of this exchange"
    assert reason in str(refused.value)


@pytest.mark.parametrize("token", [None, "wrong"])
async def test_a_connection_that_others_have_opened_admits_nobody_else(
    exchange: ExchangeServer, user: UserExchangeClient, token: str | None
) -> None:
    with pytest.raises(UnauthorizedError):
        await exchange.factory(token=token).create_user_client()
    assert await ping(user)


async def test_a_token_of_another_exchange_is_refused(
    exchange: ExchangeServer, own: ExchangeServer
) -> None:
    stranger = own.authority.user_token("tester")
    with pytest.raises(UnauthorizedError, match="there is no key"):
        await exchange.factory(token=stranger).create_user_client()


async def test_a_token_is_found_where_the_exchange_has_left_it(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = exchange.log.parent / "home"
    monkeypatch.setenv("ACADEMY_HOME", str(home))
    async with await HttpExchangeFactory(exchange.url).create_user_client() as client:
        assert await ping(client)
    assert stat.S_IMODE((home / "exchange.json").stat().st_mode) == 0o600


async def test_a_registration_is_all_that_an_agent_needs(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    factory = another(exchange, token=None)
    agent = await factory.create_agent_client(registration, lambda message: None)

    child = await agent.register_agent(Adder)
    with pytest.raises(ForbiddenError):
        await agent.terminate(user.client_id)
    await agent.terminate(child.agent_id)
    await agent.terminate(registration.agent_id)
    assert await user.status(child.agent_id) is MailboxStatus.TERMINATED
    assert await user.status(user.client_id) is MailboxStatus.ACTIVE
    await agent.close()


async def test_an_agents_token_opens_its_own_mailbox_only(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    mine, other = await user.register_agents([(Adder, "mine"), (Adder, "other")])
    stranger: AgentId[Any] = AgentId.new()
    async with RawClient(exchange.url, mine.token) as client:
        await client.attach(mine.agent_id.uid, mine.token)
        with pytest.raises(ForbiddenError, match="does not open this mailbox"):
            await client.attach(other.agent_id.uid, mine.token)
        with pytest.raises(ForbiddenError, match="does not open this mailbox"):
            await client.attach(other.agent_id.uid, None)
        with pytest.raises(ForbiddenError, match="its own and its children"):
            await client.call("terminate", uid=other.agent_id.uid.hex)
        again = {"uid": other.agent_id.uid.hex, "agent": True}
        with pytest.raises(ForbiddenError, match="registered by somebody else"):
            await client.call("register", mailboxes=[again])
        with pytest.raises(BadEntityIdError):
            await client.attach(stranger.uid, mine.token and None)

        forged = send_record(user.client_id.uid, other.agent_id.uid)
        await client.ws.send_bytes(forged)
        _, error = protocol.read_refuse(await client.next(protocol.REFUSE))
        assert isinstance(error, SupersededError)
        assert error.uid == other.agent_id
    assert await user.status(other.agent_id) is MailboxStatus.ACTIVE


async def test_speaking_as_a_mailbox_takes_its_token(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    """Naming somebody in a call gives nobody that somebody's rights."""
    mine, other = await user.register_agents([(Adder, "mine"), (Adder, "other")])
    async with RawClient(exchange.url, mine.token) as client:
        for name in (user.client_id.uid.hex, other.agent_id.uid.hex):
            with pytest.raises(ForbiddenError):
                await client.call(
                    "terminate", uid=other.agent_id.uid.hex, **{"as": name}
                )


async def test_a_user_opens_what_the_same_user_has_registered(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    uid = registration.agent_id.uid
    eve = exchange.authority.user_token("eve")
    tester = exchange.authority.user_token("tester")
    async with RawClient(exchange.url, eve) as client:
        with pytest.raises(ForbiddenError):
            await client.attach(uid, None)
        with pytest.raises(ForbiddenError):
            await client.attach(uid, eve)
    async with RawClient(exchange.url, tester) as client:
        await client.attach(uid, None)


def test_secrets_are_in_files_of_the_owner_and_nowhere_else(tmp_path: Path) -> None:
    exchange = ExchangeServer(tmp_path, logger={"level": "DEBUG"})
    with exchange:
        key = exchange.key_file.read_text().strip()
        token = exchange.authority.user_token("tester")

        async def use() -> list[str]:
            async with await exchange.factory(token=token).create_user_client() as c:
                registration = await c.register_agent(Adder)
                agent = await another(exchange, token=None).connect(registration)
                await agent.close()
                async with RawClient(exchange.url, registration.token) as raw:
                    await raw.ws.send_bytes(b"nonsense")
                    await raw.closed()
                assert registration.token is not None
                return [registration.token, token, key]

        secrets = asyncio.run(use())
        process = psutil.Process(exchange.pid)
        shown = " ".join(process.cmdline()) + json.dumps(process.environ())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in files}
    shown += exchange.log.read_text()

    assert not [secret for secret in secrets if secret in shown]
    for name in ("exchange.db", "exchange.db-wal", "key", "exchange.json"):
        assert modes[name] == 0o600, name


# --- bad clients


async def logged(exchange: ExchangeServer, words: str) -> None:
    """Wait until an exchange has written something to its log."""
    async with asyncio.timeout(30):
        while words not in exchange.log.read_text():
            await asyncio.sleep(0.01)


def length(size: int, kind: int) -> bytes:
    return protocol.HEAD.pack(size, kind)


def a_call(**content: Any) -> bytes:
    return protocol.numbered(protocol.CALL, 1, content)


BAD = {
    "text": "hello",
    "garbage": b"\xde\xad\xbe\xef" * 10,
    "nothing of a record": b"\x01",
    "too short": length(5, protocol.SEND),
    "too long": length(10_000, protocol.RECEIPT) + bytes(4),
    "a record of servers": protocol.lost(uuid4().bytes, ForbiddenError("no")),
    "a welcome": protocol.welcome({}),
    "not json": length(12, protocol.CALL) + bytes(4) + b"{{{",
    "deep json": length(9 + 50_000, protocol.CALL) + bytes(4) + b"[" * 50_000,
    "no method": a_call(),
    "an unknown method": a_call(method="drop_all"),
    "a method that is no name": a_call(method=["attach"]),
    "a call that is no object": protocol.numbered(protocol.CALL, 1, [1, 2]),
    "no arguments": a_call(method="attach"),
    "a wrong uid": a_call(method="status", uid="not a uid"),
    "a number for a uid": a_call(method="terminate", uid=5),
    "a wrong speaker": a_call(method="status", uid=uuid4().hex, **{"as": 7}),
    "a name that is no text": a_call(
        method="register", mailboxes=[{"uid": uuid4().hex, "agent": True, "name": 5}]
    ),
    "a class that is no text": a_call(
        method="register",
        mailboxes=[{"uid": uuid4().hex, "agent": True, "classes": [1]}],
    ),
    "half a character": a_call(
        method="register",
        mailboxes=[{"uid": uuid4().hex, "agent": True, "name": "\ud800"}],
    ),
    "too large a number": a_call(
        method="detach", uid=uuid4().hex, released=[float("inf")]
    ),
    "a sequence out of range": send_record(uuid4(), uuid4(), sequence=1 << 63),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_malformed_message_closes_its_connection_only_and_says_why(
    exchange: ExchangeServer,
    user: UserExchangeClient,
    bad: str | bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with RawClient(exchange.url, exchange.authority.user_token("eve")) as client:
        if isinstance(bad, str):
            await client.ws.send_str(bad)
        else:
            await client.ws.send_bytes(bad)
        code, reason = await client.closed()

    assert code == aiohttp.WSCloseCode.PROTOCOL_ERROR
    assert reason
    assert await ping(user)
    assert "lost" not in caplog.text, "others have kept their connection"
    await logged(exchange, f"closed the connection of eve: {reason[:60]}")


async def test_what_came_before_a_malformed_record_counts(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    other = await user.register_agent(Adder)
    uid = registration.agent_id.uid
    async with RawClient(exchange.url, registration.token) as client:
        await client.attach(uid, registration.token)
        await client.ws.send_bytes(send_record(other.agent_id.uid, uid) + b"\x01")
        await client.closed()

    assert (await user.agent_stats(other.agent_id)).queued == 1


async def test_an_oversized_frame_closes_its_connection_only(
    exchange: ExchangeServer,
    user: UserExchangeClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with RawClient(exchange.url, exchange.authority.user_token("eve")) as client:
        # The exchange closes while the frame is still on its way.
        with contextlib.suppress(ConnectionError):
            await client.ws.send_bytes(bytes(40_000_000))

    await logged(
        exchange, "closed the connection of eve: Received frame with payload size"
    )
    assert await ping(user)
    assert "lost" not in caplog.text


async def test_a_client_whose_handshake_is_wrong_is_told_so(
    exchange: ExchangeServer,
) -> None:
    token = exchange.authority.user_token("eve")
    headers = {
        protocol.PROTOCOL_HEADER: str(protocol.PROTOCOL),
        protocol.SESSION_HEADER: "ab" * 16,
        "Authorization": f"Bearer {token}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
    }
    url = exchange.url + protocol.PATH
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, headers=headers) as answer,
    ):
        assert answer.status == 400
        assert "not the handshake of a WebSocket" in await answer.text()


async def test_text_is_not_expected(exchange: ExchangeServer) -> None:
    async with RawClient(exchange.url, exchange.authority.user_token("eve")) as client:
        await client.ws.send_str("hello")
        await client.closed()

    await logged(exchange, "closed the connection of eve: a TEXT message")


async def test_a_message_that_is_garbage_inside_disturbs_nobody(
    exchange: ExchangeServer, user: UserExchangeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An exchange does not look into messages; who gets them does not stumble."""
    registration = await user.register_agent(Adder)
    uid, me = registration.agent_id.uid, user.client_id.uid
    garbage = [
        b"",
        b"\xff",
        b"\x01\0\0",
        b"\x08\0\0\x01junk",
        b"\x07\0\0\x05\x01",
        b"\x02",
    ]
    async with RawClient(exchange.url, registration.token) as client:
        await client.attach(uid, registration.token)
        for sequence, payload in enumerate(garbage, 1):
            await client.ws.send_bytes(send_record(me, uid, sequence, payload))
        await client.next(protocol.CONFIRM)

    assert await ping(user)
    assert "lost" not in caplog.text


async def test_a_client_that_vanishes_disturbs_nobody(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: x\r\nUpgrade: websock")
        await writer.drain()
        writer.transport.abort()
        del reader
    async with RawClient(exchange.url, exchange.authority.user_token("eve")) as client:
        transport = client.ws.get_extra_info("socket")
        assert transport is not None
        client.ws._response.connection.transport.abort()  # type: ignore[union-attr]

    assert await ping(user)


@pytest.mark.parametrize("speaks", ["v2", "v1"])
async def test_a_client_that_vanishes_while_it_is_let_in_is_no_error(
    own: ExchangeServer, speaks: str
) -> None:
    head = [
        *("Host: here", f"Authorization: Bearer {own.authority.user_token('tester')}"),
        *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"{protocol.PROTOCOL_HEADER}: {protocol.PROTOCOL}",
        f"{protocol.SESSION_HEADER}: {os.urandom(16).hex()}",
    ]
    line = f"GET {protocol.PATH} HTTP/1.1"
    if speaks == "v1":
        head[2:] = ["Content-Length: 1000"]  # of which nothing comes
        line = "PUT /message HTTP/1.1"
    # Whatever it does first when it goes on, all of it is there by then.
    os.kill(own.pid, signal.SIGSTOP)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", own.port)) as connection:
            connection.sendall("\r\n".join([line, *head, "", ""]).encode())
    os.kill(own.pid, signal.SIGCONT)
    async with await another(own).create_user_client() as client:
        assert await ping(client)
    assert own.stop() == 0

    assert "ERROR" not in own.log.read_text()


async def test_a_client_that_vanishes_while_it_pings_is_no_error(
    own: ExchangeServer,
) -> None:
    for _ in range(3):
        async with RawClient(own.url, own.authority.user_token("eve")) as client:
            transport = client.ws._response.connection.transport  # type: ignore[union-attr]
            for _ in range(200):
                await client.ws.ping()
            transport.abort()  # type: ignore[union-attr]
    async with await own.factory().create_user_client() as client:
        assert await ping(client)
    assert "Traceback" not in own.log.read_text()


@pytest.mark.parametrize(
    ("headers", "error", "words"),
    [
        ({protocol.SESSION_HEADER: "abc"}, "ProtocolError", "hexadecimal"),
        ({protocol.SESSION_HEADER: "ab" * 8}, "ProtocolError", "32 hex digits"),
        ({protocol.PROTOCOL_HEADER: "3"}, "IncompatibleNetworkProtocolError", "3"),
        ({protocol.PROTOCOL_HEADER: ""}, "IncompatibleNetworkProtocolError", "2"),
        ({"Authorization": "Basic x"}, "UnauthorizedError", "got none"),
    ],
)
async def test_a_wrong_handshake_is_refused_in_words(
    exchange: ExchangeServer, headers: dict[str, str], error: str, words: str
) -> None:
    client = RawClient(exchange.url, exchange.authority.user_token("eve"), **headers)
    client.headers.update(headers)
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await client.__aenter__()
    async with (
        aiohttp.ClientSession() as http,
        http.get(client.url, headers=client.headers) as answer,
    ):
        content = await answer.json()

    assert answer.status == (401 if error == "UnauthorizedError" else 400)
    assert content["error"] == error
    assert words in str(unpack_error(content))


async def test_a_client_of_another_version_is_told_which(
    exchange: ExchangeServer,
) -> None:
    factory = exchange.factory(additional_headers={"X-Name": "old"})
    factory.additional_headers[protocol.PROTOCOL_HEADER] = "1"
    async with await factory.create_user_client() as client:
        assert await ping(client), "what the client says itself comes last"
    client_of_3 = RawClient(exchange.url, exchange.authority.user_token("eve"))
    client_of_3.headers[protocol.PROTOCOL_HEADER] = "3"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client_of_3.__aenter__()
    assert refused.value.status == 400
    error = IncompatibleNetworkProtocolError("3", protocol.PROTOCOL)
    assert "speaks protocol 3" in str(error)


# --- limits


async def test_a_message_above_the_limit_is_refused_to_its_sender_only(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    request = ActionRequest.of("add", [bytes(30_000)])
    with pytest.raises(MessageTooLargeError) as refused:
        await user.send(user.new_message(user.client_id, request))
    assert refused.value.limit == 20_000
    assert refused.value.size > 30_000
    assert "max_message_bytes" in str(refused.value)
    assert await ping(user)


async def test_a_full_mailbox_is_refused_to_its_senders_only(
    exchange: ExchangeServer, user: UserExchangeClient, tmp_path: Path
) -> None:
    registration = await user.register_agent(Adder)
    calls = [call(user, registration.agent_id, 0, n) for n in range(25)]
    for refused in calls[20:]:
        with pytest.raises(MailboxFullError, match="20 unsettled messages"):
            await refused
    assert await ping(user)

    async with await Server(tmp_path / "record").start(
        exchange.factory(), registration
    ) as server:
        answers = [result(answer) for answer in await asyncio.gather(*calls[:20])]
        assert answers == [(0, 2 * n) for n in range(20)]
        assert result(await call(user, registration.agent_id, 1, 1)) == (1, 2)
        assert len(server.executed) == 21


async def test_a_mailbox_that_was_full_and_emptied_again_and_again_has_room(
    exchange: ExchangeServer, user: UserExchangeClient, tmp_path: Path
) -> None:
    """What waited in the store counts no byte more or less than what did not."""
    registration = await user.register_agent(Adder)
    for _ in range(20):
        calls = [call(user, registration.agent_id, 0, n) for n in range(20)]
        await user.status(user.client_id)
        server = Server(tmp_path / "record")
        await server.start(exchange.factory(), registration)
        assert len(await asyncio.gather(*calls)) == 20
        await server.close()


# --- how clients use it


async def test_all_mailboxes_of_an_event_loop_share_one_connection(
    exchange: ExchangeServer,
) -> None:
    async with TcpProxy(exchange.port) as proxy:
        factory = exchange.factory(proxy.port)
        users = [await factory.create_user_client() for _ in range(20)]
        registrations = await users[0].register_agents([(Adder, None)] * 20)
        agents = [await factory.connect(each) for each in registrations]
        assert all(await asyncio.gather(*map(ping, users)))
        assert proxy.accepted == 1
        clients: list[Any] = [*agents, *users]
        for client in clients:
            await client.close()

        again = await factory.create_user_client()
        await again.close()
        assert proxy.accepted == 2


async def test_closed_clients_leave_no_connection_behind(
    exchange: ExchangeServer,
) -> None:
    def connections() -> int:
        found = psutil.Process().net_connections(kind="tcp")
        return sum(getattr(c.raddr, "port", 0) == exchange.port for c in found)

    before = connections()
    factory = another(exchange)
    async with await factory.create_user_client(), await factory.create_user_client():
        assert connections() == before + 1
    assert connections() == before


async def test_a_long_backlog_comes_whole_and_in_order(
    own: ExchangeServer, tmp_path: Path
) -> None:
    """Three times what may be under way to one client."""
    registration = await register(own.factory())
    async with await another(own).create_user_client() as client:
        calls = [call(client, registration.agent_id, 0, n) for n in range(12_000)]
        await client.send(client.new_message(client.client_id, PingRequest()))
        assert (await client.agent_stats(registration.agent_id)).queued == 12_000
        server = Server(tmp_path / "record")
        await server.start(another(own), registration)
        await asyncio.gather(*calls)
        await server.close()
        stats = await client.agent_stats(registration.agent_id)

    assert server.executed == [(0, n) for n in range(12_000)]
    assert (stats.queued, stats.in_progress, stats.completed) == (0, 0, 12_000)


async def test_who_was_superseded_while_it_was_cut_off_learns_it_when_it_is_back(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    async with TcpProxy(exchange.port) as proxy:
        factory = exchange.factory(proxy.port)
        older = await factory.create_agent_client(registration, lambda message: None)
        lost: asyncio.Queue[Exception] = asyncio.Queue()
        older.on_lost = lost.put_nowait
        proxy.stall()
        newer = await exchange.factory().connect(registration)
        proxy.cut()
        proxy.resume()
        async with asyncio.timeout(30):
            assert isinstance(await lost.get(), SupersededError)
        with pytest.raises(SupersededError):
            await older.send(older.new_message(user.client_id, PingRequest()))
        await older.close()
    await user.send(user.new_message(registration.agent_id, PingRequest()))
    async for message in newer.listen(30):
        assert isinstance(message.get_body(), PingRequest)
        break
    await newer.close()


async def test_a_listener_gets_each_message_once_across_lost_connections(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    got: list[Message] = []
    async with TcpProxy(exchange.port) as proxy:
        agent = await exchange.factory(proxy.port).connect(registration)
        for number in range(10):
            body = ActionRequest.of("add", [number])
            await user.send(user.new_message(registration.agent_id, body))
            async for message in agent.listen(30):
                got.append(message)
                break
            proxy.cut()
            await proxy.has_accepted(number + 2)
        assert [m async for m in agent.listen(0.1)] == []
        await agent.close()

    assert [m.get_body().get_args() for m in got] == [(n,) for n in range(10)]  # type: ignore[union-attr]
    assert not any(message.redelivered for message in got)


async def test_a_refusal_reaches_who_was_cut_off_meanwhile(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    await user.terminate(registration.agent_id)
    async with (
        TcpProxy(exchange.port) as proxy,
        await exchange.factory(proxy.port).create_user_client() as client,
    ):
        for _ in range(10):
            refused = call(client, registration.agent_id, 0, 0)
            await asyncio.sleep(0)
            proxy.cut()
            with pytest.raises(AgentTerminatedError):
                await refused


async def test_a_refusal_that_a_killed_exchange_had_not_told_is_told_by_the_next(
    own: ExchangeServer,
) -> None:
    async with (
        await another(own).create_user_client() as other,
        TcpProxy(own.port) as proxy,
        await own.factory(proxy.port).create_user_client() as client,
    ):
        gone, alive = await client.register_agents([(Adder, "gone"), (Adder, "alive")])
        await client.terminate(gone.agent_id)
        proxy.mute()
        refused = call(client, gone.agent_id, 0, 0)
        sending = asyncio.ensure_future(
            client.send(client.new_message(gone.agent_id, PingRequest()))
        )
        await asyncio.sleep(0)
        call(client, alive.agent_id, 0, 1)
        while (await other.agent_stats(alive.agent_id)).queued == 0:
            await asyncio.sleep(0.01)
        await own.restart()
        proxy.cut()
        proxy.resume()

        for attempt in (refused, sending):
            with pytest.raises(AgentTerminatedError):
                await attempt
        assert await ping(client)


async def test_what_was_posted_before_closing_survives_a_restart_in_between(
    own: ExchangeServer, tmp_path: Path
) -> None:
    registration = await register(own.factory())
    server = await Server(tmp_path / "record").start(another(own), registration)
    async with await another(own).create_user_client() as client:
        killed = asyncio.Event()

        def kill() -> None:
            own.shoot()
            killed.set()

        server.at[5] = kill
        calls = [call(client, registration.agent_id, 0, n) for n in range(5)]
        await killed.wait()
        closing = asyncio.ensure_future(server.close())
        await own.restart()
        await closing
        answers = [result(answer) for answer in await asyncio.gather(*calls)]

    assert answers == [(0, 2 * n) for n in range(5)]


async def test_a_pickled_factory_works_in_another_process(
    exchange: ExchangeServer,
) -> None:
    program = (
        "import asyncio, pickle, sys\n"
        "from academy.message import PingRequest\n"
        "async def main():\n"
        "    factory = pickle.load(sys.stdin.buffer)\n"
        "    async with await factory.create_user_client() as client:\n"
        "        ping = client.new_message(client.client_id, PingRequest())\n"
        "        await client.request(ping)\n"
        "        print(client.client_id.role)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(pickle.dumps(exchange.factory()))

    assert (process.returncode, output) == (0, b"user\n")


async def test_a_client_that_is_cancelled_while_it_connects_leaves_nothing(
    exchange: ExchangeServer, user: UserExchangeClient
) -> None:
    registration = await user.register_agent(Adder)
    async with TcpProxy(exchange.port) as proxy:
        proxy.delay = 0.005
        for steps in range(1, 30, 4):
            factory = exchange.factory(proxy.port)
            connecting = asyncio.ensure_future(factory.connect(registration))
            for _ in range(steps):
                await asyncio.sleep(0.002)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                await connecting.result().close()
    agent = await exchange.factory().connect(registration)
    await user.send(user.new_message(registration.agent_id, PingRequest()))
    assert [m async for m in agent.listen(0.2)]
    await agent.close()


async def test_an_exchange_in_this_process_serves_its_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`create_app` is for who runs it in a server of their own."""
    from aiohttp import web

    from academy.exchange.cloud.app import SERVER, create_app
    from academy.exchange.cloud.config import BackendConfig, ExchangeServingConfig

    app = create_app(ExchangeServingConfig(backend=BackendConfig(kind="memory")))
    runner = web.AppRunner(app, shutdown_timeout=5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    token = app[SERVER].authority.user_token("tester")
    registration = await register(HttpExchangeFactory(url, token=token))
    async with Server(tmp_path / "record") as server:
        await server.start(HttpExchangeFactory(url, token=token), registration)
        await calls_from(
            [HttpExchangeFactory(url, token=token)] * 2, registration, server, 100
        )
    await runner.cleanup()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
