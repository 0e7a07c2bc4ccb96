"""Namespaces of one exchange: what is in another one does not exist."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from academy.exception import BadEntityIdError, UnauthorizedError
from academy.exchange import HttpExchangeFactory, MailboxStatus
from academy.handle import Handle
from academy.manager import Manager
from tests.support.agents import Adder
from tests.support.raw import RawClient
from tests.support.server import ExchangeServer
from tests.support.v1_peer import V1Client, entity, message


def factory_of(exchange: ExchangeServer, namespace: str) -> HttpExchangeFactory:
    token = exchange.authority.user_token("tester", namespace)
    return exchange.factory(token=token)


async def test_an_agent_of_another_namespace_is_unknown_even_to_the_same_user(
    exchange: ExchangeServer,
) -> None:
    ours, theirs = factory_of(exchange, "ours"), factory_of(exchange, "theirs")
    async with await Manager.from_exchange_factory(ours) as manager:
        adder = await manager.launch(Adder)
        assert await adder.add(1, 1) == 2
        async with await theirs.create_user_client() as client:
            stranger: Handle[Adder] = Handle(adder.agent_id)
            with pytest.raises(BadEntityIdError):
                await stranger.add(1, 1)
            status = await client.status(adder.agent_id)
            found = await client.discover(Adder)
            await client.terminate(adder.agent_id)
        assert await adder.add(1, 2) == 3

    assert status is MailboxStatus.MISSING
    assert found == ()


async def test_protocol_v1_knows_no_mailbox_of_another_namespace(
    exchange: ExchangeServer,
) -> None:
    async with (
        V1Client(
            exchange.url, entity("agent"), exchange.authority.user_token("t", "ours")
        ) as ours,
        V1Client(
            exchange.url, entity("agent"), exchange.authority.user_token("t", "theirs")
        ) as theirs,
    ):
        await ours.register()
        await theirs.register()
        mine = await ours.must("GET", "/mailbox", mailbox=ours.mailbox)
        yours = await theirs.must("GET", "/mailbox", mailbox=ours.mailbox)
        sent = message(theirs.me, ours.me, {"kind": "ping-request"})
        refused = await theirs.ask("PUT", "/message", message=json.dumps(sent))

    assert mine == {"status": "ACTIVE"}
    assert yours == {"status": "MISSING"}
    assert refused[0] == 404


async def test_a_connection_opens_no_mailbox_with_the_token_of_another_namespace(
    exchange: ExchangeServer,
) -> None:
    ours, theirs = (
        exchange.authority.user_token("tester", name) for name in ("ours", "theirs")
    )
    async with RawClient(exchange.url, ours) as client:
        me = uuid4()
        item = {"uid": me.hex, "agent": False}
        await client.call("register", mailboxes=[item], token=ours)
        with pytest.raises(UnauthorizedError, match="of the namespace 'theirs'"):
            await client.attach(me, theirs)
        with pytest.raises(UnauthorizedError, match="of the namespace 'theirs'"):
            await client.call("register", mailboxes=[item], token=theirs)


async def test_every_namespace_survives_a_restart_in_a_file_of_its_own(
    exchange: ExchangeServer, tmp_path: Path
) -> None:
    names = ("ours", "theirs")
    agents = []
    for name in names:
        async with await factory_of(exchange, name).create_user_client() as client:
            agents.append((await client.register_agent(Adder)).agent_id)
    await exchange.restart()
    seen = []
    for name in names:
        async with await factory_of(exchange, name).create_user_client() as client:
            seen.append([await client.status(agent) for agent in agents])

    active, missing = MailboxStatus.ACTIVE, MailboxStatus.MISSING
    assert seen == [[active, missing], [missing, active]]
    assert exchange.database.with_name("exchange-ours.db").exists()
    assert exchange.database.with_name("exchange-theirs.db").exists()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b", "ä", "x" * 101])
def test_a_namespace_that_could_not_be_a_file_gets_no_token(
    exchange: ExchangeServer, name: str
) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        exchange.authority.user_token("tester", name)
