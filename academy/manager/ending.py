"""How a manager waits for agents, and how it ends what it owns."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from academy.exception import raise_exceptions
from academy.executors.futures import interrupt_workers, is_standard_pool

if TYPE_CHECKING:
    from academy.manager.launched import LaunchedAgent
    from academy.manager.watching import Watching

STOP_PATIENCE = 10.0
"""Seconds that an exchange may take to pass on that an agent is to shut down."""

STEP_PATIENCE = 5.0
"""Seconds for one step of a shutdown, when there is a hurry."""


async def close_all(
    launched: Iterable[LaunchedAgent],
    watching: Watching,
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
    await watching.close()
    if close_client is not None:
        try:
            await close_client()
        except BaseException as error:  # the executors must be shut down as well
            errors.append(error)
    # All at once: one executor may wait for tasks that another one has given it.
    outcomes = await asyncio.gather(
        *(
            _shut_down(executor, hurry, cut=hurry or bool(watching.abandoned))
            for executor in executors
        ),
        return_exceptions=True,
    )
    errors += [outcome for outcome in outcomes if outcome is not None]
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
            *(stop(one, None, STOP_PATIENCE) for one in running), return_exceptions=True
        )
        unaware = [t for t, e in zip(tasks, outcomes, strict=True) if e is not None]
        await _insist(unaware)
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        await _insist(tasks)
        raise
    return [outcome for outcome in outcomes if outcome is not None]


async def stop(
    one: LaunchedAgent, terminate: bool | None, timeout: float | None
) -> None:
    """Ask an agent to shut down.

    Raises:
        TimeoutError: the exchange has not passed that on in time.
        ExchangeError: it cannot be passed on.
    """
    try:
        async with asyncio.timeout(timeout):
            await one.stop(terminate)
    except TimeoutError:
        raise TimeoutError(
            f"{one.agent_id} could not be asked to shut down: the exchange does not "
            f"answer within {timeout} seconds."
        ) from None


async def wait_for(
    launched: Sequence[LaunchedAgent],
    *,
    raise_error: bool,
    return_when: str,
    timeout: float | None,
) -> None:
    """Wait until agents have ended (see `Manager.wait`)."""
    if not launched:
        return
    done, pending = await asyncio.wait(
        [one.task for one in launched], timeout=timeout, return_when=return_when
    )
    ended = [one for one in launched if one.task in done]
    failures = [one.failure() for one in ended]
    if raise_error:
        for one in ended:
            one.reported = True
        raise_exceptions(failure for failure in failures if failure is not None)
    enough = {
        asyncio.FIRST_COMPLETED: bool(done),
        asyncio.FIRST_EXCEPTION: any(failures),
    }
    if pending and not enough.get(return_when):
        late = ", ".join(str(one.agent_id) for one in launched if one.task in pending)
        raise TimeoutError(f"Still running after {timeout} seconds: {late}.")


async def _insist(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended, since each time ends one step of theirs."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=STEP_PATIENCE)


async def _shut_down(executor: Executor, hurry: bool, *, cut: bool) -> None:
    """Shut an executor down.

    Args:
        executor: whose agents have ended, or are not waited for.
        hurry: do not wait for it.
        cut: do not let it wait for runs, of which those that were lost may never end.
    """
    if hurry and is_standard_pool(executor):
        interrupt_workers(executor)
    shutdown = functools.partial(executor.shutdown, wait=not hurry, cancel_futures=cut)
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
