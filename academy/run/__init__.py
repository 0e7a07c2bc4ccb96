"""`python -m academy.run` runs one agent in this process.

With `--config agent.toml`, one that a file describes, without a manager (see
`academy.run.config`). With `--spec FILE`, what a batch job finds in a file that its
executor has written (see `academy.launch.task`).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from academy.exception import ExchangeError
from academy.launch import new_runner
from academy.logging.configs.base import level_number
from academy.run.config import RunConfig, RunConfigError, run

__all__ = ["RunConfig", "RunConfigError", "main", "run"]

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Run an agent from a file; return the exit code."""
    parser = argparse.ArgumentParser("python -m academy.run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a TOML file")
    what.add_argument("--spec", help="a file that a BatchExecutor has written")
    parser.add_argument("--log-level", default="INFO", help="of what goes to stderr")
    parser.add_argument(
        "--slot", help="I/N: with --spec, take the I-th of N equal parts of the node"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=0, help="with --slot, how many to divide"
    )
    options = parser.parse_args(arguments)
    # As with python -m, so that the command finds the same modules.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if options.spec is not None:
        return _run_task(options.spec, options.slot, options.gpus_per_node)
    return _run_config(options.config, options.log_level)


def _run_task(spec: str, slot: str | None, gpus_per_node: int) -> int:
    from academy.launch.slot import take_slot
    from academy.launch.task import run_task

    if slot is not None:
        take_slot(slot, gpus_per_node)
    return run_task(spec)


def _run_config(path: str, log_level: str) -> int:
    try:
        level = level_number(log_level)
        config = RunConfig.from_toml(path)
    except (OSError, ValueError) as error:
        print(f"Cannot run: {error}", file=sys.stderr)
        return 2
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level, format=form)
    try:
        with new_runner() as runner:
            runner.run(run(config))
    except (RunConfigError, ExchangeError) as error:
        notes = getattr(error, "__notes__", ())
        print("Cannot run:", error, *notes, file=sys.stderr)
        return 2
    except Exception:
        logger.exception("the agent failed")
        return 1
    return 0
