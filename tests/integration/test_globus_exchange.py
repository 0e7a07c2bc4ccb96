"""Our exchange with Globus Auth: who is let in, and whose mailboxes they find."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from academy.exception import BadEntityIdError, ForbiddenError, UnauthorizedError
from academy.exchange import (
    GlobusExchangeFactory,
    HttpExchangeFactory,
    MailboxStatus,
    UserExchangeClient,
)
from academy.exchange.cloud.globus.identities import GlobusIdentities
from academy.handle import Handle
from academy.manager import Manager
from tests.support import globus_auth
from tests.support.agents import Adder
from tests.support.globus_auth import PROJECT, GlobusAuth
from tests.support.server import ExchangeServer
from tests.support.v1_peer import V1Client, entity

ADA, BOB, EVE = "ada@example.org", "bob@example.org", "eve@example.org"


@pytest.fixture
def exchange(
    globus: GlobusAuth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ExchangeServer]:
    """An exchange at which one logs in with Globus Auth."""
    monkeypatch.setenv("ACADEMY_EXCHANGE_SECRET", globus_auth.EXCHANGE_SECRET)
    key = {"key_file": str(tmp_path / "key")}
    with ExchangeServer(tmp_path, auth={"method": "globus", **key}) as server:
        yield server


class People:
    """Makes factories of people who are logged in."""

    def __init__(self, globus: GlobusAuth, exchange: ExchangeServer) -> None:
        self._globus = globus
        self._exchange = exchange
        self.apps = AsyncExitStack()

    def __call__(self, name: str, **options: Any) -> HttpExchangeFactory:
        app = self._globus.person(name)
        self.apps.callback(app.close)
        return self._exchange.factory(
            token=None, auth_method="globus", globus_app=app, **options
        )


@pytest.fixture
async def people(globus: GlobusAuth, exchange: ExchangeServer) -> AsyncIterator[People]:
    people = People(globus, exchange)
    async with people.apps:
        yield people


async def test_whoever_logs_in_launches_agents_that_need_no_globus(
    globus: GlobusAuth, people: People
) -> None:
    factory = people(ADA)
    async with await Manager.from_exchange_factory(
        factory, ProcessPoolExecutor(1)
    ) as manager:
        handle = await manager.launch(Adder)
        assert await handle.add(1, 2) == 3
    assert not factory.speaks_v1
    assert globus.calls["introspect"] == 1


async def test_users_do_not_find_each_others_agents(people: People) -> None:
    async with await Manager.from_exchange_factory(people(ADA)) as manager:
        agent = await manager.launch(Adder())
        async with await people(EVE).create_user_client() as eve:
            assert await eve.discover(Adder) == ()
            assert await eve.status(agent.agent_id) is MailboxStatus.MISSING
            with pytest.raises(BadEntityIdError):
                await Handle(agent.agent_id, exchange=eve).add(1, 1)
        async with await people(ADA).create_user_client() as again:
            assert await Handle(agent.agent_id, exchange=again).add(1, 1) == 2


async def test_agents_with_clients_at_globus_work_here_as_well(
    globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    with globus.person() as app:
        factory = GlobusExchangeFactory(
            PROJECT,
            url=f"{exchange.url}/v1",
            fingerprint=exchange.fingerprint,
            globus_app=app,
        )
        async with await Manager.from_exchange_factory(
            factory, ProcessPoolExecutor(1)
        ) as manager:
            handle = await manager.launch(Adder)
            assert await handle.add(1, 2) == 3


async def test_globus_is_asked_once_for_many_requests(
    globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    token = globus.token(ADA)
    async with V1Client(exchange.url, entity("user"), token) as client:
        await client.register()
        for _ in range(5):
            await client.must("GET", "/mailbox", mailbox=client.mailbox)
    assert globus.calls["introspect"] == 1


async def test_a_token_is_asked_about_again_when_the_answer_is_old(
    globus: GlobusAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_EXCHANGE_SECRET", globus_auth.EXCHANGE_SECRET)
    identities = GlobusIdentities(cache_seconds=0)
    token = globus.token(ADA)
    assert (await identities.identify(token)).namespace == ADA
    globus.expire_access_tokens()
    with pytest.raises(UnauthorizedError, match="not active") as caught:
        await identities.identify(token)
    assert token not in str(caught.value) + repr(vars(identities))


async def test_tokens_that_are_not_for_this_exchange_are_refused(
    globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    other = str(uuid4())
    globus.scopes["of-another-service"] = globus_auth.Scope(other)
    old = globus.token(ADA)
    globus.expire_access_tokens()
    # Issued to the exchange's client, for another service: not meant for it.
    issued = globus.token(ADA, "of-another-service")
    for token in (issued, old, "nonsense", "a.b.c"):
        async with V1Client(exchange.url, entity("user"), token) as client:
            for path in ("/mailbox", "/v1/mailbox"):
                status, _ = await client.ask("POST", path, mailbox=client.mailbox)
                assert status == 403
            status, text = await client.ask("POST", "/v2/login")
            assert status == 403
            assert token not in text
    async with V1Client(exchange.url, entity("user"), None) as client:
        status, _ = await client.ask("POST", "/v2/login")
        assert status == 401
    assert "nonsense" not in exchange.log.read_text()


async def test_a_revoked_user_logs_in_again_when_that_is_lifted_and_not_before(
    people: People, globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    async with await people(ADA).create_user_client():
        pass
    exchange.academy("revoke", "--user", ADA)
    with pytest.raises(ForbiddenError, match=f"{ADA} is revoked here"):
        await people(ADA).create_user_client()
    async with V1Client(exchange.url, entity("user"), globus.token(ADA)) as old:
        while (await old.ask("POST", "/mailbox", mailbox=old.mailbox))[0] != 403:
            await asyncio.sleep(0.05)  # until the exchange has noticed
        async with await people(EVE).create_user_client():
            pass

        exchange.academy("revoke", "--user", ADA, "--lift")
        async with await people(ADA).create_user_client():
            pass
        while (await old.ask("POST", "/mailbox", mailbox=old.mailbox))[0] != 200:
            await asyncio.sleep(0.05)


async def test_others_go_on_while_globus_takes_its_time(
    globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    async with (
        V1Client(exchange.url, entity("user"), globus.token(ADA)) as waiting,
        await exchange.factory().create_user_client() as other,
    ):
        globus.hanging = True
        asked = asyncio.create_task(waiting.register())
        while not globus.calls["introspect"]:
            await asyncio.sleep(0.01)
        assert await other.status(other.client_id) is MailboxStatus.ACTIVE
        assert not asked.done()
        globus.hanging = False
        await asked


def test_an_exchange_without_its_secret_does_not_start(
    globus: GlobusAuth, tmp_path: Path
) -> None:
    server = ExchangeServer(tmp_path, auth={"method": "globus"})
    with pytest.raises(AssertionError), server:
        pass
    assert server.wait() == 1
    assert "ACADEMY_EXCHANGE_SECRET" in server.log.read_text()


# --- sharing


@asynccontextmanager
async def shared(
    people: People, globus: GlobusAuth
) -> AsyncIterator[tuple[Any, Any, str]]:
    """Run two agents of Ada, of which she shares the first with a group of Bob's."""
    group = str(uuid4())
    globus.groups[group] = {BOB}
    ada = people(ADA)
    async with await Manager.from_exchange_factory(ada) as manager:
        agent, private = await manager.launch(Adder()), await manager.launch(Adder())
        console = await ada.console()
        await console.share_mailbox(agent.agent_id, group)
        assert await console.get_shared_groups(agent.agent_id) == [group]
        yield agent.agent_id, private.agent_id, group


