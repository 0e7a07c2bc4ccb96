"""`python -m benchmarks` measures everything: a table, and JSON for later."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import exchange, executors, imports, launch, payload, scale
from benchmarks.figures import Figure, table

Measure = Callable[[Sequence[str]], dict[str, Any]]
Show = Callable[[dict[str, Any]], list[Figure]]


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


PARTS: dict[str, tuple[Measure, Show]] = {
    "imports": (imports.main, imports.figures),
    "launch": (launch.main, launch.figures),
    "exchange": (exchange.main, exchange.figures),
    "payload": (payload.main, payload.figures),
    "scale": (scale.main, scale.figures),
    "executors": (executors.main, executors.figures),
}


def main() -> None:
    """Run the parts, then show all figures."""
    parser = argparse.ArgumentParser("python -m benchmarks")
    parser.add_argument(
        "parts",
        nargs="*",
        help=f"of {', '.join(PARTS)}; or all. exchange: calls beside the bare "
        "skeleton, redis lists and NATS; payload: 1 kB to 100 MB beside a bare "
        "WebSocket relay; scale: 10, 1,000 and 10,000 mailboxes",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(
            f"no such parts: {', '.join(unknown)}; there are {', '.join(PARTS)}"
        )
    results: dict[str, Any] = {"machine": machine()}
    for name in options.parts or PARTS:
        measure, figures = PARTS[name]
        results[name] = measure(["--rounds", str(options.rounds)])
        print(table(f"\n{name}", figures(results[name])), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nAll figures: {options.json}")


if __name__ == "__main__":
    main()
