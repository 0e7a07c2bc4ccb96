"""What Parsl would submit for a block of workers, before it does."""

from __future__ import annotations

from typing import Any

from parsl.executors import HighThroughputExecutor

from academy.executors.parsl.engine import has_script, job_script
from academy.executors.parsl.pools import Pool
from academy.executors.parsl.shapes import Request, describe
from academy.executors.parsl.tasks import NATIVE
from academy.executors.providers import Script


def preview(pool: Pool, run_dir: str, request: Request) -> str:
    """Show the batch script of the next block, and what goes with each task.

    Parsl writes the script: its executor composes the launch command, its provider
    fills its own template. Only the command that would submit it is kept from running.

    Args:
        pool: Where the task would run.
        run_dir: The directory of the run, or of the next one.
        request: What the launch asks for.
    """
    engine = pool.pattern
    lines = [f"# Parsl executor {engine.label!r}: {type(engine).__name__}"]
    if pool.block is not None:
        lines.append(f"# pool of blocks {pool.label!r}: {describe(pool.block)}")
    if isinstance(engine, HighThroughputExecutor):
        lines += _block(pool, run_dir)
    elif getattr(engine, "provider", None) is not None:
        lines.append(f"# blocks from: {engine.provider!r}")
    lines.append(f"# with each task: {NATIVE}={request.specification!r}")
    return "\n".join(lines) + "\n"


def _block(pool: Pool, run_dir: str) -> list[str]:
    plan = plan_block(pool, run_dir)
    if plan is not None:
        _, script = plan
        return [f"# {script.command}", script.text]
    engine, block = _next(pool, run_dir)
    command = engine._get_launch_command(block)
    return [f"# blocks from: {engine.provider!r}", command]


def plan_block(pool: Pool, run_dir: str) -> tuple[Any, Script] | None:
    """Return the provider of the next block of a pool, and what it would submit.

    Args:
        pool: of any Parsl executor.
        run_dir: the directory of the run, or of the next one.

    Returns:
        None if there is no script, or it is not all that is submitted.
    """
    engine = pool.pattern
    has_blocks = isinstance(engine, HighThroughputExecutor)
    if not has_blocks or not has_script(engine.provider):
        return None
    engine, block = _next(pool, run_dir)
    return engine.provider, job_script(engine, block)


def _next(pool: Pool, run_dir: str) -> tuple[Any, str]:
    """Return the executor of a pool as it is, or will be, and its next block."""
    running = pool.engine
    engine: Any = running if running is not None else pool.planned(run_dir)
    return engine, str(engine._block_id_counter.count)
