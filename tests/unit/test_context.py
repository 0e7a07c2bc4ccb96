"""Contexts: what actions and running agents know of their surroundings."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from academy.context import ActionContext, AgentContext
from academy.handle import Handle
from academy.identifier import AgentId, UserId

AGENT: AgentId[Any] = AgentId.new("alice")

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


@asynccontextmanager
async def agent_context(**options: Any) -> AsyncIterator[AgentContext]:
    client: Any = None
    context = AgentContext(AGENT, client, **options)
    try:
        yield context
    finally:
        await context.close()


def test_an_action_knows_which_agent_has_called() -> None:
    context = ActionContext(AGENT, None)
    assert context.source_id == AGENT
    assert (context.is_agent_source(), context.is_user_source()) == (True, False)
    assert context.source_handle == Handle(AGENT)
    assert "alice" in repr(context)


def test_an_action_knows_that_a_user_has_called() -> None:
    context = ActionContext(UserId.new("bob"), None)
    assert (context.is_agent_source(), context.is_user_source()) == (False, True)
    with pytest.raises(TypeError, match="UserId<bob> is a user"):
        _ = context.source_handle


async def test_a_function_runs_in_a_thread_with_the_callers_context() -> None:
    variable.set("mine")

    def look(*args: int, **kwargs: int) -> Any:
        return variable.get(), threading.current_thread().name, args, kwargs

    async with agent_context() as context:
        seen, thread, args, kwargs = await context.run_sync(look, 1, two=2)
    assert (seen, args, kwargs) == ("mine", (1,), {"two": 2})
    assert "AgentId<alice>" in thread


async def test_an_error_of_the_function_is_raised() -> None:
    async with agent_context() as context:
        with pytest.raises(ZeroDivisionError):
            await context.run_sync(lambda: 1 / 0)


async def test_an_agent_that_runs_no_function_has_no_threads() -> None:
    before = threading.active_count()
    async with agent_context():
        assert threading.active_count() == before


async def test_the_number_of_threads_is_as_configured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = threading.Event()
    both = threading.Barrier(3)

    def wait() -> None:
        both.wait()
        release.wait()

    async with agent_context(max_sync_concurrency=2) as context:
        calls = [asyncio.create_task(context.run_sync(wait)) for _ in range(2)]
        await asyncio.to_thread(both.wait)
        assert not caplog.records
        third = asyncio.create_task(context.run_sync(len, "abc"))
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*calls)
        assert await third == 3
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "all 2 threads of AgentId<alice> are busy: len waits" in record.message


async def test_closing_waits_for_functions_and_starts_no_more() -> None:
    started, release = threading.Event(), threading.Event()
    done: list[str] = []

    def work(name: str) -> None:
        started.set()
        release.wait()
        done.append(name)

    async with agent_context(max_sync_concurrency=1) as context:
        calls = [
            asyncio.create_task(context.run_sync(work, name)) for name in ("one", "two")
        ]
        await asyncio.to_thread(started.wait)
        closing = asyncio.create_task(context.close())
        await asyncio.sleep(0)
        assert not closing.done()
        release.set()
        await closing
        assert done == ["one"]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], asyncio.CancelledError)


async def test_a_cancelled_call_leaves_its_function_to_end_unheard() -> None:
    started, release = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        release.wait()

    async with agent_context() as context:
        call = asyncio.create_task(context.run_sync(work))
        await asyncio.to_thread(started.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        release.set()


async def test_without_a_runtime_nothing_is_launched_alongside() -> None:
    async with agent_context() as context:
        with pytest.raises(RuntimeError, match="no runtime"):
            await context.launch_alongside(Any)
