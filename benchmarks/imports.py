"""Importing: what a worker pays before it does anything, in fresh processes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Figure

MODULES = ("academy.agent", "academy.manager")
AIM = 0.12
HEAVY = (
    "aiohttp",
    "cloudpickle",
    "globus_sdk",
    "parsl",
    "pydantic",
    "redis",
    "rich",
    "sqlite3",
    "typer",
    "uvloop",
)
"""What is slow to load, so that it must be told when an import brings it along."""

# Each prints the seconds that it took inside its process, and what it has loaded.
PROGRAM = """
import sys, time
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, *sys.modules)
"""


def measure(rounds: int) -> dict[str, Any]:
    """Run each program in turn, several times; return medians."""
    statements = {"nothing": "pass", "asyncio": "import asyncio"}
    statements |= {module: f"import {module}" for module in MODULES}
    inside: dict[str, list[float]] = {name: [] for name in statements}
    whole: dict[str, list[float]] = {name: [] for name in statements}
    loaded: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, statement in statements.items():
            command = [sys.executable, "-c", PROGRAM.format(statement=statement)]
            start = time.perf_counter()
            output = subprocess.run(command, capture_output=True, check=True, text=True)
            whole[name].append(time.perf_counter() - start)
            seconds, *loaded[name] = output.stdout.split()
            inside[name].append(float(seconds))
    return {
        "rounds": rounds,
        "imports": {
            name: {
                "import_s": round(statistics.median(inside[name]), 4),
                "process_s": round(statistics.median(whole[name]), 4),
                "modules": len(loaded[name]),
                "heavy": [module for module in HEAVY if module in loaded[name]],
            }
            for name in statements
        },
    }


def figures(result: dict[str, Any]) -> list[Figure]:
    """Return what the table shows, with what is aimed at."""
    found = []
    for name, sample in result["imports"].items():
        aim = ("<=", AIM) if name in MODULES else None
        heavy = f" (with {', '.join(sample['heavy'])})" if sample["heavy"] else ""
        found += [
            Figure(f"import {name}{heavy}", sample["import_s"], "s", aim),
            Figure(f"a process that imports {name}", sample["process_s"], "s"),
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure as the command line says; return the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.imports")
    parser.add_argument("--rounds", type=int, default=15)
    return measure(parser.parse_args(arguments).rounds)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
