"""Payloads of any size through a real exchange: whole, in order, and off its memory."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from academy.exception import MailboxFullError
from academy.exchange import HttpExchangeFactory
from academy.handle import Handle
from academy.manager import Manager
from tests.support.library import (
    Library,
    content,
    digest,
    library,
    peak_mb,
    until_bodies_are,
)
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy

SPILL = 524_288
SIZES = (1, 1000, SPILL - 1000, SPILL + 1, 3_000_000, 40_000_000)
SERVER_MB, SMALL_MB = 150, 40


@pytest.fixture(params=["sqlite", "memory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    backend = {"kind": request.param}
    if request.param == "sqlite":
        backend["path"] = str(tmp_path / "exchange.db")
    with ExchangeServer(tmp_path, backend=backend) as server:
        yield server


@pytest.fixture
def durable(tmp_path: Path) -> Any:
    with ExchangeServer(tmp_path) as server:
        yield server


# --- any size


async def test_payloads_of_any_size_arrive_whole_and_leave_nothing(
    server: ExchangeServer,
) -> None:
    async with library(server.factory()) as (handle, _):
        for size in SIZES:
            data = content(size)
            assert await handle.digest(data) == digest(data)
            assert digest(await handle.random(size)) == digest(data)
        await until_bodies_are(server, 0)
    assert peak_mb(server.pid) < SERVER_MB


@pytest.mark.slow
async def test_a_gigabyte_passes_a_server_of_150_megabytes(
    server: ExchangeServer,
) -> None:
    data = np.resize(content(50_000_000), 1_000_000_000)
    async with library(server.factory()) as (handle, _):
        assert await handle.digest(data) == digest(data)
        await until_bodies_are(server, 0)
    assert peak_mb(server.pid) < SERVER_MB


def _peak_of_a_caller(factory: HttpExchangeFactory, agent_id: Any, size: int) -> float:
    async def call() -> float:
        async with await factory.create_user_client():
            handle: Handle[Library] = Handle(agent_id)
            data = np.ones(size, np.uint8)
            before = peak_mb(os.getpid())
            assert await handle.digest(data) == digest(data)
            return peak_mb(os.getpid()) - before

    return asyncio.run(call())


async def test_callers_copy_no_array_and_agents_hold_it_once(
    server: ExchangeServer,
) -> None:
    size = 200_000_000
    factory = server.factory()
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as agents, ProcessPoolExecutor(1, spawn) as pool:
        async with await Manager.from_exchange_factory(factory, agents) as manager:
            handle = await manager.launch(Library)
            before = await handle.peak_mb()
            work = pool.submit(_peak_of_a_caller, factory, handle.agent_id, size)
            assert await asyncio.wrap_future(work) < SMALL_MB
            assert await handle.peak_mb() - before < size / 1e6 + SMALL_MB


async def test_arrays_arrive_aligned_and_writable(durable: ExchangeServer) -> None:
    async with library(durable.factory()) as (handle, _):
        arrays = [np.arange(n, dtype=np.float64) for n in (1001, 200_003, 70_001)]
        echoed = await handle.echo([b"odd", *arrays, "end"])
        assert echoed[0] == b"odd"
        for sent, array in zip(arrays, echoed[1:-1], strict=True):
            assert (sent == array).all()
            assert array.flags.aligned
            array += 1
        assert not np.shares_memory(echoed[1], arrays[0])


# --- beside others


async def test_small_calls_keep_flowing_beside_a_large_one(
    durable: ExchangeServer,
) -> None:
    factory = durable.factory()
    async with library(factory) as (large, _), library(factory) as (small, _):
        data = content(100_000_000)
        call = asyncio.create_task(large.digest(data))
        await until_bodies_are(durable, 1)
        passed = 0
        while not call.done():
            assert await small.echo(passed) == passed
            passed += 1
        assert await call == digest(data)
        assert passed > 10


async def test_a_large_message_passes_a_link_that_small_ones_keep_full(
    durable: ExchangeServer,
) -> None:
    async with (
        TcpProxy(durable.port) as proxy,
        library(durable.factory()) as (small, _),
        library(durable.factory(), durable.factory(proxy.port)) as (large, _),
    ):
        filling = content(100_000)
        passed = 0

        async def fill() -> None:
            nonlocal passed
            while not call.done() and passed < 10 * len(data):
                await small.digest(filling)
                passed += len(filling)

        proxy.delay = 0.001
        data = content(20_000_000)
        call = asyncio.create_task(large.digest(data))
        await asyncio.gather(*[fill() for _ in range(100)])
        assert len(data) < passed < 10 * len(data)
        assert await call == digest(data)


async def test_what_is_sent_behind_a_large_message_arrives_behind_it(
    durable: ExchangeServer,
) -> None:
    async with library(durable.factory()) as (handle, agent):
        sizes = [1, 2_000_000, 2, 3, SPILL + 1, 4]
        calls = [handle.digest(content(size)) for size in sizes]
        await asyncio.gather(*calls)
        assert agent.calls == sizes


async def test_what_a_full_mailbox_refuses_is_not_sent(tmp_path: Path) -> None:
    limits = {"max_mailbox_bytes": 10_000_000}
    with ExchangeServer(tmp_path, limits=limits) as server:
        async with (
            TcpProxy(server.port) as proxy,
            library(server.factory(), server.factory(proxy.port)) as (handle, _),
        ):
            with pytest.raises(MailboxFullError):
                await handle.digest(content(30_000_000))
            assert proxy.forwarded < 1_000_000
            data = content(9_000_000)
            assert await handle.digest(data) == digest(data)


async def test_a_call_that_is_given_up_takes_no_room(tmp_path: Path) -> None:
    limits = {"max_mailbox_bytes": 40_000_000}
    with ExchangeServer(tmp_path, limits=limits) as server:
        async with (
            TcpProxy(server.port) as proxy,
            library(server.factory(), server.factory(proxy.port)) as (handle, agent),
        ):
            proxy.delay = 0.001
            call = asyncio.create_task(handle.digest(content(30_000_000)))
            await until_bodies_are(server, 1_000_000)
            call.cancel()
            await until_bodies_are(server, 0)
            proxy.delay = 0
            assert await handle.digest(content(39_000_000))
            assert agent.calls == [39_000_000]
