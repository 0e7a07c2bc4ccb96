"""Clients that log in with Globus Auth, at an exchange that speaks protocol v1 only.

The real globus-sdk talks to a stand-in of Globus Auth on loopback.
"""

from __future__ import annotations

import asyncio
import pickle
import re
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import globus_sdk
import pytest

from academy.exception import (
    AgentTerminatedError,
    ExchangeConnectionError,
    ForbiddenError,
    UnauthorizedError,
)
from academy.exchange import (
    GlobusExchangeFactory,
    HttpExchangeFactory,
    MailboxStatus,
)
from academy.exchange.cloud.globus import GlobusAgentRegistration
from academy.exchange.cloud.globus.login import tokens_file
from academy.manager import Manager
from tests.support import globus_auth, v1_server
from tests.support.agents import Adder
from tests.support.globus_auth import EXCHANGE_SCOPE, PROJECT, GlobusAuth


@pytest.fixture
def url(globus: GlobusAuth, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An exchange that asks for Globus Auth."""
    with monkeypatch.context() as patch:
        patch.setenv("ACADEMY_EXCHANGE_SECRET", globus_auth.EXCHANGE_SECRET)
        with v1_server.running("--globus", globus.url) as url:
            patch.undo()
            yield url


@pytest.fixture
def app(globus: GlobusAuth) -> Iterator[globus_sdk.GlobusApp]:
    """A person whose browser consents to everything."""
    with globus.person() as app:
        yield app


@pytest.fixture
def service(globus: GlobusAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that the environment names."""
    monkeypatch.setenv("ACADEMY_GLOBUS_CLIENT_ID", globus_auth.SERVICE)
    monkeypatch.setenv("ACADEMY_GLOBUS_CLIENT_SECRET", globus_auth.SERVICE_SECRET)


# --- logging in


LOGIN = """
import asyncio, sys
from academy.exchange import HttpExchangeFactory
async def main():
    factory = HttpExchangeFactory(sys.argv[1], auth_method="globus")
    async with await factory.create_user_client() as client:
        print(await client.status(client.client_id))
asyncio.run(main())
"""


def test_a_person_logs_in_on_the_terminal_once(
    globus: GlobusAuth, url: str, academy_home: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOGIN, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(globus.url):
            break
    with urllib.request.urlopen(line.strip()) as page:
        code = page.read().decode()
    output, _ = process.communicate(code + "\n", timeout=60)
    assert "ACTIVE" in output

    again = [sys.executable, "-c", LOGIN, url]
    run = subprocess.run(
        again, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert "ACTIVE" in run.stdout, run.stderr
    assert len(globus.consents) == 1
    (file,) = (academy_home / "globus").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_without_a_terminal_the_error_says_what_to_do(url: str) -> None:
    command = [sys.executable, "-c", LOGIN, url]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert re.search("UnauthorizedError: .*no terminal to log in", run.stderr)


async def test_nobody_to_log_in_as_is_an_error_that_names_the_variables(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACADEMY_GLOBUS_CLIENT_ID")
    with pytest.raises(
        UnauthorizedError, match=r"ACADEMY_GLOBUS_CLIENT_ID.*CLIENT_SECRET"
    ):
        await HttpExchangeFactory(url, auth_method="globus").create_user_client()


async def test_a_service_shows_its_secret_to_globus_alone(
    globus: GlobusAuth, service: None, url: str
) -> None:
    factory = HttpExchangeFactory(url, auth_method="globus")
    async with await factory.create_user_client() as client:
        assert await client.status(client.client_id) is MailboxStatus.ACTIVE
    assert globus.consents == []
    assert factory.speaks_v1
    (name,) = {token.username for token in globus.tokens.values()}
    assert name == f"{globus_auth.SERVICE}@clients.auth.globus.org"


@pytest.mark.slow  # the SDK tries six times
async def test_globus_out_of_reach_is_named_as_such(
    service: None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", "http://127.0.0.1:9")
    factory = HttpExchangeFactory(url, auth_method="globus")
    with pytest.raises(ExchangeConnectionError, match=r"127\.0\.0\.1:9"):
        await factory.create_user_client()


async def test_a_wrong_secret_is_refused_and_not_repeated_in_the_error(
    service: None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_GLOBUS_CLIENT_SECRET", "wrong-one")
    factory = HttpExchangeFactory(url, auth_method="globus")
    with pytest.raises(UnauthorizedError, match="invalid_client") as caught:
        await factory.create_user_client()
    assert "wrong-one" not in repr(caught.value) + str(caught.value.__cause__)


async def test_an_expired_token_is_renewed_without_anybody_noticing(
    globus: GlobusAuth, app: Any, url: str
) -> None:
    factory = HttpExchangeFactory(url, auth_method="globus", globus_app=app)
    async with await Manager.from_exchange_factory(factory) as manager:
        handle = await manager.launch(Adder())
        assert await handle.add(1, 2) == 3
        globus.expire_access_tokens()
        assert await asyncio.gather(*(handle.add(1, 2) for _ in range(10)))
    assert len(globus.consents) == 1
    # One for whoever manages, and one for the agent: not one for each request.
    assert globus.calls["refresh_token"] <= 2


async def test_what_is_forbidden_is_asked_again_once_only(
    globus: GlobusAuth, app: Any, url: str
) -> None:
    factory = HttpExchangeFactory(url, auth_method="globus", globus_app=app)
    other = HttpExchangeFactory(
        url, token=globus.token("eve@example.org"), auth_method="globus"
    )
    async with (
        await factory.create_user_client() as client,
        await other.create_user_client() as stranger,
    ):
        with pytest.raises(ForbiddenError):
            await client.terminate(stranger.client_id)
    assert globus.calls["refresh_token"] == 1


class Issuer:
    """Gives tokens, but is away every other time."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)
        self.calls = 0

    def token(self, refused: str | None = None) -> str:
        self.calls += 1
        if self.calls % 2:
            raise ExchangeConnectionError("https://issuer", "it is away")
        return self.tokens.pop(0)


async def test_a_token_that_cannot_be_renewed_for_now_is_waited_for(
    globus: GlobusAuth, url: str
) -> None:
    factory = HttpExchangeFactory(url, auth_method="globus")
    issuer = Issuer(globus.token("ada@example.org"), globus.token("ada@example.org"))
    factory.tokens = issuer
    async with await Manager.from_exchange_factory(factory) as manager:
        client = manager.exchange_client
        first = next(iter(globus.tokens.values()))
        first.expires = 0
        assert await client.status(client.client_id) is MailboxStatus.ACTIVE
    assert issuer.calls == 4


async def test_a_damaged_login_is_named(service: None, url: str) -> None:
    login = HttpExchangeFactory(url, auth_method="globus")
    await (await login.create_user_client()).close()
    file = tokens_file(globus_auth.SERVICE)
    file.write_text('{"data": ')
    with pytest.raises(UnauthorizedError, match=rf"{file.parent} is damaged"):
        await login.create_user_client()


# --- agents with clients of their own


@pytest.fixture
def factory(app: Any, url: str) -> GlobusExchangeFactory:
    """A person's, whose agents get clients in a project."""
    return GlobusExchangeFactory(PROJECT, url=url, globus_app=app)


async def test_a_batch_of_agents_costs_one_consent_and_leaves_nothing(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await Manager.from_exchange_factory(
        factory, ProcessPoolExecutor(3)
    ) as manager:
        logins = len(globus.consents)
        async with manager.launch_batch() as batch:
            handles = [await batch.queue(Adder) for _ in range(3)]
        assert len(globus.consents) == logins + 1
        assert len(globus.agents) == 3
        assert (
            await asyncio.gather(*(handle.add(2, 2) for handle in handles)) == [4] * 3
        )
        # Each agent has exchanged what was delegated to its own client.
        users = {t.client for t in globus.tokens.values()} & set(globus.agents)
        assert users == set(globus.agents)
    assert globus.agents == {}


async def test_an_agent_renews_its_access_and_a_later_run_goes_on(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        worker = pickle.loads(pickle.dumps(factory.for_agents()))
        first = await worker.connect(registration)
        globus.expire_access_tokens()
        assert await first.status(registration.agent_id) is MailboxStatus.ACTIVE
        await first.close()
        globus.expire_access_tokens()
        again = await worker.connect(registration)
        assert await again.status(registration.agent_id) is MailboxStatus.ACTIVE
        await again.close()
        assert globus.calls["dependent_token"] == 1
    async with await factory.create_user_client() as user:
        await user.terminate(registration.agent_id)
    assert globus.agents == {}


@pytest.mark.parametrize(
    "step",
    ["create_client", "create_credential", "create_scope", "authorization_code"],
)
async def test_a_step_that_fails_leaves_neither_clients_nor_agents(
    globus: GlobusAuth, factory: GlobusExchangeFactory, step: str
) -> None:
    async with await factory.create_user_client() as user:
        await user.register_agent(Adder)
        globus.fail.add(step)
        with pytest.raises(ForbiddenError, match=f"no_{step}_today"):
            await user.register_agents([(Adder, None), (Adder, None)])
        globus.fail.clear()
        assert len(globus.agents) == 1
        assert len(await user.discover(Adder)) == 1
    if step == "create_client":
        return
    assert globus.calls["delete_client"] >= 1


async def test_registering_that_is_given_up_leaves_no_clients(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await factory.create_user_client() as user:
        work = asyncio.create_task(user.register_agents([(Adder, None)] * 50))
        while not globus.agents:
            await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        while globus.agents:
            await asyncio.sleep(0.01)
        assert await user.discover(Adder) == ()


async def test_only_administrators_of_the_project_register_agents(
    globus: GlobusAuth, app: Any, url: str
) -> None:
    factory = GlobusExchangeFactory(uuid4(), url=url, globus_app=app)
    async with await factory.create_user_client() as user:
        with pytest.raises(ForbiddenError, match="not_an_administrator"):
            await user.register_agent(Adder)


async def test_the_client_of_an_agent_that_another_program_registered_is_deleted(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
    assert len(globus.agents) == 1  # agents outlive the program that registers them
    async with await factory.create_user_client() as user:
        await user.terminate(registration.agent_id)
        assert globus.agents == {}
        assert await user.status(registration.agent_id) is MailboxStatus.TERMINATED


async def test_children_of_an_agent_share_its_client(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        parent = await factory.for_agents().connect(registration)
        child = await parent.register_agent(Adder)
        serving = await parent.factory().for_agents().connect(child)
        assert await serving.status(child.agent_id) is MailboxStatus.ACTIVE
        await serving.close()
        await parent.terminate(child.agent_id)
        assert len(globus.agents) == 1
        await parent.close()
        await user.terminate(registration.agent_id)


async def test_services_launch_agents_without_anybodys_consent(
    globus: GlobusAuth, service: None, url: str
) -> None:
    factory = GlobusExchangeFactory(PROJECT, {"visibility": "public"}, url=url)
    async with await Manager.from_exchange_factory(factory) as manager:
        handle = await manager.launch(Adder())
        assert await handle.add(3, 3) == 6
        await manager.shutdown(handle, terminate=True)
        with pytest.raises(AgentTerminatedError):
            await handle.add(1, 1)
    assert globus.consents == []
    assert globus.agents == {}


async def test_secrets_are_not_shown(
    globus: GlobusAuth, factory: GlobusExchangeFactory
) -> None:
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        assert isinstance(registration, GlobusAgentRegistration)
        assert registration.exchange_type == "globus"
        acting = factory.on_behalf_of(registration)
        shown = repr(registration) + repr(factory) + repr(acting) + repr(acting.tokens)
        assert registration.client_id in shown
        for secret in (registration.secret, registration.token, *globus.tokens):
            assert secret is not None
            assert secret not in shown
        for_agents = pickle.dumps(factory.for_agents())
        assert not [t for t in globus.tokens if t.encode() in for_agents]
        await user.terminate(registration.agent_id)


def test_an_agent_of_a_file_keeps_its_client_from_run_to_run(
    globus: GlobusAuth, service: None, url: str, tmp_path: Path
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        f'[exchange]\nexchange_type = "globus"\nurl = "{url}"\n'
        f'project_id = "{PROJECT}"\n[agent]\nconstructor = '
        '"tests.support.agents.Brief"\n'
    )
    command = [sys.executable, "-m", "academy.run", "--config", str(path)]
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        (client_id,) = globus.agents
        assert client_id in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert globus.calls["create_client"] == globus.calls["dependent_token"] == 1


def test_the_public_exchange_is_the_default() -> None:
    factory = GlobusExchangeFactory(uuid4())
    assert factory.url == "https://exchange.academy-agents.org/v1"
    with pytest.raises(ValueError, match="UUID, not 'mine'"):
        GlobusExchangeFactory("mine")
    with pytest.raises(ValueError, match="'globus'"):
        HttpExchangeFactory(factory.url, auth_method="oauth")
    assert EXCHANGE_SCOPE.endswith("/academy_exchange")
