"""What several integration tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from academy.exchange import UserExchangeClient
from academy.exchange.cloud import HttpExchangeFactory, spawn_http_exchange
from tests.support.globus_auth import GlobusAuth
from tests.support.redis import Redis
from tests.support.server import ExchangeServer


@pytest.fixture(scope="module")
def http_exchange() -> Iterator[HttpExchangeFactory]:
    """A hosted exchange in a process of its own."""
    with spawn_http_exchange() as factory:
        yield factory


@pytest.fixture
def exchange(tmp_path: Path) -> Iterator[ExchangeServer]:
    """A hosted exchange that a test may kill; modules have others of this name."""
    with ExchangeServer(tmp_path / "exchange") as server:
        yield server


@pytest.fixture
def factory(exchange: ExchangeServer) -> HttpExchangeFactory:
    """A factory of clients of the module's exchange."""
    return exchange.factory()


@pytest.fixture
async def user(factory: HttpExchangeFactory) -> AsyncIterator[UserExchangeClient]:
    """A client of the module's exchange."""
    async with await factory.create_user_client() as client:
        yield client


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A redis-server that a test may kill."""
    with Redis(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture
def globus(monkeypatch: pytest.MonkeyPatch, academy_home: Path) -> Iterator[GlobusAuth]:
    """Globus Auth, as this process and those that it starts will find it."""
    service = GlobusAuth()
    with service.running() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield service
