"""What operators ask a hosted exchange, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from academy.exception import MailboxFullError
from academy.exchange.cloud import HttpExchangeFactory, find_url, protocol
from academy.exchange.cloud.app import GROUP, SERVER, create_app
from academy.exchange.cloud.config import BackendConfig, ExchangeServingConfig
from academy.exchange.cloud.operations.logs import BURST
from tests.support.calls import Server, call, calls_from, register
from tests.support.raw import RawClient
from tests.support.server import ExchangeServer

Samples = dict[tuple[str, ...], float]
LABELS = ["namespace", "state", "operation", "reason", "le"]


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[ExchangeServer]:
    limits = {"max_mailbox_messages": 20}
    with ExchangeServer(tmp_path / "exchange", limits=limits) as exchange:
        yield exchange


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def samples(url: str, **headers: str) -> Samples:
    """Return the metrics: (name, value of each label …) -> value."""
    status, text = await get(f"{url}/metrics", **headers)
    assert status == 200, text
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            order = sorted(labels, key=LABELS.index)
            key = name.removeprefix("academy_exchange_")
            found[(key, *(labels[label] for label in order))] = value
    return found


def bearer(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- alive and ready


async def test_an_exchange_is_alive_and_ready(exchange: ExchangeServer) -> None:
    assert await get(f"{exchange.url}/healthz") == (200, '{"alive": true}')
    assert await get(f"{exchange.url}/readyz") == (200, '{"ready": true}')


async def test_it_is_not_ready_while_its_disk_is_full_and_then_again(
    exchange: ExchangeServer,
) -> None:
    """The file may not grow: what the server writes fails, as on a full disk."""
    import resource

    registration = await register(exchange.factory())
    limits = resource.prlimit(exchange.pid, resource.RLIMIT_FSIZE)
    async with await exchange.factory().create_user_client() as client:
        resource.prlimit(exchange.pid, resource.RLIMIT_FSIZE, (1, limits[1]))
        lost = call(client, registration.agent_id, 0, 0)
        while (answer := await get(f"{exchange.url}/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
        assert answer[0] == 503
        assert "its store fails" in answer[1]
        assert "exchange.db" not in answer[1]
        assert (await get(f"{exchange.url}/healthz"))[0] == 200

        resource.prlimit(exchange.pid, resource.RLIMIT_FSIZE, limits)
        while (await get(f"{exchange.url}/readyz"))[0] == 503:
            await asyncio.sleep(0.05)
        lost.cancel()


# --- metrics


async def test_the_metrics_say_what_has_happened(
    exchange: ExchangeServer, tmp_path: Path
) -> None:
    registration = await register(exchange.factory())
    async with await exchange.factory().create_user_client() as client:
        waiting = [call(client, registration.agent_id, 0, n) for n in range(21)]
        with pytest.raises(MailboxFullError):
            await waiting.pop()
        before = await samples(exchange.url)
        async with await Server(tmp_path / "record").start(
            exchange.factory(), registration
        ):
            await asyncio.gather(*waiting)
            after = await samples(exchange.url)

    ns = "default"
    assert before["messages_stored_total", ns] == 20
    assert before["queued_messages", ns] == 20
    assert before["queued_bytes", ns] > 20
    assert before["messages_refused_total", ns, "MailboxFullError"] == 1
    assert before["connections", ns] == 1
    assert before["leases", ns] == 0
    assert before["mailboxes", ns, "registered"] == 1
    assert before["mailboxes", ns, "attached"] == 1
    assert before["mailboxes", ns, "terminated"] == 1

    assert after["messages_stored_total", ns] == 40
    assert after["messages_delivered_total", ns] == 40
    assert after["messages_settled_total", ns] >= 20
    assert after["messages_redelivered_total", ns] == 0
    assert after["mailboxes", ns, "attached"] == 2
    for name in ("received_bytes_total", "sent_bytes_total"):
        assert after[name, ns] > before[name, ns] > 0
    count = after["store_seconds_count", ns, "commit"]
    assert count > before["store_seconds_count", ns, "commit"] > 0
    assert after["store_seconds_bucket", ns, "commit", "+Inf"] == count
    assert after["store_seconds_sum", ns, "commit"] > 0
    assert after["store_seconds_count", ns, "pending"] > 0
    assert after[("process_open_fds",)] > 0


async def test_what_comes_again_and_who_is_turned_away_is_counted(
    exchange: ExchangeServer, tmp_path: Path
) -> None:
    registration = await register(exchange.factory())
    async with await exchange.factory().create_user_client() as client:
        answer = call(client, registration.agent_id, 0, 0)
        first = RawClient(exchange.url, registration.token)
        async with first:
            await first.attach(registration.agent_id.uid, registration.token)
            await first.next(protocol.DELIVER)
            assert (await samples(exchange.url))["leases", "default"] == 1
        async with RawClient(exchange.url, registration.token) as second:
            await second.attach(registration.agent_id.uid, registration.token)
            await second.next(protocol.DELIVER)
        answer.cancel()
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await RawClient(exchange.url, "nonsense").__aenter__()
    found = await samples(exchange.url)

    assert found["messages_redelivered_total", "default"] == 1
    assert found["turned_away_total", "UnauthorizedError"] == 1


async def test_each_metric_is_documented(exchange: ExchangeServer) -> None:
    _, text = await get(f"{exchange.url}/metrics")
    page = Path(__file__).parents[2] / "docs" / "exchange.md"
    _, _, section = page.read_text().partition("### Metrics")
    section, _, _ = section.partition("### ")
    documented = set(
        re.findall(r"`(\w+)`(?=[^|]* \|.*\|$)", section, flags=re.MULTILINE)
    )
    own = set(re.findall(r"^# TYPE academy_exchange_(\w+)", text, flags=re.MULTILINE))
    assert own == documented


async def test_metrics_show_no_ids_and_no_tokens(exchange: ExchangeServer) -> None:
    registration = await register(exchange.factory())
    _, text = await get(f"{exchange.url}/metrics")
    uid = registration.agent_id.uid
    for secret in (str(uid), uid.hex, registration.token, "tester"):
        assert str(secret) not in text


async def test_a_namespace_has_its_own_numbers_and_sees_no_others(
    exchange: ExchangeServer,
) -> None:
    token = exchange.authority.user_token("ada", "team")
    await register(exchange.factory(token=token))
    local = await samples(exchange.url)
    assert local["mailboxes", "team", "registered"] == 1
    assert local["mailboxes", "default", "registered"] == 0

    far = {"X-Forwarded-For": "10.0.0.1"}
    own = await samples(exchange.url, **far, **bearer(token))
    assert own["mailboxes", "team", "registered"] == 1
    assert {labels[1] for labels in own if len(labels) > 1} == {"team"}
    assert ("process_open_fds",) not in own


async def test_only_local_programs_and_users_see_metrics(
    exchange: ExchangeServer,
) -> None:
    registration = await register(exchange.factory())
    far = {"X-Forwarded-For": "10.0.0.1"}
    url = f"{exchange.url}/metrics"
    assert (await get(url))[0] == 200
    assert (await get(url, **far))[0] == 401
    assert (await get(url, **far, **bearer("x")))[0] == 401
    assert (await get(url, **far, **bearer(registration.token)))[0] == 401
    user = exchange.authority.user_token("tester")
    assert (await get(url, **far, **bearer(user)))[0] == 200


@pytest.mark.parametrize(
    ("metrics", "status", "far"),
    [("token", 401, 401), ("open", 200, 200), ("off", 404, 404)],
)
async def test_an_operator_decides_who_sees_metrics(
    tmp_path: Path, metrics: str, status: int, far: int
) -> None:
    operations = {"metrics": metrics}
    with ExchangeServer(tmp_path / "exchange", operations=operations) as exchange:
        url = f"{exchange.url}/metrics"
        assert (await get(url))[0] == status
        assert (await get(url, **{"X-Real-IP": "10.0.0.1"}))[0] == far


# --- how it ends


async def test_an_exchange_that_ends_says_so_and_takes_nobody_in() -> None:
    app = create_app(ExchangeServingConfig(backend=BackendConfig(kind="memory")))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    token = app[SERVER].authority.user_token("tester")
    async with RawClient(url, token) as client:
        await app.shutdown()
        assert (await client.closed())[0] == aiohttp.WSCloseCode.SERVICE_RESTART
    status, words = await get(f"{url}/readyz")
    assert status == 503
    assert "about to end" in words
    assert (await get(f"{url}/healthz"))[0] == 200
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await RawClient(url, token).__aenter__()
    assert refused.value.status == 503
    await runner.cleanup()


@asynccontextmanager
async def ending(exchange: ExchangeServer) -> AsyncIterator[None]:
    """Have an exchange end that waits for a request which never comes whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
    token = exchange.authority.user_token("tester")
    head = f"PUT /message HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    writer.write(f"{head}Content-Length: 99\r\n\r\n{{".encode())
    await writer.drain()
    assert (await get(f"{exchange.url}/readyz"))[0] == 200
    os.kill(exchange.pid, signal.SIGTERM)
    while "stopping" not in exchange.log.read_text():
        await asyncio.sleep(0.02)
    yield
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    del reader


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    operations = {"drain_seconds": 3600}
    with ExchangeServer(tmp_path / "exchange", operations=operations) as exchange:
        async with ending(exchange):
            assert await asyncio.to_thread(exchange.stop) == -signal.SIGTERM


async def test_it_ends_in_time_whatever_its_clients_do(tmp_path: Path) -> None:
    operations = {"drain_seconds": 1}
    with ExchangeServer(tmp_path / "exchange", operations=operations) as exchange:
        async with ending(exchange):
            assert await asyncio.to_thread(exchange.wait) == 0


async def test_clients_are_told_to_come_again(exchange: ExchangeServer) -> None:
    user = exchange.authority.user_token("tester")
    async with RawClient(exchange.url, user) as client:
        os.kill(exchange.pid, signal.SIGTERM)
        code, reason = await client.closed()
        assert code == aiohttp.WSCloseCode.SERVICE_RESTART
        assert "connect again" in reason
    assert await asyncio.to_thread(exchange.wait) == 0


async def test_many_clients_are_all_told_to_come_again(
    exchange: ExchangeServer,
) -> None:
    user = exchange.authority.user_token("tester")
    told: list[int | None] = []
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(RawClient(exchange.url, user))
            for _ in range(GROUP + 50)
        ]

        async def wait_for_end(client: RawClient) -> None:
            told.append((await client.closed())[0])

        waiting = [asyncio.ensure_future(wait_for_end(c)) for c in clients]
        os.kill(exchange.pid, signal.SIGTERM)
        await asyncio.gather(*waiting)
    assert told == [aiohttp.WSCloseCode.SERVICE_RESTART] * len(clients)
    assert await asyncio.to_thread(exchange.wait) == 0


async def test_nothing_is_lost_or_doubled_across_drains_under_load(
    tmp_path: Path,
) -> None:
    codes = []
    with ExchangeServer(tmp_path / "exchange") as exchange:

        async def restart() -> None:
            codes.append(await asyncio.to_thread(exchange.stop))
            await asyncio.to_thread(exchange.start)

        def factory(name: str) -> Any:
            return exchange.factory(additional_headers={"X-Name": name})

        server = Server(tmp_path / "record")
        server.at = dict.fromkeys([1, 400, 800], restart)
        registration = await register(exchange.factory())
        await server.start(factory("agent"), registration)
        await calls_from([factory(name) for name in "abcd"], registration, server)

    assert codes == [0, 0, 0]


# --- what it logs, and what it tells systemd


async def test_logs_are_objects_that_say_who_it_was(tmp_path: Path) -> None:
    logger = {"format": "json", "level": "DEBUG"}
    with ExchangeServer(tmp_path / "exchange", logger=logger) as exchange:
        token = exchange.authority.user_token("eve", "team")
        async with RawClient(exchange.url, token) as client:
            await client.ws.send_bytes(b"nonsense")
            await client.closed()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await RawClient(exchange.url, f"{token}x").__aenter__()
        assert await asyncio.to_thread(exchange.stop) == 0
        written = exchange.log.read_text()
        lines = [json.loads(line) for line in written.splitlines()]

    def find(words: str) -> dict[str, Any]:
        return next(line for line in lines if words in line["message"])

    started = find(f"exchange at {exchange.url}, backend sqlite")
    assert (started["level"], started["namespace"]) == ("INFO", None)
    assert started.keys() >= {"time", "level", "logger", "message"}
    assert find("namespace team is open")["level"] == "INFO"
    for words, level in (
        ("connected from 127.0.0.1", "DEBUG"),
        ("closed the connection of eve", "WARNING"),
    ):
        line = find(words)
        assert line["level"] == level
        assert (line["namespace"], line["client"]) == ("team", "eve")
    refused = find("turned away 127.0.0.1")
    assert (refused["level"], refused["client"]) == ("WARNING", None)
    assert find("stopping")["level"] == "INFO"
    assert token not in written
    assert exchange.key_file.read_text() not in written


async def test_who_keeps_coming_with_wrong_tokens_does_not_fill_the_disk(
    exchange: ExchangeServer,
) -> None:
    async with aiohttp.ClientSession() as http:
        for _ in range(5 * BURST):
            async with http.get(
                f"{exchange.url}/mailbox", headers=bearer("x")
            ) as answer:
                assert answer.status == 403
    assert BURST <= exchange.log.read_text().count("turned away") < 4 * BURST


def test_systemd_is_told_when_it_listens_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with ExchangeServer(tmp_path / "exchange") as exchange:
            told = systemd.recv(1000).decode()
            assert told == f"READY=1\nSTATUS=exchange at {exchange.url}"
            assert exchange.stop() == 0
        assert systemd.recv(1000) == b"STOPPING=1"


# --- it goes elsewhere


async def test_programs_follow_an_exchange_that_has_a_name_to_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from one batch job to the next, on another node."""
    folder = tmp_path / "exchange"
    monkeypatch.setenv("ACADEMY_HOME", str(folder / "home"))
    monkeypatch.setenv("ACADEMY_EXCHANGE__NAME", "campaign")
    with ExitStack() as exchanges:
        running = [exchanges.enter_context(ExchangeServer(folder))]

        async def move() -> None:
            assert await asyncio.to_thread(running[-1].stop) == 0
            running.append(ExchangeServer(folder))
            await asyncio.to_thread(exchanges.enter_context, running[-1])

        first = find_url("campaign")
        assert first == running[0].url
        server = Server(tmp_path / "record")
        server.at = dict.fromkeys([200, 600], move)
        registration = await register(HttpExchangeFactory(first))
        await server.start(
            HttpExchangeFactory(first, additional_headers={"X-Name": "agent"}),
            registration,
        )
        await calls_from([HttpExchangeFactory(first)] * 2, registration, server)
        assert len({exchange.url for exchange in running}) == 3
        assert find_url("campaign") == running[-1].url
        # Who comes late with an old address finds it as well.
        async with await HttpExchangeFactory(first).create_user_client() as client:
            assert await client.status(registration.agent_id)
