"""Servers over one Redis share their keys and what is revoked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import aiohttp
import jwt
import pytest

from academy.exception import UnauthorizedError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.credentials import known_exchanges
from tests.support.raw import RawClient
from tests.support.redis import Redis
from tests.support.server import ExchangeServer


def server_over(redis: Redis, folder: Path) -> ExchangeServer:
    backend = {"kind": "redis", "url": redis.url, "lease_seconds": 1}
    return ExchangeServer(folder, auth={"key_file": None}, backend=backend)


@pytest.fixture
def servers(redis: Redis, tmp_path: Path) -> Iterator[list[ExchangeServer]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(server_over(redis, tmp_path / name))
            for name in ("first", "second")
        ]


@pytest.fixture
async def connected(servers: list[ExchangeServer]) -> AsyncIterator[list[RawClient]]:
    """Clients of Ada at both servers, each in a namespace of its own."""
    async with AsyncExitStack() as stack:
        clients = []
        for number, server in enumerate(servers):
            token = server.academy(
                "token", "--user", "ada", "--namespace", f"ada{number}"
            )
            client = RawClient(server.url, token)
            clients.append(await stack.enter_async_context(client))
        yield clients


def token_of(server: ExchangeServer) -> str:
    """Return the token that a server has left for its own user."""
    return str(known_exchanges(server.home)[server.url]["token"])


async def test_the_token_of_one_server_is_good_for_all_and_no_key_is_in_a_file(
    servers: list[ExchangeServer],
) -> None:
    for one in servers:
        for other in servers:
            async with RawClient(other.url, token_of(one)):
                pass
        assert not list(one.home.glob("*.key"))


async def test_who_is_revoked_is_cut_by_all_servers_and_by_those_that_come_later(
    servers: list[ExchangeServer],
    connected: list[RawClient],
    redis: Redis,
    tmp_path: Path,
) -> None:
    first, _ = servers
    token = first.academy("token", "--user", "ada")
    async with RawClient(first.url, token_of(first)) as other:
        first.academy("revoke", "--user", "ada")
        for client in connected:
            code, reason = await client.closed()
            assert code == aiohttp.WSCloseCode.POLICY_VIOLATION
            assert "revoked" in reason
        await other.call("watch", uids=[])
    with (
        server_over(redis, tmp_path / "third") as third,
        pytest.raises(UnauthorizedError, match="revoked"),
    ):
        await third.factory(token=token).create_user_client()


async def test_a_new_key_is_taken_by_all_servers(
    servers: list[ExchangeServer], connected: list[RawClient]
) -> None:
    said = servers[0].academy("rotate-key")
    key = said.split()[2]
    for client in connected:
        signed_by = ""
        while signed_by != key:
            tokens = protocol.read_tokens(await client.next(protocol.TOKENS))
            signed_by = jwt.get_unverified_header(tokens[b""])["kid"]
    fresh = servers[1].academy("token", "--user", "eve")
    for server in servers:
        async with RawClient(server.url, fresh):
            pass


async def test_a_redis_that_restarts_keeps_what_is_revoked_and_tells_what_is_new(
    servers: list[ExchangeServer], connected: list[RawClient], redis: Redis
) -> None:
    first, second = servers
    eve = first.academy("token", "--user", "eve")
    first.academy("revoke", "--user", "eve")
    redis.kill()
    redis.start()
    second.academy("revoke", "--user", "ada")
    for client in connected:
        _, reason = await client.closed()
        assert reason
    for server in servers:
        with pytest.raises(UnauthorizedError, match="revoked"):
            await server.factory(token=eve, retries=7).create_user_client()
