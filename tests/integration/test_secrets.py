"""A campaign tells no secret: not in logs, not by repr, not on a command line."""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from academy.exception import UnauthorizedError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud import protocol
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.credentials import known_exchanges
from academy.exchange.cloud.operations.daemon import daemons
from academy.exchange.cloud.security.auth import TokenAuthority
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.transport import AgentRegistration
from academy.launch import AgentSpec
from academy.logging.configs.file import FileLogging
from academy.manager import Manager
from academy.runtime import RuntimeConfig
from tests.support.launchables import Counter
from tests.support.raw import RawClient
from tests.support.redis import Redis
from tests.support.server import ExchangeServer
from tests.support.servers import relay_and_owner

PASSWORD = "open-sesame"
TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+")
"""What any token looks like, also one that was made on the way."""
FAST = {"token_lifetime": 0.6}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path / "redis", requirepass=PASSWORD) as redis:
        yield redis


@pytest.fixture
def servers(
    tmp_path: Path, redis: Redis
) -> Iterator[tuple[ExchangeServer, ExchangeServer]]:
    """A server that relays to another one, and that one."""
    url = redis.url.replace("//", f"//:{PASSWORD}@")
    config = {"auth": FAST, "logger": {"level": "DEBUG"}}
    folder = tmp_path / "exchange"
    with relay_and_owner(
        folder, redis, "default", tls=True, config=config, url=url
    ) as servers:
        yield servers


def secrets_in(text: str, keys: KeySet) -> list[str]:
    assert keys.keys
    known = [secret for secret in (PASSWORD, *keys.keys.values()) if secret in text]
    return known + TOKEN.findall(text)


def shown(*things: object) -> str:
    return "\n".join(f"{thing!s} {thing!r}" for thing in things)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it comes from."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def command_lines(*, but: int) -> list[str]:
    """Return how the processes that this one has started were called."""
    children = psutil.Process().children(recursive=True)
    return [" ".join(child.cmdline()) for child in children if child.pid != but]


async def refused(factory: HttpExchangeFactory) -> UnauthorizedError:
    with pytest.raises(UnauthorizedError) as raised:
        await factory.create_user_client()
    return raised.value


async def renewed_and_revoked(exchange: ExchangeServer) -> tuple[str, str]:
    """Be a client that gets new tokens and is cut; return its first and last one."""
    token = exchange.authority.user_token("eve")
    async with RawClient(exchange.url, token, fingerprint=exchange.fingerprint) as eve:
        fresh = protocol.read_tokens(await eve.next(protocol.TOKENS))[b""]
        again = protocol.read_tokens(await eve.next(protocol.TOKENS))[b""]
        assert fresh != again
        await exchange.revoke("user", "eve")
        await eve.closed()
    return token, again


def things_of(
    exchange: ExchangeServer,
    manager: Manager,
    registration: AgentRegistration[Counter],
) -> list[object]:
    """Return what a program or an operator may print."""
    factory = manager.exchange_factory
    config = ExchangeServingConfig.load(exchange.config_file)
    spec = AgentSpec(Counter, factory, registration, RuntimeConfig())
    client = manager.exchange_client
    authority = exchange.authority
    return [
        *(factory, registration, spec, client, client._transport, manager),
        *(config, config.auth, config.backend, config.backend.redis()),
        *(authority, exchange.keys, exchange.revocations),
        authority.verify(registration.token),
        ExchangeServingConfig.settings(exchange.config_file).describe(config),
    ]


async def test_a_campaign_tells_no_secret(
    servers: tuple[ExchangeServer, ExchangeServer],
    redis: Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    exchange, owner = servers
    log = tmp_path / "agent.log"
    stranger = ExchangeServer(tmp_path / "stranger")  # which never starts
    wrong = exchange.factory(token=stranger.authority.user_token("tester"))
    errors = [await refused(wrong)]  # at the door
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    async with await Manager.from_exchange_factory(
        exchange.factory(), pool, log_config=FileLogging(log, "DEBUG")
    ) as manager:
        registration = await manager.register_agent(Counter)
        counter = await manager.launch(Counter, registration=registration)
        assert await counter.add(1) == 1
        errors.append(await refused(wrong))  # by the connection that is shared
        token, fresh = await renewed_and_revoked(exchange)
        errors.append(await refused(exchange.factory(token=token)))
        assert await counter.add(1) == 2
        things = things_of(exchange, manager, registration)
        assert redis.process is not None
        commands = command_lines(but=redis.process.pid)
    texts = {
        "relay's log": exchange.log.read_text(),
        "owner's log": owner.log.read_text(),
        "client's log": caplog.text,
        "agent's log": log.read_text(),
        "reprs": shown(*things),
        "errors": shown(*(one for error in errors for one in chain(error))),
        "commands": "\n".join(commands),
    }

    # Each of them is what it says.
    assert TOKEN.fullmatch(fresh)
    assert TOKEN.fullmatch(registration.token or "")
    assert "turned away" in texts["relay's log"]
    assert "DEBUG" in texts["owner's log"]
    assert f"launched {registration.agent_id}" in texts["client's log"]
    assert str(registration.agent_id) in texts["agent's log"]
    assert any("Handshake" in type(one).__name__ for one in chain(errors[0]))
    assert sum("academy.exchange.cloud" in command for command in commands) == 2
    assert any("multiprocessing" in command for command in commands)
    found = {name: secrets_in(text, exchange.keys) for name, text in texts.items()}
    assert {name: secrets for name, secrets in found.items() if secrets} == {}


async def test_commands_tell_no_secret(academy_home: Path, redis: Redis) -> None:
    """An exchange in the background, and how a token of it is revoked."""
    command = [str(Path(sys.executable).with_name("academy")), "exchange"]
    config = academy_home.parent / "exchange.toml"
    url = redis.url.replace("//", f"//:{PASSWORD}@")
    config.write_text(f'[backend]\nkind = "redis"\nurl = "{url}"')

    def academy(*arguments: str) -> str:
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=True
        ).stdout

    said = academy("start", "--port", "0", "--config", str(config))
    (daemon,) = daemons()
    process = daemon.process()
    assert process is not None
    line = " ".join(process.cmdline())
    said += academy("status") + academy("stop")

    assert "academy.exchange.cloud --config" in line
    facts = json.dumps(known_exchanges())
    authority = ExchangeServingConfig.from_toml(config).authority()
    assert isinstance(authority, TokenAuthority)
    await authority.refresh()
    await authority.close()
    assert secrets_in(line + said + facts + shown(daemon), authority.keys) == []
