"""What an exchange costs by its size: 10, 1,000 and 10,000 attached mailboxes.

The limit beside each figure is the smallest exchange of the same round: nothing that a
call costs may grow with mailboxes, or with messages that wait in other mailboxes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import uvloop

from academy.agent import Agent
from academy.exchange import ExchangeFactory
from academy.exchange.cloud import spawn_http_exchange
from academy.exchange.transport import AgentRegistration
from academy.message import Message, PingRequest
from benchmarks.calls import Plan, Sample
from benchmarks.exchange import call_hosted
from benchmarks.figures import Figure
from benchmarks.processes import background, child_running

SIZES = (10, 1_000, 10_000)
WARM_UP = 100
"""Mailboxes attached before any is weighed: what is loaded once is no mailbox's."""
WEIGHED = 1_000
"""Mailboxes from which on the memory of a process tells that of each."""
AT_ONCE = 500
"""Mailboxes that are registered, or attached, at once."""


class Idle(Agent):
    """An agent that only has a mailbox."""


def crowd(
    ready: Connection, factory: ExchangeFactory, mailboxes: int, messages: int
) -> None:
    """Keep so many agents attached in this process, or only their messages waiting."""
    uvloop.run(_crowd(ready, factory, mailboxes, messages))


async def _crowd(
    ready: Connection, factory: ExchangeFactory, mailboxes: int, messages: int
) -> None:
    async with await factory.create_user_client() as client, AsyncExitStack() as stack:
        for start in range(0, mailboxes, AT_ONCE):
            count = min(AT_ONCE, mailboxes - start)
            made = await client.register_agents([(Idle, None)] * count)
            if messages:
                for agent in made:
                    for _ in range(messages):
                        body = PingRequest()
                        client.post(client.new_message(agent.agent_id, body))
                await client.status(made[-1].agent_id)  # after what was posted
            else:
                await asyncio.gather(*(_attach(stack, factory, one) for one in made))
        ready.send(None)
        await asyncio.Event().wait()


async def _attach(
    stack: AsyncExitStack, factory: ExchangeFactory, agent: AgentRegistration[Any]
) -> None:
    client = await factory.create_agent_client(agent, _ignore)
    stack.push_async_callback(client.close)


def _ignore(request: Message) -> None:
    """Serve nothing: nobody asks."""


def measure_size(size: int, plan: Plan, idle_s: float, messages: int) -> dict[str, Any]:
    """Measure one exchange with so many mailboxes attached, then with as many full."""
    with (
        tempfile.TemporaryDirectory() as folder,
        spawn_http_exchange(database=Path(folder) / "exchange.db") as factory,
        background(crowd, factory, WARM_UP, 0),
    ):
        server = psutil.Process(child_running("academy.exchange.cloud"))
        before = server.memory_info().rss
        with background(crowd, factory, size, 0):
            weight = server.memory_info().rss - before
            found = {"idle_cpu": _cpu_share(server, idle_s)}
            if size >= WEIGHED:
                found["kb_per_mailbox"] = weight / size / 1e3
            found |= _costs(call_hosted(factory, server.pid, plan, "asyncio"))
            with background(crowd, factory, size, messages):
                full = _costs(call_hosted(factory, server.pid, plan, "asyncio"))
    return found | {f"{key}_full": value for key, value in full.items()}


def _cpu_share(process: psutil.Process, seconds: float) -> float:
    process.cpu_percent()
    time.sleep(seconds)
    percent: float = process.cpu_percent()
    return percent


def _costs(sample: Sample) -> dict[str, float]:
    return {
        "round_trip_us": sample.round_trip_us,
        "actions_per_s": sample.actions_per_s,
        "server_us_per_message": sample.cpu_us_per_action["server"] / 2,
    }


def compare(
    sizes: Sequence[int], rounds: int, plan: Plan, idle_s: float, messages: int
) -> dict[str, Any]:
    """Measure each size in turn, several times; return medians."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for number in range(rounds):
        for size in sizes:
            sample = measure_size(size, plan, idle_s, messages)
            found[size].append(sample)
            print(
                f"round {number + 1}, {size:,} mailboxes: "
                f"{sample['round_trip_us']:.0f} us, "
                f"{sample['actions_per_s']:,.0f} actions/s",
                file=sys.stderr,
            )
    return {
        "rounds": rounds,
        "messages_waiting_in_each": messages,
        "sizes": {
            str(size): {
                key: round(statistics.median(s[key] for s in samples), 3)
                for key in samples[0]
            }
            for size, samples in found.items()
        },
        "ratios": {
            str(size): _ratios(samples, found[sizes[0]])
            for size, samples in found.items()
            if size != sizes[0]
        },
    }


def _ratios(
    samples: list[dict[str, Any]], smallest: list[dict[str, Any]]
) -> dict[str, float]:
    """Return medians of the server's cost, and of the round trip, to the smallest."""
    return {
        key: round(
            statistics.median(
                a[key] / b[key.removesuffix("_full")]
                for a, b in zip(samples, smallest, strict=True)
            ),
            3,
        )
        for key in (
            "server_us_per_message",
            "server_us_per_message_full",
            "round_trip_us",
            "round_trip_us_full",
        )
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    waiting = result["messages_waiting_in_each"]
    found = []
    for text, sample in result["sizes"].items():
        size = int(text)
        name = f"{size:,} mailboxes"
        full = f"{name} more, {waiting} messages in each"
        found.append(Figure(f"{name}: idle", sample["idle_cpu"], "% CPU", ("<=", 2)))
        if "kb_per_mailbox" in sample:
            weight = sample["kb_per_mailbox"]
            found.append(Figure(f"{name}: memory of each", weight, "kB", ("<=", 6)))
        for place, key in ((name, ""), (full, "_full")):
            trip = sample[f"round_trip_us{key}"] / 1e3
            found += [
                Figure(f"{place}: round trip", trip, "ms"),
                Figure(
                    f"{place}: throughput",
                    sample[f"actions_per_s{key}"],
                    "actions/s",
                ),
            ]
    for text, ratios in result["ratios"].items():
        name = f"{int(text):,} mailboxes / the fewest"
        for key, label in (("", "attached"), ("_full", "as many full ones beside")):
            cost = ratios[f"server_us_per_message{key}"]
            trip = ratios[f"round_trip_us{key}"]
            found += [
                Figure(f"{name}, {label}: server CPU", cost, "x", ("<=", 1.25)),
                Figure(f"{name}, {label}: round trip", trip, "x", ("<=", 1.25)),
            ]
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--calls", type=int, default=1000, help="one after the other")
    parser.add_argument("--seconds", type=float, default=2.0, help="of throughput")
    parser.add_argument("--idle", type=float, default=3.0, help="seconds of idleness")
    parser.add_argument(
        "--messages", type=int, default=5, help="that wait in each full mailbox"
    )
    options = parser.parse_args(arguments)
    plan = Plan(options.calls, options.seconds)
    return compare(options.sizes, options.rounds, plan, options.idle, options.messages)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
