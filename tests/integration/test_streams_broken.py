"""Streams while agents and exchanges are killed and connections are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy.exception import ActionInterruptedError
from academy.exchange import AgentRegistration, UserExchangeClient
from academy.handle import Handle
from tests.support.recording_agent import AgentProcess, RecordingAgent, runs
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy

COUNT = 2000


@pytest.fixture
async def proxy(exchange: ExchangeServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(exchange.port) as proxy:
        yield proxy


@pytest.fixture
async def user(
    exchange: ExchangeServer, proxy: TcpProxy
) -> AsyncIterator[UserExchangeClient]:
    async with await exchange.factory(proxy.port).create_user_client() as client:
        yield client


@pytest.fixture
async def registration(user: UserExchangeClient) -> AgentRegistration[Any]:
    return await user.register_agent(RecordingAgent)


@pytest.fixture
def handle(registration: AgentRegistration[Any]) -> Handle[Any]:
    return Handle(registration.agent_id)


@pytest.fixture
def process(
    exchange: ExchangeServer,
    proxy: TcpProxy,
    registration: AgentRegistration[Any],
    tmp_path: Path,
) -> Iterator[AgentProcess]:
    factory = exchange.factory(proxy.port)
    with AgentProcess(factory, registration, tmp_path / "record") as process:
        yield process


async def take(
    items: AsyncIterator[int], got: list[int], at: dict[int, Callable[[], Any]]
) -> None:
    """Take every item, and do something after some of them."""
    async for item in items:
        got.append(item)
        if (step := at.get(len(got))) is not None:
            done = step()
            if isinstance(done, Awaitable):
                await done


async def test_an_idempotent_stream_goes_on_when_its_agent_is_killed(
    process: AgentProcess, handle: Handle[Any]
) -> None:
    got: list[int] = []
    at = dict.fromkeys((1, 40, 500, 1999), process.restart)
    async with asyncio.timeout(90):
        await take(handle.stream_again(COUNT), got, at)
    assert got == list(range(COUNT))
    pids = [pid for _, pid in runs(process.record)]
    assert 1 < len(pids) == len(set(pids)) <= 5


async def test_any_other_stream_ends_with_an_error_when_its_agent_is_killed(
    process: AgentProcess, handle: Handle[Any]
) -> None:
    got: list[int] = []
    async with asyncio.timeout(90):
        with pytest.raises(ActionInterruptedError, match='"stream_once"'):
            await take(handle.stream_once(COUNT), got, {100: process.restart})
    assert 100 <= len(got) < COUNT
    assert got == list(range(len(got)))


@pytest.mark.parametrize("action", ["stream_once", "stream_again"])
async def test_a_stream_does_not_notice_cuts_and_a_killed_exchange(
    exchange: ExchangeServer,
    proxy: TcpProxy,
    process: AgentProcess,
    handle: Handle[Any],
    action: str,
) -> None:
    got: list[int] = []
    at: dict[int, Callable[[], Any]] = dict.fromkeys((1, 33, 600, 1998), proxy.cut)
    at |= dict.fromkeys((16, 1000), exchange.restart)
    async with asyncio.timeout(90):
        await take(handle.action(action, COUNT), got, at)
    assert got == list(range(COUNT))
    assert len(runs(process.record)) == (action == "stream_again")
