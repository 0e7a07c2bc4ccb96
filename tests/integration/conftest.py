"""What several integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from academy.exchange.cloud import HttpExchangeFactory, spawn_http_exchange


@pytest.fixture(scope="module")
def http_exchange() -> Iterator[HttpExchangeFactory]:
    """A hosted exchange in a process of its own."""
    with spawn_http_exchange() as factory:
        yield factory
