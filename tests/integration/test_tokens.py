"""Tokens of a running exchange: renewed, revoked, signed with new keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest

from academy.exception import ForbiddenError, UnauthorizedError
from academy.exchange import (
    AgentExchangeClient,
    HttpExchangeFactory,
    UserExchangeClient,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.credentials import claims_of
from academy.exchange.cloud.security.auth import Credentials, TokenAuthority
from academy.exchange.transport import AgentRegistration
from academy.handle import Handle
from academy.message import Message, SuccessResponse
from tests.support.agents import Adder
from tests.support.clock import Clock
from tests.support.raw import RawClient
from tests.support.server import ExchangeServer
from tests.support.v1_peer import V1Client, entity

DAY = 86_400
SHORT = {"token_lifetime": 0.3, "user_lifetime": 2, "launch_lifetime": 2}


class Ponger:
    """An agent's client that answers pings, and says when its mailbox is gone."""

    client: AgentExchangeClient

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception] = (
            asyncio.get_running_loop().create_future()
        )

    async def handle(self, request: Message) -> None:
        await self.client.send(request.create_response(SuccessResponse()))


@asynccontextmanager
async def ponger(
    factory: HttpExchangeFactory, registration: AgentRegistration[Adder]
) -> AsyncIterator[Ponger]:
    agent = Ponger()
    agent.client = await factory.for_agents().create_agent_client(
        registration, agent.handle
    )
    agent.client.on_lost = agent.lost.set_result
    try:
        yield agent
    finally:
        await agent.client.close()


async def wait_until_expired(authority: TokenAuthority, token: str | None) -> None:
    while True:
        try:
            authority.verify(token)
        except UnauthorizedError as error:
            assert "has expired" in str(error)  # noqa: PT017
            return
        await asyncio.sleep(0.05)


async def ask_for_ever(client: UserExchangeClient) -> None:
    while True:
        await client.status(client.client_id)


# --- renewed


async def test_a_client_and_an_agent_outlive_all_tokens_that_they_were_given(
    tmp_path: Path,
) -> None:
    """Calls go on, and so do they when the exchange restarts long after."""
    with ExchangeServer(tmp_path, auth=SHORT) as exchange:
        authority = exchange.authority
        token = authority.user_token("tester", lifetime=2)
        factory = exchange.factory(token=token)
        async with await factory.create_user_client() as client:
            registration = await client.register_agent(Adder)
            async with ponger(factory, registration) as agent:
                handle: Handle[Adder] = Handle(registration.agent_id)
                await handle.ping()
                await wait_until_expired(authority, token)
                await wait_until_expired(authority, registration.token)
                await handle.ping()
                await asyncio.to_thread(exchange.kill)
                await asyncio.sleep(2 * SHORT["token_lifetime"])
                await asyncio.to_thread(exchange.start)
                await handle.ping()
                assert not agent.lost.done()


@pytest.mark.parametrize(("days", "renewed"), [(6, False), (91, True)])
async def test_an_agent_that_runs_for_longer_than_its_launch_token_comes_back(
    tmp_path: Path, days: int, renewed: bool
) -> None:
    """By what it was given since. The launch token itself opens nothing any more."""
    clock = Clock(tmp_path / "clock")
    exchange = ExchangeServer(tmp_path / "exchange", auth={"token_lifetime": 1})
    exchange.environment |= clock.environment()
    with exchange:
        token = exchange.authority.user_token("tester")
        factory = exchange.factory(token=token)
        async with (
            await factory.create_user_client() as client,
            RawClient(exchange.url, token) as last,  # whose tokens come after others
        ):
            registration = await client.register_agent(Adder)
            async with ponger(factory, registration) as agent:
                clock.set(days * DAY)
                then = time.time() + days * DAY
                while renewed:
                    fresh = protocol.read_tokens(await last.next(protocol.TOKENS))
                    renewed = claims_of(fresh[b""])["exp"] < then
                await exchange.restart()
                await Handle(registration.agent_id).ping()
                assert not agent.lost.done()
        if days > 90:
            with pytest.raises(UnauthorizedError, match="expired"):
                await factory.for_agents().connect(registration)


async def test_fresh_tokens_come_over_the_live_connection_before_the_old_expire(
    tmp_path: Path,
) -> None:
    with ExchangeServer(tmp_path, auth=SHORT) as exchange:
        token = exchange.authority.user_token("tester")
        async with RawClient(exchange.url, token) as client:
            uid = uuid4()
            await client.become(uid)
            seen: dict[bytes, set[str]] = {b"": set(), uid.bytes: set()}
            while min(map(len, seen.values())) < 4:
                record = await client.next(protocol.TOKENS)
                for name, fresh in protocol.read_tokens(record).items():
                    seen[name].add(fresh)
                    exchange.authority.verify(fresh, client.session)


# --- revoked


