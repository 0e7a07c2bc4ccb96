"""How a manager ends what it owns."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from academy.manager.launched import LaunchedAgent


async def close_all(
    launched: Iterable[LaunchedAgent],
    close_client: Callable[[], Awaitable[None]] | None,
    executors: Iterable[Executor],
) -> list[BaseException]:
    """End agents, the client and executors, in this order, and return all errors.

    Cancellation:
        Stops waiting for agents, still releases the rest, then propagates.
    """
    errors: list[BaseException] = []
    hurry = False
    try:
        errors += await _end_agents(launched)
    except asyncio.CancelledError as error:
        errors.append(error)
        hurry = True
    # An agent that could not be asked to shut down keeps its worker.
    hurry = hurry or bool(errors)
    steps: list[Callable[[], Awaitable[None]]] = []
    if close_client is not None:
        steps.append(close_client)
    steps += [functools.partial(_shut_down, executor, hurry) for executor in executors]
    for step in steps:
        try:
            await step()
        except BaseException as error:  # the other steps must be taken as well
            errors.append(error)
    for fatal in errors:
        if not isinstance(fatal, Exception):
            raise fatal
    return errors


async def _end_agents(launched: Iterable[LaunchedAgent]) -> list[BaseException]:
    """Ask agents to shut down, and wait for all that could be asked."""
    running = [one for one in launched if not one.task.done()]
    if not running:
        return []
    tasks = [one.task for one in running]
    try:
        outcomes = await asyncio.gather(
            *(one.stop(None) for one in running), return_exceptions=True
        )
        for task, outcome in zip(tasks, outcomes, strict=True):
            if outcome is not None:
                task.cancel()
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    return [outcome for outcome in outcomes if outcome is not None]


async def _shut_down(executor: Executor, hurry: bool) -> None:
    shutdown = functools.partial(
        executor.shutdown, wait=not hurry, cancel_futures=hurry
    )
    # A thread of its own: the loop's may be busy, and would outlive the manager.
    thread = ThreadPoolExecutor(1, thread_name_prefix="academy-shutdown")
    try:
        await asyncio.get_running_loop().run_in_executor(thread, shutdown)
    finally:
        thread.shutdown(wait=False)


def take_failures(launched: Iterable[LaunchedAgent]) -> list[BaseException]:
    """Return failures that nobody has been told yet, and take them as told."""
    failures = []
    for one in launched:
        failure = one.failure()
        if failure is not None and not one.reported:
            one.reported = True
            failures.append(failure)
    return failures
