"""Launching agents in an event loop: how long it takes, and what an agent weighs."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from academy.exchange import ExchangeFactory, LocalExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.manager import Manager
from benchmarks.calls import Echo
from benchmarks.figures import Figure
from benchmarks.loops import LOOPS
from benchmarks.processes import child_running, run

AIMS = {"local": 0.5, "http": 1.0}
WARM_UP = 10
"""Agents launched before measuring: what is loaded or cached once is no agent's."""


def local(agents: int, loop: str) -> dict[str, float]:
    return {**run(_time, None, agents, loop), **run(_trace, None, agents, loop)}


def http(agents: int, loop: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "exchange.db"
        with spawn_http_exchange(database=database) as factory:
            server = psutil.Process(child_running("academy.exchange.cloud"))
            run(_time, factory, WARM_UP, loop)
            before = server.memory_info().rss
            timed = run(_time, factory, agents, loop)
            # The mailboxes stay as tombstones: their weight is that of all, ever made.
            after = server.memory_info().rss
            traced = run(_trace, factory, agents, loop)
    return {**timed, **traced, "server_kb": (after - before) / agents / 1e3}


def _time(factory: ExchangeFactory | None, agents: int, loop: str) -> dict[str, float]:
    found: dict[str, float] = LOOPS[loop](_launch(factory, agents))
    return found


def _trace(factory: ExchangeFactory | None, agents: int, loop: str) -> dict[str, float]:
    # Tracing makes everything slow, so that nothing else is taken from this run.
    tracemalloc.start()
    found: dict[str, float] = LOOPS[loop](_launch(factory, agents))
    return {"python_kb": found["python_kb"]}


async def _launch(factory: ExchangeFactory | None, agents: int) -> dict[str, float]:
    manager = await Manager.from_exchange_factory(factory or LocalExchangeFactory())
    async with manager:
        await _answered(manager, WARM_UP)
        before = _memory()
        start = time.perf_counter()
        await _answered(manager, agents)
        launched = time.perf_counter()
        after = _memory()
        closing = time.perf_counter()
    return {
        "launch_s": launched - start,
        "close_s": time.perf_counter() - closing,
        "resident_kb": (after[0] - before[0]) / agents / 1e3,
        "python_kb": (after[1] - before[1]) / agents / 1e3,
    }


async def _answered(manager: Manager, agents: int) -> None:
    """Launch agents, and return when each of them has answered a ping."""
    async with manager.launch_batch() as batch:
        handles = [await batch.queue(Echo) for _ in range(agents)]
    await asyncio.gather(*(handle.ping() for handle in handles))


def _memory() -> tuple[int, int]:
    """Return the bytes that this process holds, and those that Python counts."""
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident, tracemalloc.get_traced_memory()[0]


def measure(agents: int, rounds: int, loop: str) -> dict[str, Any]:
    """Launch on each exchange several times; return medians."""
    found: dict[str, list[dict[str, float]]] = {"local": [], "http": []}
    for number in range(rounds):
        for name, contestant in (("local", local), ("http", http)):
            sample = contestant(agents, loop)
            found[name].append(sample)
            print(
                f"round {number + 1}, {name}: {sample['launch_s']:.2f} s, "
                f"{sample['resident_kb']:.1f} kB per agent",
                file=sys.stderr,
            )
    return {
        "agents": agents,
        "rounds": rounds,
        "loop": loop,
        "exchanges": {
            name: {
                key: round(statistics.median(sample[key] for sample in samples), 3)
                for key in samples[0]
            }
            for name, samples in found.items()
        },
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    agents = result["agents"]
    found = []
    for name, sample in result["exchanges"].items():
        aim = AIMS[name] * agents / 1000
        found += [
            Figure(f"{name}: launch {agents:,}", sample["launch_s"], "s", ("<=", aim)),
            Figure(f"{name}: close {agents:,}", sample["close_s"], "s"),
            Figure(
                f"{name}: memory per idle agent",
                sample["resident_kb"],
                "kB",
                ("<=", 25),
            ),
            Figure(f"{name}: Python objects of it", sample["python_kb"], "kB"),
        ]
        if "server_kb" in sample:
            server = sample["server_kb"]
            found.append(Figure(f"{name}: memory per mailbox, server", server, "kB"))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.launch")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    options = parser.parse_args(arguments)
    return measure(options.agents, options.rounds, options.loop)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
