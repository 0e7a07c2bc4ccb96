"""The calls that every contestant has to carry, and what is measured of them."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from academy.agent import Agent, action

Call = Callable[[Any], Awaitable[Any]]


class Echo(Agent):
    @action
    async def noop(self, value: Any) -> Any:
        """Return what was given."""
        return value


@dataclass(frozen=True)
class Plan:
    """How much is called.

    Attributes:
        calls: one after the other, for the round trip.
        seconds: for which `outstanding` callers call without a pause.
        outstanding: calls that are under way at once.
        payloads: sizes (bytes) of arguments that come back as results.
    """

    calls: int = 2000
    seconds: float = 3.0
    outstanding: int = 256
    payloads: tuple[int, ...] = ()


@dataclass
class Sample:
    """What one contestant did in one round.

    Attributes:
        round_trip_us: microseconds from call to result, median.
        round_trip_p99_us: the same, 99th percentile.
        actions_per_s: with all callers at once.
        cpu_us_per_action: CPU time per action meanwhile, by process.
        payload_ms: milliseconds per echo, median, by size in bytes.
    """

    round_trip_us: float
    round_trip_p99_us: float
    actions_per_s: float
    cpu_us_per_action: dict[str, float]
    payload_ms: dict[int, float] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        return asdict(self)


async def measure(call: Call, plan: Plan, pids: Mapping[str, int]) -> Sample:
    """Call as the plan says; `pids` are the processes that have a part in it."""
    await _in_turn(call, 1, max(plan.calls // 10, 1))
    trips = await _in_turn(call, 1, plan.calls)
    rate, cpu = await _at_once(call, plan, {"client": os.getpid(), **pids})
    payloads = {
        size: statistics.median(await _in_turn(call, bytes(size), _echoes(size))) * 1e3
        for size in plan.payloads
    }
    return Sample(
        statistics.median(trips) * 1e6,
        sorted(trips)[int(len(trips) * 0.99)] * 1e6,
        rate,
        cpu,
        payloads,
    )


def _echoes(size: int) -> int:
    return max(5, min(200, 20_000_000 // size))


async def _in_turn(call: Call, value: Any, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await call(value)
        seconds.append(time.perf_counter() - start)
    return seconds


async def _at_once(
    call: Call, plan: Plan, pids: Mapping[str, int]
) -> tuple[float, dict[str, float]]:
    """Return actions per second, and CPU microseconds per action and process."""
    done = 0
    before = {name: _cpu_seconds(pid) for name, pid in pids.items()}
    start = time.perf_counter()
    end = start + plan.seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call(1)
            done += 1

    await asyncio.gather(*(caller() for _ in range(plan.outstanding)))
    elapsed = time.perf_counter() - start
    cpu = {
        name: (_cpu_seconds(pid) - before[name]) / done * 1e6
        for name, pid in pids.items()
    }
    return done / elapsed, cpu


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
