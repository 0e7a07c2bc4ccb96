"""Moving payloads: what the hosted exchange moves of what a bare WebSocket relay does.

Both carry bytes from one process through a server to another, which answers with their
number. The relay passes each on as the one WebSocket message in which it came: nothing
is stored, checked, cut into parts or kept in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from academy.agent import Agent, action
from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.handle import Handle
from academy.manager import Manager
from benchmarks.figures import Figure
from benchmarks.processes import background, run, workers

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
AIM = 10_000_000
"""Bytes of the payload for which there is an aim."""

Move = Callable[[bytes], Awaitable[int]]
Rates = dict[int, float]
"""Megabytes per second, by size of the payload."""


class Sink(Agent):
    @action
    async def take(self, data: Any) -> int:
        return len(data)


async def measure(move: Move, sizes: Sequence[int]) -> Rates:
    rates = {}
    for size in sizes:
        data = os.urandom(size)
        assert await move(data) == size
        seconds = []
        for _ in range(max(5, min(200, 100_000_000 // size))):
            begun = time.perf_counter()
            await move(data)
            seconds.append(time.perf_counter() - begun)
        rates[size] = size / statistics.median(seconds) / 1e6
    return rates


# --- the product


def memory(sizes: Sequence[int]) -> Rates:
    return _hosted(spawn_http_exchange(tls=False), sizes)


def sqlite(sizes: Sequence[int]) -> Rates:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "exchange.db"
        return _hosted(spawn_http_exchange(database=database, tls=False), sizes)


def _hosted(
    exchange: AbstractContextManager[ExchangeFactory], sizes: Sequence[int]
) -> Rates:
    with exchange as factory:
        return asyncio.run(_launch(factory, sizes))


async def _launch(factory: ExchangeFactory, sizes: Sequence[int]) -> Rates:
    with workers() as agents, workers() as clients:
        async with await Manager.from_exchange_factory(factory, agents) as manager:
            sink = await manager.launch(Sink)
            await sink.ping()
            future = clients.submit(_call, factory, sink, sizes)
            return await asyncio.wrap_future(future)


def _call(factory: ExchangeFactory, sink: Handle[Sink], sizes: Sequence[int]) -> Rates:
    async def call_many() -> Rates:
        async with await factory.create_user_client():
            # As arrays do, this refers to the bytes instead of copying them.
            return await measure(
                lambda data: sink.take(pickle.PickleBuffer(data)), sizes
            )

    return uvloop.run(call_many())


# --- the relay


def relay(sizes: Sequence[int]) -> Rates:
    with background(_serve) as (_, url), background(_act, url):
        return run(_send, url, sizes)


def _serve(ready: Connection) -> None:
    uvloop.run(_pass_on(ready))


async def _pass_on(ready: Connection) -> None:
    ends: list[web.WebSocketResponse] = []

    async def connect(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=0, compress=False)
        await ws.prepare(request)
        ends.append(ws)
        async for message in ws:
            await ends[ws is ends[0]].send_bytes(message.data)
        return ws

    app = web.Application()
    app.router.add_get("/", connect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ready.send(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    await asyncio.Event().wait()


def _act(ready: Connection, url: str) -> None:
    uvloop.run(_answer(ready, url))


async def _answer(ready: Connection, url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0) as ws,
    ):
        ready.send(None)
        async for message in ws:
            await ws.send_bytes(len(message.data).to_bytes(8, "big"))


def _send(url: str, sizes: Sequence[int]) -> Rates:
    return uvloop.run(_send_many(url, sizes))


async def _send_many(url: str, sizes: Sequence[int]) -> Rates:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0) as ws,
    ):

        async def move(data: bytes) -> int:
            await ws.send_bytes(data)
            return int.from_bytes(await ws.receive_bytes(), "big")

        return await measure(move, sizes)


CONTESTANTS = {"http on memory": memory, "http on SQLite": sqlite}


def compare(rounds: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Run the exchange and the relay in turn; return medians, of ratios too."""
    rates: dict[str, list[Rates]] = {name: [] for name in (*CONTESTANTS, "relay")}
    for number in range(rounds):
        for name, contestant in {**CONTESTANTS, "relay": relay}.items():
            found = contestant(sizes)
            rates[name].append(found)
            shown = ", ".join(f"{rate:,.0f}" for rate in found.values())
            print(f"round {number + 1}, {name}: {shown} MB/s", file=sys.stderr)
    return {
        "rounds": rounds,
        "rates": {
            name: {size: statistics.median(r[size] for r in found) for size in sizes}
            for name, found in rates.items()
        },
        "ratios": {
            name: {
                size: statistics.median(
                    ours[size] / bare[size]
                    for ours, bare in zip(rates[name], rates["relay"], strict=True)
                )
                for size in sizes
            }
            for name in CONTESTANTS
        },
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    found = [
        Figure(f"{name}: {int(size):,} bytes", rate, "MB/s")
        for name, rates in result["rates"].items()
        for size, rate in rates.items()
    ]
    for name, ratios in result["ratios"].items():
        for size, ratio in ratios.items():
            limit = (">=", 0.4) if int(size) == AIM else None
            found.append(Figure(f"{name} / relay: {int(size):,}", ratio, "x", limit))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.payload")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sizes",
        type=lambda text: tuple(map(int, text.split(","))),
        default=SIZES,
        help="bytes, separated by commas",
    )
    options = parser.parse_args(arguments)
    return compare(options.rounds, options.sizes)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