@asynccontextmanager
async def visited(
    people: People, globus: GlobusAuth, guest: str = BOB
) -> AsyncIterator[tuple[UserExchangeClient, Any, Any, str]]:
    """Let somebody visit Ada, who shares an agent with Bob's group."""
    async with (
        shared(people, globus) as (agent, private, group),
        await people(guest, shared_by=ADA).create_user_client() as client,
    ):
        yield client, agent, private, group


async def test_members_of_a_group_find_and_call_what_is_shared_with_it(
    people: People, globus: GlobusAuth
) -> None:
    async with visited(people, globus) as (bob, agent, _, _):
        assert await bob.discover(Adder) == (agent,)
        assert await bob.status(agent) is MailboxStatus.ACTIVE
        assert await Handle(agent, exchange=bob).add(2, 3) == 5
        assert (await bob.agent_stats(agent)).completed >= 1


async def test_members_of_a_group_can_do_nothing_else(
    people: People, globus: GlobusAuth
) -> None:
    async with visited(people, globus) as (bob, agent, private, group):
        assert await bob.status(private) is MailboxStatus.MISSING
        with pytest.raises(BadEntityIdError):
            await Handle(private, exchange=bob).add(1, 1)
        with pytest.raises(BadEntityIdError):
            await bob.agent_stats(private)
        with pytest.raises(ForbiddenError, match="guests register no agents"):
            await bob.register_agent(Adder)
        with pytest.raises(ForbiddenError):
            await bob.terminate(agent)
        await bob.terminate(private)  # which does not exist for him
        console = await people(BOB, shared_by=ADA).console()
        with pytest.raises(ForbiddenError):
            await console.share_mailbox(agent, group)
        with pytest.raises(BadEntityIdError):
            await console.get_shared_groups(private)
        async with await people(ADA).create_user_client() as ada:
            assert await ada.status(private) is MailboxStatus.ACTIVE


