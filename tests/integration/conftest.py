"""What several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from academy.exchange.cloud import HttpExchangeFactory, spawn_http_exchange
from tests.support.globus_auth import GlobusAuth


@pytest.fixture(scope="module")
def http_exchange() -> Iterator[HttpExchangeFactory]:
    """A hosted exchange in a process of its own."""
    with spawn_http_exchange() as factory:
        yield factory


@pytest.fixture
def globus(monkeypatch: pytest.MonkeyPatch, academy_home: Path) -> Iterator[GlobusAuth]:
    """Globus Auth, as this process and those that it starts will find it."""
    service = GlobusAuth()
    with service.running() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield service