async def test_a_revoked_user_is_cut_at_once_and_so_are_the_users_agents(
    exchange: ExchangeServer,
) -> None:
    ada = exchange.factory(token=exchange.authority.user_token("ada"))
    bob = exchange.factory(token=exchange.authority.user_token("bob"))
    async with await bob.create_user_client() as other:
        client = await ada.create_user_client()
        registration = await client.register_agent(Adder)
        async with ponger(ada, registration) as agent:
            await exchange.revoke("user", "ada")

            lost = await asyncio.wait_for(agent.lost, 30)
            assert isinstance(lost, UnauthorizedError)
            with pytest.raises(UnauthorizedError, match="revoked"):
                await ask_for_ever(client)
        await client.close()
        with pytest.raises(UnauthorizedError, match="revoked"):
            await ada.create_user_client()
        await other.status(other.client_id)


async def test_a_revoked_mailbox_alone_is_cut_from_a_connection(
    exchange: ExchangeServer,
) -> None:
    factory = exchange.factory()
    async with await factory.create_user_client() as client:
        bad, good = await client.register_agents([(Adder, "bad"), (Adder, "good")])
        async with ponger(factory, bad) as first, ponger(factory, good) as second:
            await exchange.revoke("mailbox", bad.agent_id.uid.hex)

            lost = await asyncio.wait_for(first.lost, 30)
            assert isinstance(lost, UnauthorizedError)
            await Handle(good.agent_id).ping()
            assert not second.lost.done()
        with pytest.raises(UnauthorizedError, match="revoked"):
            await factory.for_agents().connect(bad)


async def test_a_revoked_agent_leaves_those_that_share_its_connection_alone(
    exchange: ExchangeServer,
) -> None:
    """Even if it has opened the connection, and when that is lost later."""
    elsewhere = exchange.factory(additional_headers={"X-Another": "connection"})
    async with await elsewhere.create_user_client() as client:
        bad, good = await client.register_agents([(Adder, "bad"), (Adder, "good")])
        factory = exchange.factory()
        async with ponger(factory, bad) as first, ponger(factory, good) as second:
            await exchange.revoke("mailbox", bad.agent_id.uid.hex)

            lost = await asyncio.wait_for(first.lost, 30)
            assert isinstance(lost, UnauthorizedError)
            await Handle(good.agent_id).ping()
            await exchange.restart()
            await Handle(good.agent_id).ping()
            assert not second.lost.done()


async def test_who_is_revoked_does_not_go_on_as_whoever_shares_the_connection(
    exchange: ExchangeServer,
) -> None:
    token = exchange.authority.user_token("tester")
    async with RawClient(exchange.url, token) as client:
        uid = uuid4()
        await client.become(uid)
        await client.call("status", uid=uid.hex, **{"as": uid.hex})
        await exchange.revoke("mailbox", uid.hex)
        await client.next(protocol.LOST)

        with pytest.raises(UnauthorizedError, match="revoked"):
            await client.call("status", uid=uid.hex, **{"as": uid.hex})
        assert await client.call("status", uid=uid.hex) == "ACTIVE"


async def test_nobody_makes_calls_as_a_mailbox_of_somebody_else(
    exchange: ExchangeServer,
) -> None:
    authority = exchange.authority
    async with RawClient(exchange.url, authority.user_token("ada")) as ada:
        hers, none = uuid4(), uuid4()
        await ada.call("register", mailboxes=[{"uid": hers.hex, "agent": False}])
        await ada.call("status", uid=hers.hex, **{"as": hers.hex})  # not attached
        async with RawClient(exchange.url, authority.user_token("bob")) as bob:
            for uid in (hers, none):
                with pytest.raises(ForbiddenError, match=f"{uid} is not attached"):
                    await bob.call("status", uid=hers.hex, **{"as": uid.hex})


async def test_a_revocation_survives_a_restart(exchange: ExchangeServer) -> None:
    token = exchange.authority.user_token("ada")
    await exchange.revoke("user", "ada")
    await exchange.restart()
    with pytest.raises(UnauthorizedError, match="revoked"):
        await exchange.factory(token=token).create_user_client()


async def test_a_stream_of_protocol_v1_is_broken_off_when_its_user_is_revoked(
    exchange: ExchangeServer,
) -> None:
    token = exchange.authority.user_token("ada")
    async with V1Client(exchange.url, entity("agent"), token) as old:
        await old.register()
        waiting = asyncio.create_task(
            old.ask("GET", "/message", mailbox=old.mailbox, timeout=60)
        )
        await old.must("GET", "/mailbox", mailbox=old.mailbox)
        await exchange.revoke("user", "ada")
        # aiohttp asks again when a connection that it has used before breaks.
        status, text = await waiting
    assert status == 403
    assert "revoked" in text


# --- keys