async def test_whoever_is_not_a_member_finds_nothing(
    people: People, globus: GlobusAuth
) -> None:
    async with visited(people, globus, EVE) as (eve, agent, _, _):
        assert await eve.discover(Adder) == ()
        assert await eve.status(agent) is MailboxStatus.MISSING
        with pytest.raises(BadEntityIdError):
            await Handle(agent, exchange=eve).add(1, 1)


async def test_what_is_shared_no_more_is_unknown_at_once(
    people: People, globus: GlobusAuth
) -> None:
    async with visited(people, globus) as (bob, agent, _, group):
        assert await Handle(agent, exchange=bob).add(1, 1) == 2
        console = await people(ADA).console()
        await console.remove_shared_group(agent, group)
        await console.remove_shared_group(agent, group)
        assert await console.get_shared_groups(agent) == []
        with pytest.raises(BadEntityIdError):
            await Handle(agent, exchange=bob).add(1, 1)


async def test_what_is_shared_is_so_after_a_kill_of_the_exchange(
    people: People, globus: GlobusAuth, exchange: ExchangeServer
) -> None:
    async with (
        shared(people, globus) as (agent, _, group),
        await people(ADA).create_user_client() as ada,
    ):
        await exchange.restart()
        assert await Handle(agent, exchange=ada).add(1, 1) == 2
        async with await people(BOB, shared_by=ADA).create_user_client() as bob:
            assert await Handle(agent, exchange=bob).add(1, 1) == 2
        assert await (await people(ADA).console()).get_shared_groups(agent) == [group]


async def test_a_namespace_of_nobody_is_not_made_by_asking_for_it(
    people: People, tmp_path: Path
) -> None:
    with pytest.raises(ForbiddenError, match="shares nothing with you"):
        await people(BOB, shared_by="nobody@example.org").create_user_client()
    assert "nobody" not in str(os.listdir(tmp_path))


async def test_a_group_that_is_none_and_a_mailbox_of_nobody_are_named(
    people: People, globus: GlobusAuth
) -> None:
    async with shared(people, globus) as (agent, _, _):
        console = await people(ADA).console()
        with pytest.raises(
            Exception, match=r"group_id has to be a UUID, not 'friends'"
        ):
            await console.share_mailbox(agent, "friends")
        with pytest.raises(BadEntityIdError):
            await (await people(EVE).console()).get_shared_groups(agent)
