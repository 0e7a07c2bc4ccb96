"""Calling a no-op action: how long one takes, and how many pass at once.

Client, exchange server and agent are each a process. The hosted exchange runs beside
the bare skeleton of its design (`benchmarks.skeleton`), in alternating rounds, since
figures of different minutes do not compare on a machine that has other work to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from academy.exchange import ExchangeFactory, LocalExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.handle import Handle
from academy.manager import Manager
from benchmarks import skeleton
from benchmarks.calls import Echo, Plan, Sample, measure
from benchmarks.figures import Figure
from benchmarks.loops import LOOPS
from benchmarks.processes import background, child_running, run, workers

# --- contestants: each runs one round

Contestant = Callable[[Plan, str], Sample]


def local(plan: Plan, loop: str) -> Sample:
    """Client, exchange and agent in one event loop."""
    return run(_local, plan, loop)


def _local(plan: Plan, loop: str) -> Sample:
    async def call_many() -> Sample:
        factory = LocalExchangeFactory()
        async with await Manager.from_exchange_factory(factory) as manager:
            echo = await manager.launch(Echo)
            return await measure(lambda value: echo.noop(value), plan, {})

    sample: Sample = LOOPS[loop](call_many())
    return sample


def http_memory(plan: Plan, loop: str) -> Sample:
    return _hosted(plan, loop, None)


def http_sqlite(plan: Plan, loop: str) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        return _hosted(plan, loop, Path(folder) / "exchange.db")


def _hosted(plan: Plan, loop: str, database: Path | None) -> Sample:
    with (
        # The bare skeleton that it is compared with speaks plain HTTP as well.
        spawn_http_exchange(database=database, tls=False) as factory,
        workers() as agents,
        workers() as clients,
    ):
        server = child_running("academy.exchange.cloud")
        return asyncio.run(_launch(factory, agents, clients, server, plan, loop))


async def _launch(
    factory: ExchangeFactory,
    agents: ProcessPoolExecutor,
    clients: ProcessPoolExecutor,
    server: int,
    plan: Plan,
    loop: str,
) -> Sample:
    async with await Manager.from_exchange_factory(factory, agents) as manager:
        echo = await manager.launch(Echo)
        await echo.ping()
        (agent,) = agents._processes
        pids = {"server": server, "agent": agent}
        future = clients.submit(_call, factory, echo, plan, pids, loop)
        return await asyncio.wrap_future(future)


def _call(
    factory: ExchangeFactory,
    echo: Handle[Echo],
    plan: Plan,
    pids: dict[str, int],
    loop: str,
) -> Sample:
    async def call_many() -> Sample:
        async with await factory.create_user_client():
            return await measure(lambda value: echo.noop(value), plan, pids)

    sample: Sample = LOOPS[loop](call_many())
    return sample


def skeleton_memory(plan: Plan, loop: str) -> Sample:
    return _bare(plan, loop, None)


def skeleton_sqlite(plan: Plan, loop: str) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        return _bare(plan, loop, f"{folder}/skeleton.db")


def _bare(plan: Plan, loop: str, database: str | None) -> Sample:
    with (
        background(skeleton.serve, database) as (server, url),
        background(skeleton.act, url) as (agent, _),
    ):
        return run(_call_skeleton, url, plan, {"server": server, "agent": agent}, loop)


def _call_skeleton(url: str, plan: Plan, pids: dict[str, int], loop: str) -> Sample:
    sample: Sample = LOOPS[loop](skeleton.call_many(url, plan, pids))
    return sample


CONTESTANTS: dict[str, Contestant] = {
    "local": local,
    "http on memory": http_memory,
    "skeleton on memory": skeleton_memory,
    "http on SQLite": http_sqlite,
    "skeleton on SQLite": skeleton_sqlite,
}
PEERS = {
    "http on memory": "skeleton on memory",
    "http on SQLite": "skeleton on SQLite",
}


# --- rounds


def compare(plan: Plan, rounds: int, loop: str, names: Sequence[str]) -> dict[str, Any]:
    """Run the contestants in turn, several times; return medians and ratios."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            sample = CONTESTANTS[name](plan, loop)
            samples[name].append(sample)
            print(
                f"round {number + 1}, {name}: {sample.round_trip_us:.0f} us, "
                f"{sample.actions_per_s:,.0f} actions/s",
                file=sys.stderr,
            )
    return {
        "rounds": rounds,
        "client_loop": loop,
        "contestants": {name: _medians(found) for name, found in samples.items()},
        "ratios": {
            name: _ratios(samples[name], samples[peer])
            for name, peer in PEERS.items()
            if name in samples and peer in samples
        },
    }


def _medians(samples: list[Sample]) -> Any:
    return _combine([sample.figures() for sample in samples])


def _combine(items: list[Any]) -> Any:
    if isinstance(items[0], dict):
        return {key: _combine([item[key] for item in items]) for key in items[0]}
    return round(statistics.median(items), 3)


def _ratios(ours: list[Sample], bare: list[Sample]) -> Any:
    """Return medians of the ratios within each round: ours to the skeleton's."""
    return _combine(
        [
            {
                "round_trip": a.round_trip_us / b.round_trip_us,
                "actions_per_s": a.actions_per_s / b.actions_per_s,
                "cpu_per_action": sum(a.cpu_us_per_action.values())
                / sum(b.cpu_us_per_action.values()),
            }
            for a, b in zip(ours, bare, strict=True)
        ]
    )


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    found = []
    for name, sample in result["contestants"].items():
        trip, rate = sample["round_trip_us"] / 1e3, sample["actions_per_s"]
        aimed = name == "http on SQLite"
        found += [
            Figure(f"{name}: round trip, median", trip, "ms"),
            Figure(f"{name}: p99", sample["round_trip_p99_us"] / 1e3, "ms"),
            Figure(
                f"{name}: throughput",
                rate,
                "actions/s",
                (">=", 10_000) if aimed else None,
            ),
        ]
        found += [
            Figure(f"{name}: echo of {int(size):,} bytes", milliseconds, "ms")
            for size, milliseconds in sample["payload_ms"].items()
        ]
    for name, ratios in result["ratios"].items():
        aimed = name == "http on SQLite"
        peer = PEERS[name]
        found += [
            Figure(
                f"{name} / {peer}: round trip",
                ratios["round_trip"],
                "x",
                ("<=", 2) if aimed else None,
            ),
            Figure(
                f"{name} / {peer}: throughput",
                ratios["actions_per_s"],
                "x",
                (">=", 1 / 3) if aimed else None,
            ),
            Figure(f"{name} / {peer}: CPU per action", ratios["cpu_per_action"], "x"),
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.exchange")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="one after the other")
    parser.add_argument("--seconds", type=float, default=3.0, help="of throughput")
    parser.add_argument("--outstanding", type=int, default=256, help="calls at once")
    parser.add_argument(
        "--payloads",
        type=lambda text: tuple(map(int, text.split(","))) if text else (),
        default=(1_000, 100_000, 1_000_000, 10_000_000),
        help="bytes to be echoed, separated by commas",
    )
    parser.add_argument("--client-loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    options = parser.parse_args(arguments)
    plan = Plan(options.calls, options.seconds, options.outstanding, options.payloads)
    return compare(plan, options.rounds, options.client_loop, list(options.only))


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
