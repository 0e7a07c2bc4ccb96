"""Clients that reach their exchange through a proxy, which the environment names."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy.exception import ExchangeConnectionError, UnauthorizedError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud.security.certificate import Certificate
from tests.support.connect_proxy import ConnectProxy
from tests.support.server import ExchangeServer


@pytest.fixture(scope="module", params=[True, False], ids=["https", "http"])
def exchange(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ExchangeServer]:
    folder = tmp_path_factory.mktemp("exchange")
    with ExchangeServer(folder, tls=request.param) as server:
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def ask(factory: HttpExchangeFactory) -> None:
    async with await factory.create_user_client() as client:
        await client.status(client.client_id)


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_a_client_goes_through_the_proxy_of_its_environment(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async with ConnectProxy() as proxy:
        url = f"{scheme}me:pass%20word@{proxy.address}"
        monkeypatch.setenv(f"{exchange.scheme}_proxy", url)
        await ask(exchange.factory())

    (head,) = proxy.asked
    assert head.startswith(f"CONNECT 127.0.0.1:{exchange.port} ".encode())
    assert b"Proxy-Authorization: Basic " + b64encode(b"me:pass word") in head


async def test_no_proxy_goes_around_it(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConnectProxy() as proxy:
        monkeypatch.setenv(f"{exchange.scheme}_proxy", f"http://{proxy.address}")
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        await ask(exchange.factory())
    assert proxy.asked == []


async def test_a_proxy_that_refuses_is_named_without_its_password(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConnectProxy(status=407) as proxy:
        url = f"http://me:password@{proxy.address}"
        monkeypatch.setenv(f"{exchange.scheme}_proxy", url)
        with pytest.raises(ExchangeConnectionError, match=r"proxy.* 407") as refused:
            await ask(exchange.factory(retries=0))
    assert "password" not in str(refused.value)


async def test_who_is_refused_through_a_proxy_is_told_why(
    exchange: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConnectProxy() as proxy:
        monkeypatch.setenv(f"{exchange.scheme}_proxy", f"http://{proxy.address}")
        with pytest.raises(UnauthorizedError, match=exchange.url):
            await ask(exchange.factory(token="wrong"))


async def test_a_stranger_behind_a_proxy_gets_no_byte_of_a_token(
    exchange: ExchangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exchange.scheme == "http":
        return
    stranger = Certificate.made_here(tmp_path / "stranger.pem")
    received = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())
        writer.close()

    context = stranger.context()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server,
        ConnectProxy(server.sockets[0].getsockname()[1]) as proxy,
    ):
        monkeypatch.setenv("https_proxy", f"http://{proxy.address}")
        with pytest.raises(ExchangeConnectionError) as refused:
            await ask(exchange.factory(retries=0))

    assert str(stranger.fingerprint) in str(refused.value)  # so that it was reached
    assert not any(received)
