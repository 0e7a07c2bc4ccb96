"""What launching an agent adds to what the bare engine needs for a first task.

The engine is Parsl's HighThroughputExecutor, once with workers on this machine and once
in jobs of a Slurm. *Cold* is from nothing: the engine starts, a job starts, a worker
starts. *Warm* is one more task, or one more agent, on a worker that has been used.
Engine and agents take turns, each in a fresh process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import sysconfig
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.manager import Manager
from academy.socket import reachable_addresses
from benchmarks.calls import Echo
from benchmarks.figures import Figure
from benchmarks.processes import run

WARM = 20
"""Tasks, or agents, of which the warm figure is the median."""

AIM = 1.1
"""Agent's time over the engine's."""

PREVIEW_AIM_MS = 1.0
PACKED = 1000
PACKED_AIM_S = 5.0
"""Seconds from a job's start until all agents packed into it have answered."""


# --- the engine's configuration


def config(engine: str) -> Any:
    """Return the same Parsl configuration for both contestants."""
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider, SlurmProvider

    # As in an activated environment: Parsl looks for its programs on PATH.
    os.environ["PATH"] = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    one: dict[str, Any] = {"init_blocks": 1, "min_blocks": 1, "max_blocks": 1}
    provider: Any = (
        SlurmProvider(exclusive=False, launcher=SimpleLauncher(), **one)
        if engine == "slurm"
        else LocalProvider(**one)  # type: ignore[no-untyped-call]  # Parsl's
    )
    htex = HighThroughputExecutor(
        label=engine,
        address=reachable_addresses()[0] if engine == "slurm" else "127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=1e-6,
        provider=provider,
    )
    return Config(executors=[htex], strategy="simple", strategy_period=0.2)


# --- contestants


def bare(engine: str) -> dict[str, float]:
    """Time Parsl itself: a task that does nothing."""
    import parsl
    from parsl.dataflow.dflow import DataFlowKernel

    with tempfile.TemporaryDirectory() as folder:
        settings = config(engine)
        settings.run_dir = folder
        settings.initialize_logging = False
        start = time.perf_counter()
        with DataFlowKernel(settings) as kernel:
            task = parsl.python_app(os.getpid, data_flow_kernel=kernel)
            task().result()
            cold = time.perf_counter() - start
            warm = [_timed(lambda: task().result()) for _ in range(WARM)]
    return {"cold_s": cold, "warm_s": statistics.median(warm)}


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def agent(engine: str, exchange: ExchangeFactory) -> dict[str, float]:
    """Time an agent from `launch` to its first answer."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_launch(engine, exchange, folder))


async def _launch(
    engine: str, exchange: ExchangeFactory, folder: str
) -> dict[str, float]:
    from academy.executors.parsl import ParslExecutor

    executor = ParslExecutor(config(engine), run_dir=folder)
    warm = []
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        cold = await _answered(manager)
        for _ in range(WARM):
            warm.append(await _answered(manager))
    return {"cold_s": cold, "warm_s": statistics.median(warm)}


async def _answered(manager: Manager) -> float:
    start = time.perf_counter()
    echo = await manager.launch(Echo)
    await echo.ping()
    seconds = time.perf_counter() - start
    await manager.shutdown(echo)
    return seconds


# --- many agents in one job


def packed(exchange: ExchangeFactory) -> float:
    """Return the seconds from the start of a job until its agents have answered."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_pack(exchange, Path(folder)))


async def _pack(exchange: ExchangeFactory, folder: Path) -> float:
    from academy.executors.batch import BatchExecutor
    from academy.executors.event_loop import EventLoopExecutor

    begun = folder / "begun"
    jobs = BatchExecutor("slurm", directory=folder / "jobs")
    executor = EventLoopExecutor(jobs, PACKED)
    async with await Manager.from_exchange_factory(exchange, executor) as manager:
        async with manager.launch_batch() as batch:
            handles = [
                await batch.queue(
                    Echo, submit_kwargs={"worker_init": f"date +%s.%N > {begun}"}
                )
                for _ in range(PACKED)
            ]
        await asyncio.gather(*(handle.ping() for handle in handles))
        return time.time() - float(begun.read_text())


# --- looking before submitting


def looking() -> dict[str, float]:
    """Time the check and the preview of a launch, in milliseconds."""
    from academy.executors.parsl import ParslExecutor

    executor = ParslExecutor("configs/parsl/slurm.py")
    asked = {"nodes": 2, "walltime": "00:30:00", "queue": "debug", "account": "proj"}
    steps = {
        "validate_ms": lambda: executor.validate(**asked),
        "preview_ms": lambda: executor.preview(**asked),
    }
    return {
        name: min(timeit.repeat(step, number=20, repeat=5)) / 20 * 1e3
        for name, step in steps.items()
    }


# --- all of it


@contextlib.contextmanager
def _cluster(engine: str) -> Iterator[None]:
    """Enter a Slurm of our own, unless workers are on this machine."""
    if engine != "slurm":
        yield
        return
    from tests.support.slurm import SlurmLab

    with SlurmLab(nodes=1) as lab:
        before = dict(os.environ)
        os.environ.update({name: lab.env[name] for name in ("SLURM_CONF", "PATH")})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def measure(engines: Sequence[str], rounds: int) -> dict[str, Any]:
    """Let engine and agents take turns; return medians and ratios round by round."""
    found: dict[str, Any] = {}
    for engine in engines:
        with _cluster(engine), spawn_http_exchange() as exchange:
            samples: dict[str, list[dict[str, float]]] = {"bare": [], "agent": []}
            for number in range(rounds):
                for name, sample in (
                    ("bare", run(bare, engine)),
                    ("agent", run(agent, engine, exchange)),
                ):
                    samples[name].append(sample)
                    print(
                        f"round {number + 1}, {engine}, {name}: {sample}",
                        file=sys.stderr,
                    )
            found[engine] = _summary(samples)
            if engine == "slurm":
                times = [run(packed, exchange) for _ in range(rounds)]
                found[engine]["packed_s"] = statistics.median(times)
    return {"rounds": rounds, "engines": found, "looking": run(looking)}


def _summary(samples: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    summary = {}
    pairs = list(zip(samples["bare"], samples["agent"], strict=True))
    for when in ("cold", "warm"):
        key = f"{when}_s"
        for name in ("bare", "agent"):
            summary[f"{name}_{key}"] = statistics.median(s[key] for s in samples[name])
        summary[f"{when}_ratio"] = statistics.median(b[key] / a[key] for a, b in pairs)
        summary[f"{when}_added_s"] = statistics.median(
            b[key] - a[key] for a, b in pairs
        )
    return summary


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    found = []
    for engine, sample in result["engines"].items():
        for when in ("cold", "warm"):
            name = f"HTEX, {engine}, {when}"
            found += [
                Figure(f"{name}: a task", sample[f"bare_{when}_s"], "s"),
                Figure(f"{name}: an agent", sample[f"agent_{when}_s"], "s"),
                Figure(f"{name}: ratio", sample[f"{when}_ratio"], "x", ("<=", AIM)),
            ]
        if "packed_s" in sample:
            name = f"{PACKED:,} agents in one job, all answered"
            limit = ("<=", PACKED_AIM_S)
            found.append(Figure(name, sample["packed_s"], "s", limit))
    for step, milliseconds in result["looking"].items():
        name = step.removesuffix("_ms")
        found.append(Figure(name, milliseconds, "ms", ("<=", PREVIEW_AIM_MS)))
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.executors")
    parser.add_argument("--engines", nargs="*", default=["local", "slurm"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    return measure(options.engines, options.rounds)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
