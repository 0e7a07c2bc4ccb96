"""Calls that take too long: an error that says so, and an action that is cancelled."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from academy.agent import Agent, action
from academy.exchange import (
    ExchangeClientConfig,
    ExchangeFactory,
    HttpExchangeFactory,
    LocalExchangeFactory,
)
from academy.handle import Handle, ProxyHandle
from academy.runtime import Runtime

SOON = 0.05


class Slow(Agent):
    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    @action
    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @action
    async def one_and_hang(self) -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @action
    async def quick(self, value: int) -> int:
        return value

    @action
    async def late(self) -> None:
        raise TimeoutError("of the action's own")


@pytest.fixture(params=["local", "hosted"])
def factory(
    request: pytest.FixtureRequest, http_exchange: HttpExchangeFactory
) -> ExchangeFactory:
    return LocalExchangeFactory() if request.param == "local" else http_exchange


@asynccontextmanager
async def running(factory: ExchangeFactory) -> AsyncIterator[tuple[Slow, Handle[Any]]]:
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(Slow, name="slow")
        runtime = Runtime(Slow(), exchange_factory=factory, registration=registration)
        task = asyncio.create_task(runtime.run_until_complete())
        yield runtime.agent, Handle(runtime.agent_id)
        runtime.signal_shutdown()
        await task


async def test_a_call_that_takes_too_long_is_an_error_and_is_cancelled(
    factory: ExchangeFactory,
) -> None:
    async with running(factory) as (agent, handle), asyncio.timeout(60):
        with pytest.raises(TimeoutError, match=r'<slow>.*"hang" within 0\.05 s'):
            await handle.with_timeout(SOON).hang()
        await agent.cancelled.wait()
        assert await handle.with_timeout(60).quick(3) == 3
        with pytest.raises(TimeoutError, match="of the action's own"):
            await handle.with_timeout(60).late()


async def test_a_streams_timeout_is_the_wait_for_the_next_item(
    factory: ExchangeFactory,
) -> None:
    async with running(factory) as (agent, handle), asyncio.timeout(60):
        items = handle.with_timeout(1).one_and_hang()
        assert await anext(items) == 1
        await asyncio.sleep(1.1)  # what the caller takes its time for does not count
        with pytest.raises(TimeoutError, match='"one_and_hang" within 1 s'):
            await anext(items)
        await agent.cancelled.wait()


async def test_the_clients_configuration_has_the_default() -> None:
    config = ExchangeClientConfig(call_timeout=SOON)
    async with running(LocalExchangeFactory(config=config)) as (agent, handle):
        with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
            await handle.hang()
        await agent.cancelled.wait()
        patient = asyncio.create_task(handle.with_timeout(math.inf).hang())
        await asyncio.wait([patient], timeout=3 * SOON)
        assert not patient.done()
        patient.cancel()
        await asyncio.wait([patient])


async def test_an_agent_that_is_inactive_is_not_waited_for_longer_either() -> None:
    factory = LocalExchangeFactory()
    async with await factory.create_user_client() as client:
        agent = (await client.register_agent(Slow)).agent_id
        handle: Handle[Any] = Handle(agent, reject_on_inactive=True, timeout=SOON)
        with pytest.raises(TimeoutError):
            await handle.quick(1)


async def test_a_proxy_has_timeouts_as_well() -> None:
    agent = Slow()
    proxy = ProxyHandle(agent).with_timeout(SOON)
    with pytest.raises(TimeoutError, match='"hang"'):
        await proxy.hang()
    assert agent.cancelled.is_set()
    items = aiter(proxy.action("one_and_hang"))
    assert await anext(items) == 1
    with pytest.raises(TimeoutError, match='"one_and_hang"'):
        await anext(items)


async def test_timeouts_travel_with_handles_and_are_checked() -> None:
    factory = LocalExchangeFactory()
    async with await factory.create_user_client() as client:
        agent = (await client.register_agent(Slow)).agent_id
        pinned: Handle[Slow] = Handle(agent, exchange=client, ignore_context=True)
        assert pinned.with_timeout(3)._exchange is client
        handle = Handle._of(agent, Slow).with_timeout(3)
        copied = pickle.loads(pickle.dumps(handle))
        assert (copied._timeout, copied._streams) == (3, {"one_and_hang"})
        assert not hasattr(copied, "typo")
        for wrong in (0, -1, math.nan):
            with pytest.raises(ValueError, match="positive number of seconds"):
                handle.with_timeout(wrong)
            with pytest.raises(ValueError, match="call_timeout"):
                ExchangeClientConfig(call_timeout=wrong)
    with pytest.raises(RuntimeError, match="not bound"):
        Handle[Slow]().with_timeout(3)
