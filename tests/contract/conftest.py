"""What the contracts of exchanges and of watching share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from academy.exchange import AgentRegistration, ExchangeFactory, UserExchangeClient
from tests.support.agents import Adder


@pytest.fixture
async def factory(make_factory: Callable[[], ExchangeFactory]) -> ExchangeFactory:
    """A factory of the exchange that a module tests."""
    return make_factory()


@pytest.fixture
async def user(factory: ExchangeFactory) -> AsyncIterator[UserExchangeClient]:
    async with await factory.create_user_client("user") as client:
        yield client


@pytest.fixture
async def registration(user: UserExchangeClient) -> AgentRegistration[Any]:
    return await user.register_agent(Adder, name="adder")
