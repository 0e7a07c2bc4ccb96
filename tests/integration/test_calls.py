"""Calls whose arguments, results and errors cross as bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from academy.agent import Agent, action
from academy.exception import (
    AcademyRemoteError,
    ActionCancelledError,
    AgentTerminatedError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
    ResultSerializationError,
)
from academy.exchange.cloud import HttpExchangeFactory
from academy.handle import Handle
from academy.identifier import AgentId
from academy.runtime import Runtime, RuntimeConfig
from academy.serialize import JSON, PICKLE, allowed_deserializers


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class Remote(Agent):
    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    @action
    async def echo(self, value: Any) -> Any:
        return value

    @action
    async def lock(self) -> Any:
        return threading.Lock()

    @action
    async def fail(self) -> None:
        raise KeyError("missing")

    @action
    async def fail_badly(self) -> None:
        raise UnpicklableError

    @action
    async def wait(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


class Running:
    """An agent behind a hosted exchange, with the handle of a user."""

    def __init__(self, runtime: Runtime[Remote]) -> None:
        self.agent = runtime.agent
        self.agent_id: AgentId[Any] = runtime.agent_id
        self.handle: Handle[Any] = Handle(runtime.agent_id)
        self.task = asyncio.create_task(runtime.run_until_complete())

    async def ended(self) -> None:
        await self.task


@asynccontextmanager
async def running(
    exchange: HttpExchangeFactory, config: RuntimeConfig | None = None
) -> AsyncIterator[Running]:
    async with await exchange.create_user_client() as client:
        registration = await client.register_agent(Remote, name="remote")
        runtime = Runtime(
            Remote(),
            exchange_factory=exchange,
            registration=registration,
            config=config,
        )
        remote = Running(runtime)
        yield remote
        runtime.signal_shutdown()
        await remote.ended()


@pytest.fixture
async def remote(http_exchange: HttpExchangeFactory) -> AsyncIterator[Running]:
    async with running(http_exchange) as remote:
        yield remote


async def test_values_cross(remote: Running) -> None:
    for value in (None, "text", {"a": [1, 2.5]}, remote.handle):
        assert await remote.handle.echo(value) == value
    array = np.arange(100_000)
    assert (await remote.handle.echo(array) == array).all()


async def test_json_values_cross_as_json(remote: Running) -> None:
    handle: Handle[Any] = Handle(remote.agent_id, request_serializer=JSON)
    assert await handle.echo((1, 2)) == [1, 2]


async def test_an_exception_crosses_with_the_agents_traceback(remote: Running) -> None:
    with pytest.raises(KeyError, match="missing") as caught:
        await remote.handle.fail()
    (note,) = caught.value.__notes__
    assert 'raise KeyError("missing")' in note
    assert "serving.py" not in note


async def test_an_exception_crosses_as_text_when_wanted(remote: Running) -> None:
    handle: Handle[Any] = Handle(remote.agent_id, exception_serializer=JSON)
    with pytest.raises(AcademyRemoteError, match="KeyError: 'missing'"):
        await handle.fail()


async def test_an_exception_that_does_not_cross_is_named(remote: Running) -> None:
    with pytest.raises(ExceptionSerializationError, match="UnpicklableError"):
        await remote.handle.fail_badly()


async def test_an_argument_that_does_not_cross_is_named(remote: Running) -> None:
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        await remote.handle.echo(threading.Lock())
    (note,) = caught.value.__notes__
    assert 'argument 0 of action "echo" is of type _thread.lock' in note
    handle: Handle[Any] = Handle(remote.agent_id, request_serializer=JSON)
    with pytest.raises(TypeError, match="not JSON serializable") as caught:
        await handle.echo(value={1})
    assert 'argument "value" of action "echo"' in caught.value.__notes__[0]


async def test_a_result_that_does_not_cross_is_named(remote: Running) -> None:
    with pytest.raises(ResultSerializationError, match=r'"lock".*_thread\.lock'):
        await remote.handle.lock()
    handle: Handle[Any] = Handle(remote.agent_id, result_serializer=JSON)
    with pytest.raises(AcademyRemoteError, match=r'"echo" is of type builtins\.set'):
        await handle.echo({1})


async def test_an_unknown_action_is_named_with_its_neighbours(remote: Running) -> None:
    with pytest.raises(AttributeError, match=r'no action "ecko"\. Did you mean echo'):
        await remote.handle.ecko()


async def test_a_caller_may_refuse_what_is_pickled(remote: Running) -> None:
    handle: Handle[Any] = Handle(
        remote.agent_id, request_serializer=JSON, result_serializer=PICKLE
    )
    token = allowed_deserializers.set(frozenset({JSON}))
    try:
        with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
            await handle.echo(1)
    finally:
        allowed_deserializers.reset(token)


async def test_an_agent_may_refuse_what_is_pickled(
    http_exchange: HttpExchangeFactory,
) -> None:
    config = RuntimeConfig(allowed_deserializers=frozenset({JSON}))
    async with running(http_exchange, config) as remote:
        with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
            await remote.handle.echo(1)
        json: Handle[Any] = Handle(remote.agent_id, request_serializer=JSON)
        assert await json.echo(1) == 1


async def test_a_cancelled_call_cancels_the_action(remote: Running) -> None:
    call = asyncio.create_task(remote.handle.wait())
    await remote.agent.begun.wait()
    call.cancel()
    await remote.agent.cancelled.wait()
    assert (await asyncio.gather(call, return_exceptions=True)) != [None]


async def test_a_call_is_answered_when_its_agent_shuts_down(remote: Running) -> None:
    call = asyncio.create_task(remote.handle.wait())
    await remote.agent.begun.wait()
    await remote.handle.shutdown()
    with pytest.raises(ActionCancelledError, match='"wait"'):
        await call
    await remote.ended()
    with pytest.raises(AgentTerminatedError, match="AgentId<remote>"):
        await remote.handle.ping()
