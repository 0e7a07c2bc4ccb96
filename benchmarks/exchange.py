"""Calling a no-op action: how long one takes, and how many pass at once.

Client, exchange server and agent are each a process. The hosted exchange runs beside
the bare skeleton of its design (`benchmarks.skeleton`), and beside redis-server and
NATS where they are installed, in alternating rounds, since figures of different minutes
do not compare on a machine that has other work to do.
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
from benchmarks import brokers, skeleton
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
    # The bare skeleton that it is compared with speaks plain HTTP as well.
    with spawn_http_exchange(database=database, tls=False) as factory:
        server = child_running("academy.exchange.cloud")
        return call_hosted(factory, server, plan, loop)


def call_hosted(factory: ExchangeFactory, server: int, plan: Plan, loop: str) -> Sample:
    """Call an agent through a hosted exchange; each of both is a process."""
    with workers() as agents, workers() as clients:
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
    "redis lists": brokers.redis_lists,
    "NATS": brokers.nats,
}
PAIRS = (
    ("http on memory", "skeleton on memory"),
    ("http on SQLite", "skeleton on SQLite"),
    ("http on memory", "redis lists"),
    ("http on memory", "NATS"),
)
CPU_AIMS = {"http on memory": 30, "http on SQLite": 60}
"""Microseconds of the server's CPU that a message may take."""
_NEEDS = {"redis lists": ("redis-server", "redis"), "NATS": ("nats-server", "nats")}


# --- rounds


def compare(plan: Plan, rounds: int, loop: str, names: Sequence[str]) -> dict[str, Any]:
    """Run the contestants in turn, several times; return medians and ratios."""
    lacking = {name: brokers.missing(*_NEEDS[name]) for name in names if name in _NEEDS}
    left_out = {name: why for name, why in lacking.items() if why is not None}
    samples: dict[str, list[Sample]] = {n: [] for n in names if n not in left_out}
    for number in range(rounds):
        for name in samples:
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
            f"{name} / {peer}": _ratios(samples[name], samples[peer])
            for name, peer in PAIRS
            if name in samples and peer in samples
        },
        "not_measured": left_out,
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
                "payload_rate": {
                    size: bare / a.payload_ms[size]
                    for size, bare in b.payload_ms.items()
                },
            }
            for a, b in zip(ours, bare, strict=True)
        ]
    )


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    found = []
    for name, sample in result["contestants"].items():
        found += _of_one(name, sample)
    for name in result["not_measured"]:
        found.append(Figure(f"{name}: {result['not_measured'][name]}", None))
    for names, ratios in result["ratios"].items():
        found += _of_two(names, ratios)
    return found


def _of_one(name: str, sample: dict[str, Any]) -> list[Figure]:
    trip, rate = sample["round_trip_us"] / 1e3, sample["actions_per_s"]
    durable = name == "http on SQLite"
    found = [
        Figure(f"{name}: round trip, median", trip, "ms"),
        Figure(f"{name}: p99", sample["round_trip_p99_us"] / 1e3, "ms"),
        Figure(
            f"{name}: throughput",
            rate,
            "actions/s",
            (">=", 20_000) if durable else None,
        ),
    ]
    server = sample["cpu_us_per_action"].get("server")
    if server is not None:  # which relays a request and a response per action
        aim = CPU_AIMS.get(name)
        found.append(
            Figure(
                f"{name}: server CPU per message",
                server / 2,
                "us",
                None if aim is None else ("<=", aim),
            )
        )
    return found + [
        Figure(f"{name}: echo of {int(size):,} bytes", milliseconds, "ms")
        for size, milliseconds in sample["payload_ms"].items()
    ]


def _of_two(names: str, ratios: dict[str, Any]) -> list[Figure]:
    trip, rate = ratios["round_trip"], ratios["actions_per_s"]
    to_skeleton = "skeleton" in names
    found = [
        Figure(f"{names}: round trip", trip, "x", ("<=", 1.3) if to_skeleton else None),
        Figure(
            f"{names}: throughput", rate, "x", (">=", 2 / 3) if to_skeleton else None
        ),
        Figure(f"{names}: CPU per action", ratios["cpu_per_action"], "x"),
    ]
    for size, share in ratios["payload_rate"].items():
        aim = (">=", 0.4) if int(size) >= 10_000_000 else None
        found.append(Figure(f"{names}: rate of {int(size):,} bytes", share, "x", aim))
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