async def test_a_running_exchange_takes_a_new_key_and_its_clients_go_along(
    exchange: ExchangeServer,
) -> None:
    """When the old key is dropped later, nobody who is connected notices."""
    token = exchange.authority.user_token("tester")
    factory = exchange.factory(token=token)
    async with (
        await factory.create_user_client() as client,
        RawClient(exchange.url, token) as raw,
    ):
        registration = await client.register_agent(Adder)
        async with ponger(factory, registration) as agent:
            await exchange.keys.rotate()
            new = exchange.authority
            while True:  # until the exchange has noticed
                fresh = protocol.read_tokens(await raw.next(protocol.TOKENS))
                if new.verify(fresh[b""], raw.session).key_id == new.key_id:
                    break
            newcomer = exchange.factory()
            async with await newcomer.create_user_client():
                pass
            await Handle(registration.agent_id).ping()
            keys = json.loads(exchange.key_file.read_text())["keys"]
            exchange.key_file.write_text(json.dumps({"keys": keys[:1]}))
            await exchange.restart()
            await Handle(registration.agent_id).ping()
            assert not agent.lost.done()
    with pytest.raises(UnauthorizedError, match="there is no key"):
        await factory.create_user_client()


async def test_dropping_a_key_that_was_stolen_cuts_all_that_it_has_signed(
    exchange: ExchangeServer,
) -> None:
    token = exchange.authority.user_token("tester")
    async with RawClient(exchange.url, token) as client:
        await exchange.keys.rotate(drop_older=True)
        code, reason = await client.closed()
    assert code == aiohttp.WSCloseCode.POLICY_VIOLATION
    assert "revoked" in reason


# --- the command


def test_a_token_for_another_person_is_of_a_namespace_of_their_own(
    exchange: ExchangeServer,
) -> None:
    authority = exchange.authority
    ada = exchange.academy("token", "--user", "ada")
    team = exchange.academy("token", "--user", "ada", "--namespace", "team")
    mine = authority.verify(exchange.academy("token"))

    assert authority.verify(ada) == Credentials("ada", namespace="ada")
    assert authority.verify(team) == Credentials("ada", namespace="team")
    assert mine.namespace == "default"


async def test_the_command_revokes_a_user_a_mailbox_and_a_token(
    exchange: ExchangeServer,
) -> None:
    authority = exchange.authority
    token = authority.user_token("ada")
    held = authority.verify(token)
    uid = uuid4()
    mailbox = authority.verify(authority.mailbox_token(uid.bytes, Credentials("eve")))

    revoked = exchange.academy("revoke", "--token", held.token_id)
    assert revoked == f"Revoked the token {held.token_id}."
    await authority.refresh()
    assert authority.is_void(held)
    assert exchange.academy("revoke", "--mailbox", str(uid)).endswith(f"{uid}.")
    await authority.refresh()
    assert authority.is_void(mailbox)
    assert UUID(bytes=mailbox.mailbox) == uid
    bob = authority.verify(authority.user_token("bob"))
    assert "bob in all namespaces" in exchange.academy("revoke", "--user", "bob")
    await authority.refresh()
    assert authority.is_void(bob)


async def test_the_command_takes_the_text_of_a_token_from_standard_input_only(
    exchange: ExchangeServer,
) -> None:
    authority = exchange.authority
    token = authority.user_token("ada")
    held = authority.verify(token)

    refused = exchange.academy("revoke", "--token", token, fails=True)
    await authority.refresh()
    assert held.token_id in refused
    assert token not in refused
    assert not authority.is_void(held)

    senseless = exchange.academy(
        "revoke", "--token", "-", stdin="no token\n", fails=True
    )
    assert "no token" in senseless

    shown = exchange.academy("revoke", "--token", "-", stdin=f"{token}\n")
    await authority.refresh()
    assert shown == f"Revoked the token {held.token_id}."
    assert authority.is_void(held)


def test_the_command_rotates_keys(exchange: ExchangeServer) -> None:
    old = exchange.authority.user_token("ada")
    assert "1 older ones verify" in exchange.academy("rotate-key")
    assert exchange.authority.verify(old).subject == "ada"
    assert "0 older ones verify" in exchange.academy("rotate-key", "--drop-older")
    with pytest.raises(UnauthorizedError):
        exchange.authority.verify(old)


def test_the_command_lifts_the_revocation_of_a_user_who_is_revoked(
    exchange: ExchangeServer,
) -> None:
    exchange.academy("revoke", "--user", "ada")
    said = exchange.academy("revoke", "--user", "eve", "--lift", fails=True)
    assert "'eve' is not revoked. Revoked: ada (in all namespaces)" in said
    said = exchange.academy("revoke", "--token", "5e1f", "--lift", fails=True)
    assert "--lift goes with --user" in said

    assert "ada may log in" in exchange.academy("revoke", "--user", "ada", "--lift")
    said = exchange.academy("revoke", "--user", "ada", "--lift", fails=True)
    assert "Revoked: nobody" in said
