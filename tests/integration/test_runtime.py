"""Running agents: from registration to a mailbox that has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import ValidationError

from academy.agent import Agent, action, event, loop, timer
from academy.context import ActionContext
from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    AgentNotInitializedError,
    AgentTerminatedError,
    BadEntityIdError,
    DeserializationMethodProhibitedError,
    MailboxTerminatedError,
    PingCancelledError,
    SupersededError,
)
from academy.exchange.client import UserExchangeClient, exchange_context
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.transport import AgentRegistration
from academy.handle import Handle
from academy.identifier import AgentId
from academy.logging.context import current_entity
from academy.message import CancelRequest, Message
from academy.runtime import Runtime, RuntimeConfig
from academy.serialize import JSON, PICKLE, allowed_deserializers, default_serializer

KEEP = RuntimeConfig(terminate_on_error=False, terminate_on_success=False)


class Recorder(Agent):
    """Does what tests ask for, and writes down what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun = asyncio.Event()
        self.release = asyncio.Event()

    async def agent_on_startup(self) -> None:
        self.events.append("startup")

    async def agent_on_shutdown(self) -> None:
        self.events.append("shutdown")

    @action
    async def echo(self, value: Any = None) -> Any:
        return value

    @action
    async def fail(self) -> None:
        raise KeyError("x")

    @action(context=True)
    async def who(self, *, context: ActionContext) -> ActionContext:
        return context

    @action
    async def wait(self) -> str:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        return "released"

    @action
    async def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    @action
    async def leave(self) -> str:
        self.agent_shutdown()
        return "bye"

    @action
    async def exit(self) -> None:
        raise SystemExit(3)

    @action(idempotent=True)
    async def once_more(self) -> str:
        return "ran"


class Started:
    """An agent that runs as a task, and what a test wants of it."""

    def __init__(self, runtime: Runtime[Any], handle: Handle[Any]) -> None:
        self.runtime = runtime
        self.handle = handle
        self.task = asyncio.create_task(runtime.run_until_complete())

    async def stop(self) -> None:
        self.runtime.signal_shutdown()
        await self.task


Start = Callable[..., Any]


@pytest.fixture
async def client() -> AsyncIterator[UserExchangeClient]:
    async with await LocalExchangeFactory().create_user_client("user") as client:
        yield client


@pytest.fixture
async def start(client: UserExchangeClient) -> AsyncIterator[Start]:
    """Start agents; those that still run after the test are shut down."""
    running: list[Started] = []

    async def start(
        agent: Agent,
        config: RuntimeConfig | None = None,
        registration: AgentRegistration[Any] | None = None,
    ) -> Started:
        if registration is None:
            registration = await client.register_agent(type(agent), name="agent")
        runtime = Runtime(
            agent,
            exchange_factory=client.factory(),
            registration=registration,
            config=config,
        )
        handle: Handle[Any] = Handle(registration.agent_id, exchange=client)
        running.append(Started(runtime, handle))
        return running[-1]

    yield start
    for started in running:
        if not started.task.done():
            await started.stop()


async def status(client: UserExchangeClient, started: Started) -> MailboxStatus:
    return await client.status(started.runtime.agent_id)


# --- life


async def test_an_agent_lives_from_startup_to_shutdown(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    await started.handle.ping()
    assert agent.events == ["startup"]
    assert agent.agent_id == started.runtime.agent_id
    assert agent.agent_exchange_client.client_id == agent.agent_id
    await started.handle.shutdown()
    await started.task
    assert agent.events == ["startup", "shutdown"]
    assert await status(client, started) is MailboxStatus.TERMINATED


async def test_a_runtime_is_a_context_manager(client: UserExchangeClient) -> None:
    agent = Recorder()
    registration = await client.register_agent(Recorder)
    runtime = Runtime(
        agent, exchange_factory=client.factory(), registration=registration
    )
    with pytest.raises(AgentNotInitializedError):
        await runtime.wait_shutdown()
    async with runtime as entered:
        assert entered is runtime
        assert agent.events == ["startup"]
        with pytest.raises(TimeoutError, match=r"still runs after 0\.01 seconds"):
            await runtime.wait_shutdown(timeout=0.01)
        runtime.signal_shutdown()
        await runtime.wait_shutdown(timeout=10)
    assert agent.events == ["startup", "shutdown"]
    assert exchange_context.get() is client


async def test_a_runtime_runs_once(start: Start) -> None:
    started = await start(Recorder())
    await started.stop()
    with pytest.raises(RuntimeError, match=r"^Agent has already been shutdown\.$"):
        await started.runtime.run_until_complete()


async def test_an_agent_that_is_not_registered_does_not_start(
    client: UserExchangeClient,
) -> None:
    agent = Recorder()
    runtime = Runtime(
        agent,
        exchange_factory=client.factory(),
        registration=AgentRegistration(AgentId.new("nobody")),
    )
    with pytest.raises(BadEntityIdError, match="No mailbox is registered"):
        await runtime.run_until_complete()
    assert agent.events == []


async def test_an_agent_may_shut_itself_down(start: Start) -> None:
    started = await start(Recorder())
    assert await started.handle.leave() == "bye"
    await started.task


async def test_shutting_down_before_the_start_ends_the_agent_after_it(
    start: Start,
) -> None:
    agent = Recorder()
    started = await start(agent)
    started.runtime.signal_shutdown()
    await started.task
    assert agent.events == ["startup", "shutdown"]


async def test_an_idle_agent_needs_no_task_but_its_own(start: Start) -> None:
    before = asyncio.all_tasks()
    started = await start(Recorder())
    await started.handle.ping()
    await started.handle.echo()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == {started.task}


# --- actions


async def test_an_action_returns_its_result(start: Start) -> None:
    started = await start(Recorder())
    assert await started.handle.echo([1]) == [1]
    assert await started.handle.action(Recorder.echo, value=2) == 2


async def test_an_action_raises_its_own_exception(start: Start) -> None:
    started = await start(Recorder())
    with pytest.raises(KeyError, match="x"):
        await started.handle.fail()
    assert await started.handle.echo(1) == 1


async def test_wrong_arguments_are_the_callers_error(start: Start) -> None:
    started = await start(Recorder())
    with pytest.raises(TypeError, match="unexpected keyword"):
        await started.handle.echo(wrong=1)


@pytest.mark.parametrize("name", ["ecko", "begun", "agent_shutdown", "__init__"])
async def test_what_is_no_action_is_an_error_that_names_it(
    start: Start, name: str
) -> None:
    started = await start(Recorder())
    with pytest.raises(AttributeError, match=f'no action "{name}"'):
        await started.handle.action(name)


async def test_an_action_knows_its_caller(
    client: UserExchangeClient, start: Start
) -> None:
    class Caller(Recorder):
        @action
        async def ask(self, other: Handle[Recorder]) -> ActionContext:
            context: ActionContext = await other.who()
            return context

    callee, caller = await start(Recorder()), await start(Caller())
    assert (await callee.handle.who()).source_id == client.client_id
    context = await caller.handle.ask(callee.handle)
    assert context.source_handle == caller.handle


async def test_agents_call_each_other_through_their_own_clients(start: Start) -> None:
    class Relay(Recorder):
        @action
        async def relay(self, other: Handle[Recorder], value: int) -> Any:
            assert exchange_context.get() is self.agent_exchange_client
            return await other.echo(value)

    relays = [await start(Relay()) for _ in range(2)]
    end = await start(Recorder())
    calls = [relay.handle.relay(end.handle, n) for n, relay in enumerate(relays)]
    assert await asyncio.gather(*calls) == [0, 1]


async def test_actions_run_side_by_side(start: Start) -> None:
    agent = Recorder()
    started = await start(agent)
    waiting = [asyncio.create_task(started.handle.wait()) for _ in range(3)]
    await agent.begun.wait()
    assert await started.handle.echo(1) == 1
    agent.release.set()
    assert await asyncio.gather(*waiting) == ["released"] * 3


async def test_actions_do_not_see_each_others_context_variables(start: Start) -> None:
    class Setter(Recorder):
        @action
        async def entity(self, name: str | None) -> str | None:
            before = current_entity.get()
            current_entity.set(name)
            return before

    started = await start(Setter())
    assert await started.handle.entity("x") == "AgentId<agent>"
    assert await started.handle.entity("y") == "AgentId<agent>"


async def test_actions_begin_in_the_order_of_their_calls(start: Start) -> None:
    class Ordered(Recorder):
        @action
        async def waits(self, number: int) -> None:
            self.events.append(str(number))
            await asyncio.sleep(0)

        @action
        async def ends(self, number: int) -> None:
            self.events.append(str(number))

    agent = Ordered()
    started = await start(agent)
    await started.handle.ping()
    kinds = (started.handle.ends, started.handle.waits)
    await asyncio.gather(*[kinds[number % 2](number) for number in range(9)])
    assert agent.events == ["startup", *map(str, range(9))]


async def test_a_cancelled_call_cancels_its_action(start: Start) -> None:
    agent = Recorder()
    started = await start(agent)
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    call.cancel()
    await asyncio.wait([call])
    await started.handle.ping()
    assert agent.events == ["startup", "cancelled"]


async def test_an_action_that_is_not_running_cannot_be_cancelled(
    client: UserExchangeClient, start: Start
) -> None:
    started = await start(Recorder())
    request = client.new_message(started.runtime.agent_id, CancelRequest(bytes(16)))
    answer = (await client.request(request)).body
    error = answer.get_exception()  # type: ignore[union-attr]
    assert isinstance(error, ActionInvalidStateError)


async def test_nobody_but_its_caller_cancels_an_action(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    ((_, tag),) = client._pending
    async with await client.factory().create_user_client() as other:
        request = other.new_message(started.runtime.agent_id, CancelRequest(tag))
        answer = (await other.request(request)).body
    error = answer.get_exception()  # type: ignore[union-attr]
    assert isinstance(error, ActionInvalidStateError)

    agent.release.set()
    assert await call == "released"


async def test_an_action_that_is_cancelled_before_its_first_step_is_answered(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    await started.handle.ping()
    call = asyncio.create_task(started.handle.wait())
    await asyncio.sleep(0)
    (((_, tag), pending),) = client._pending.items()
    client.post(client.new_message(started.runtime.agent_id, CancelRequest(tag)))
    answer = (await pending).body
    error = answer.get_exception()  # type: ignore[union-attr]
    assert (type(error), error.args) == (ActionCancelledError, ("wait",))
    with pytest.raises(ActionCancelledError):
        await call
    assert not agent.begun.is_set()


async def test_an_action_that_cancels_itself_does_not_cancel_its_caller(
    start: Start,
) -> None:
    started = await start(Recorder())
    with pytest.raises(ActionCancelledError, match='"cancel_itself"'):
        await started.handle.cancel_itself()


async def test_an_action_that_exits_ends_its_agent_and_nobody_else(
    start: Start,
) -> None:
    agent = Recorder()
    started = await start(agent)
    with pytest.raises(ActionCancelledError):
        await started.handle.exit()
    with pytest.raises(RuntimeError, match=r"ended itself with SystemExit\(3\)"):
        await started.task
    assert agent.events == ["startup", "shutdown"]


# --- requests that an earlier incarnation may have run


async def redelivered(
    client: UserExchangeClient, started: Started, name: str
) -> dict[str, Any]:
    """Call an action as if an earlier incarnation had been given the request."""
    await started.handle.ping()
    serve = started.runtime._server.handle

    def mark(message: Message) -> None:
        message.redelivered = True
        serve(message)

    started.runtime._client._handler = mark  # type: ignore[union-attr]
    return await started.handle.action(name)  # type: ignore[no-any-return]


async def test_an_action_that_may_have_run_is_not_run_again(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    with pytest.raises(ActionInterruptedError, match='"wait"'):
        await redelivered(client, started, "wait")
    assert not agent.begun.is_set()


async def test_an_idempotent_action_is_run_again(
    client: UserExchangeClient, start: Start
) -> None:
    started = await start(Recorder())
    assert await redelivered(client, started, "once_more") == "ran"


async def test_a_request_of_an_agent_that_did_not_begin_it_is_served_by_the_next(
    client: UserExchangeClient, start: Start
) -> None:
    class Busy(Recorder):
        async def agent_on_startup(self) -> None:
            raise KeyError("startup")

    registration = await client.register_agent(Recorder)
    handle: Handle[Recorder] = Handle(registration.agent_id)
    call = asyncio.create_task(handle.echo(1))
    first = await start(Busy(), KEEP, registration)
    with pytest.raises(KeyError, match="startup"):
        await first.task
    assert not call.done()
    await start(Recorder(), KEEP, registration)
    assert await call == 1


# --- startup


class Slow(Recorder):
    """Starts when it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.starting = asyncio.Event()
        self.go = asyncio.Event()
        self.error = error

    async def agent_on_startup(self) -> None:
        self.starting.set()
        assert exchange_context.get() is self.agent_exchange_client
        await self.go.wait()
        if self.error is not None:
            raise self.error

    @loop
    async def note(self, shutdown: asyncio.Event) -> None:
        self.events.append("loop")


async def test_requests_that_come_before_the_start_wait(start: Start) -> None:
    agent = Slow()
    started = await start(agent)
    await agent.starting.wait()
    ping = asyncio.create_task(started.handle.ping())
    call = asyncio.create_task(started.handle.echo(1))
    with pytest.raises(TimeoutError):
        await started.handle.ping(timeout=0.01)
    assert not ping.done()
    assert not call.done()
    assert agent.events == []
    agent.go.set()
    await ping
    assert await call == 1


async def test_a_call_that_is_cancelled_before_the_start_does_not_run(
    start: Start,
) -> None:
    agent = Slow()
    started = await start(agent)
    await agent.starting.wait()
    call = asyncio.create_task(started.handle.wait())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    agent.go.set()
    await started.handle.ping()
    assert not agent.begun.is_set()


async def test_a_failing_start_is_raised_and_ends_the_mailbox(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Slow(KeyError("startup"))
    started = await start(agent)
    await agent.starting.wait()
    ping = asyncio.create_task(started.handle.ping())
    call = asyncio.create_task(started.handle.echo(1))
    shutdown = asyncio.create_task(started.handle.shutdown())
    await shutdown
    agent.go.set()
    with pytest.raises(KeyError, match="startup"):
        await started.task
    with pytest.raises(PingCancelledError, match="before it had started"):
        await ping
    with pytest.raises(AgentTerminatedError):
        await call
    assert agent.events == []
    assert await status(client, started) is MailboxStatus.TERMINATED


async def test_an_agent_that_exits_in_its_start_has_failed(start: Start) -> None:
    agent = Slow(SystemExit(1))
    started = await start(agent)
    agent.go.set()
    with pytest.raises(RuntimeError, match="SystemExit"):
        await started.task


async def test_an_agent_that_is_cancelled_in_its_start_is_cleaned_up(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Slow()
    started = await start(agent)
    await agent.starting.wait()
    started.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started.task
    assert await status(client, started) is MailboxStatus.TERMINATED


# --- shutdown


async def test_running_actions_are_cancelled_at_shutdown(start: Start) -> None:
    agent = Recorder()
    started = await start(agent)
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    await started.stop()
    with pytest.raises(ActionCancelledError, match='"wait"'):
        await call
    assert agent.events == ["startup", "shutdown", "cancelled"]


async def test_running_actions_are_waited_for_if_so_configured(start: Start) -> None:
    agent = Recorder()
    started = await start(agent, RuntimeConfig(cancel_actions_on_shutdown=False))
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    started.runtime.signal_shutdown()
    done, _ = await asyncio.wait([started.task], timeout=0.05)
    assert not done
    agent.release.set()
    await started.task
    assert await call == "released"


async def test_a_cancelled_shutdown_cancels_the_actions_it_waits_for(
    start: Start,
) -> None:
    agent = Recorder()
    started = await start(agent, RuntimeConfig(cancel_actions_on_shutdown=False))
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    started.runtime.signal_shutdown()
    await asyncio.wait([started.task], timeout=0.05)
    started.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started.task
    with pytest.raises(ActionCancelledError):
        await call


async def test_actions_are_served_until_the_hook_has_returned(start: Start) -> None:
    class Polite(Recorder):
        async def agent_on_shutdown(self) -> None:
            self.begun.set()
            await self.release.wait()

    agent = Polite()
    started = await start(agent)
    await started.handle.shutdown()
    await agent.begun.wait()
    assert await started.handle.echo(1) == 1
    agent.release.set()
    await started.task


async def test_a_failing_shutdown_hook_is_raised_and_everything_is_closed(
    client: UserExchangeClient, start: Start
) -> None:
    class Rude(Recorder):
        async def agent_on_shutdown(self) -> None:
            raise KeyError("shutdown")

    agent = Rude()
    started = await start(agent)
    call = asyncio.create_task(started.handle.wait())
    await agent.begun.wait()
    started.runtime.signal_shutdown()
    with pytest.raises(KeyError, match="shutdown"):
        await started.task
    with pytest.raises(ActionCancelledError):
        await call
    assert await status(client, started) is MailboxStatus.TERMINATED


async def test_cancelling_the_runtime_shuts_the_agent_down_in_order(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    await started.handle.ping()
    started.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started.task
    assert agent.events == ["startup", "shutdown"]
    assert await status(client, started) is MailboxStatus.TERMINATED


async def test_an_error_beside_the_agent_shuts_it_down_and_is_raised(
    client: UserExchangeClient,
) -> None:
    agent = Recorder()
    registration = await client.register_agent(Recorder)
    runtime = Runtime(
        agent, exchange_factory=client.factory(), registration=registration
    )
    with pytest.raises(KeyError, match="beside"):
        async with runtime:
            raise KeyError("beside")
    assert agent.events == ["startup", "shutdown"]


# --- the mailbox's end


@pytest.mark.parametrize("expected", [True, False])
@pytest.mark.parametrize("on_success", [True, False])
@pytest.mark.parametrize("on_error", [True, False])
async def test_the_mailbox_ends_as_configured(
    client: UserExchangeClient,
    start: Start,
    expected: bool,
    on_success: bool,
    on_error: bool,
) -> None:
    config = RuntimeConfig(terminate_on_success=on_success, terminate_on_error=on_error)
    started = await start(Recorder(), config)
    await started.handle.ping()
    started.runtime.signal_shutdown(expected)
    await started.task
    ended = on_success if expected else on_error
    wanted = MailboxStatus.TERMINATED if ended else MailboxStatus.ACTIVE
    assert await status(client, started) is wanted


@pytest.mark.parametrize("terminate", [True, False])
async def test_whoever_asks_for_the_shutdown_may_decide_on_the_mailbox(
    client: UserExchangeClient, start: Start, terminate: bool
) -> None:
    config = RuntimeConfig(terminate_on_success=not terminate)
    started = await start(Recorder(), config)
    await started.handle.shutdown(terminate=terminate)
    await started.task
    wanted = MailboxStatus.TERMINATED if terminate else MailboxStatus.ACTIVE
    assert await status(client, started) is wanted


async def test_an_agent_whose_mailbox_is_ended_fails(
    client: UserExchangeClient, start: Start
) -> None:
    agent = Recorder()
    started = await start(agent)
    await started.handle.ping()
    await client.terminate(started.runtime.agent_id)
    with pytest.raises(MailboxTerminatedError):
        await started.task
    assert agent.events == ["startup", "shutdown"]


async def test_an_agent_that_is_superseded_fails_and_leaves_the_mailbox(
    client: UserExchangeClient, start: Start
) -> None:
    registration = await client.register_agent(Recorder)
    first = await start(Recorder(), None, registration)
    await first.handle.ping()
    second = await start(Recorder(), None, registration)
    with pytest.raises(SupersededError):
        await first.task
    assert await second.handle.echo(1) == 1


# --- loops


class Looping(Recorder):
    @loop
    async def one(self, shutdown: asyncio.Event) -> None:
        self.events.append("one begins")
        await shutdown.wait()
        self.events.append("one ends")

    @loop
    async def other(self, shutdown: asyncio.Event) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.events.append("other cancelled")
            raise


async def test_loops_run_after_the_start_and_until_shutdown(start: Start) -> None:
    agent = Looping()
    started = await start(agent)
    await started.handle.ping()
    await asyncio.sleep(0)
    assert agent.events == ["startup", "one begins"]
    await started.stop()
    assert agent.events[2:] == ["shutdown", "one ends", "other cancelled"]


async def test_a_loop_calls_others_through_the_agents_client(
    client: UserExchangeClient, start: Start
) -> None:
    class Asking(Recorder):
        def __init__(self, other: Handle[Recorder]) -> None:
            super().__init__()
            self.other = other

        @loop
        async def ask(self, shutdown: asyncio.Event) -> None:
            context = await self.other.who()
            self.events.append(str(context.source_id))
            self.agent_shutdown()

    other = await start(Recorder())
    agent = Asking(other.handle)
    await (await start(agent)).task
    assert agent.events == ["startup", "AgentId<agent>", "shutdown"]


class Failing(Recorder):
    """Its loops fail when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = asyncio.Event()

    @loop
    async def fail_once(self, shutdown: asyncio.Event) -> None:
        await self.release.wait()
        self.failed.set()
        raise KeyError("once")


class FailingTwice(Failing):
    @loop
    async def fail_too(self, shutdown: asyncio.Event) -> None:
        await self.release.wait()
        raise ValueError("too")


async def test_a_failing_loop_ends_its_agent_and_is_raised(
    client: UserExchangeClient, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Failing()
    agent.release.set()
    started = await start(agent, RuntimeConfig(terminate_on_success=False))
    with pytest.raises(KeyError, match="once") as caught:
        await started.task
    assert caught.value.__notes__ == ["Raised in loop fail_once of AgentId<agent>."]
    assert "loop fail_once of AgentId<agent> failed" in caplog.text
    assert agent.events == ["startup", "shutdown"]
    assert await status(client, started) is MailboxStatus.TERMINATED


async def test_several_failing_loops_are_raised_as_a_group(start: Start) -> None:
    agent = FailingTwice()
    agent.release.set()
    started = await start(agent)
    with pytest.raises(ExceptionGroup, match="AgentId<agent> failed") as caught:
        await started.task
    kinds = {type(error) for error in caught.value.exceptions}
    assert kinds == {KeyError, ValueError}


async def test_an_agent_may_go_on_without_a_loop_that_failed(start: Start) -> None:
    agent = Failing()
    agent.release.set()
    started = await start(agent, RuntimeConfig(shutdown_on_loop_error=False))
    await agent.failed.wait()
    assert await started.handle.echo(1) == 1
    started.runtime.signal_shutdown()
    with pytest.raises(KeyError, match="once"):
        await started.task


async def test_errors_of_loops_may_be_left_to_the_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Failing()
    agent.release.set()
    started = await start(agent, RuntimeConfig(raise_loop_errors_on_shutdown=False))
    await started.task
    assert "KeyError: 'once'" in caplog.text


async def test_an_agent_outlives_loops_that_return(start: Start) -> None:
    agent = Slow()
    agent.go.set()
    started = await start(agent)
    await started.handle.ping()
    await asyncio.sleep(0)
    assert agent.events == ["loop"]
    assert await started.handle.echo(1) == 1


async def test_a_loop_that_exits_ends_its_agent_and_nobody_else(start: Start) -> None:
    class Exiting(Recorder):
        @loop
        async def leave_all(self, shutdown: asyncio.Event) -> None:
            raise SystemExit

    started = await start(Exiting())
    with pytest.raises(RuntimeError, match="SystemExit"):
        await started.task


async def test_a_loop_that_cancels_itself_is_reported(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Cancelling(Recorder):
        @loop
        async def give_up(self, shutdown: asyncio.Event) -> None:
            raise asyncio.CancelledError

    started = await start(Cancelling())
    assert await started.handle.echo(1) == 1
    assert "loop give_up of AgentId<agent> cancelled itself" in caplog.text


async def test_events_and_timers_run_in_an_agent(start: Start) -> None:
    class Ticking(Recorder):
        @event("begun")
        async def on_begun(self) -> None:
            self.events.append("begun")
            self.agent_shutdown()

        @timer(0.001)
        async def tick(self) -> None:
            self.begun.set()

    agent = Ticking()
    await (await start(agent)).task
    assert "begun" in agent.events


async def test_an_event_that_is_missing_ends_the_agent(start: Start) -> None:
    class Wrong(Recorder):
        @event("missing")
        async def on_missing(self) -> None: ...

    with pytest.raises(AttributeError, match='"missing"'):
        await (await start(Wrong())).task


# --- configuration


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError, match="terminate_on_sucess"):
        RuntimeConfig(terminate_on_sucess=True)  # type: ignore[call-arg]


def test_no_thread_is_too_few() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        RuntimeConfig(max_sync_concurrency=0)


def test_the_defaults_are_as_documented() -> None:
    assert RuntimeConfig().model_dump() == {
        "cancel_actions_on_shutdown": True,
        "max_sync_concurrency": None,
        "raise_loop_errors_on_shutdown": True,
        "shutdown_on_loop_error": True,
        "terminate_on_error": True,
        "terminate_on_success": True,
        "default_serializer": None,
        "allowed_deserializers": None,
    }


async def test_an_agent_uses_and_accepts_the_configured_serializers(
    start: Start,
) -> None:
    class Looking(Recorder):
        @action
        async def look(self) -> Any:
            return default_serializer.get(), allowed_deserializers.get()

    config = RuntimeConfig(
        default_serializer="json",  # type: ignore[arg-type]  # as in a config file
        allowed_deserializers=["json"],  # type: ignore[arg-type]
    )
    started = await start(Looking(), config)
    handle: Handle[Any] = Handle(started.runtime.agent_id, request_serializer=JSON)
    assert await handle.look() == (JSON, frozenset({JSON}))
    assert default_serializer.get() is PICKLE
    with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
        await started.handle.look()


async def test_blocking_functions_run_in_threads(start: Start) -> None:
    class Blocking(Recorder):
        @action
        async def block(self) -> str:
            return await self.agent_run_sync(lambda: threading.current_thread().name)

    started = await start(Blocking(), RuntimeConfig(max_sync_concurrency=1))
    assert "AgentId<agent>" in await started.handle.block()


async def test_shutdown_waits_for_blocking_functions(start: Start) -> None:
    release = threading.Event()
    begun = threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        release.wait()
        done.append("work")

    class Blocking(Recorder):
        @action
        async def block(self) -> None:
            await self.agent_run_sync(work)

    started = await start(Blocking())
    call = asyncio.create_task(started.handle.block())
    await asyncio.to_thread(begun.wait)
    started.runtime.signal_shutdown()
    with pytest.raises(ActionCancelledError):
        await call
    assert not started.task.done()
    release.set()
    await started.task
    assert done == ["work"]


# --- agents alongside


class Parent(Recorder):
    @action
    async def launch(self, child: Any, **options: Any) -> Handle[Any]:
        return await self.agent_launch_alongside(child, **options)


async def test_a_child_runs_alongside_and_ends_with_its_parent(
    client: UserExchangeClient, start: Start
) -> None:
    child = Recorder()
    parent = await start(Parent())
    handle = await parent.handle.launch(child, name="child")
    assert str(handle.agent_id) == "AgentId<child>"
    assert await handle.echo(1) == 1
    assert not hasattr(handle, "typo")
    await parent.stop()
    assert child.events == ["startup", "shutdown"]
    assert await client.status(handle.agent_id) is MailboxStatus.TERMINATED


async def test_a_child_may_be_given_as_a_type_with_its_arguments(start: Start) -> None:
    class Counter(Agent):
        def __init__(self, start: int, *, step: int) -> None:
            self.value = start + step

        @action
        async def get(self) -> int:
            return self.value

    parent = await start(Parent())
    handle = await parent.handle.launch(Counter, args=(1,), kwargs={"step": 2})
    assert await handle.get() == 3
    with pytest.raises(TypeError, match="an instance of Counter was given"):
        await parent.handle.launch(Counter(1, step=2), args=(1,))


async def test_a_child_may_be_launched_in_the_parents_start(start: Start) -> None:
    class Early(Recorder):
        async def agent_on_startup(self) -> None:
            self.child = await self.agent_launch_alongside(Recorder)

        @action
        async def ask(self) -> Any:
            return await self.child.echo(1)

    assert await (await start(Early())).handle.ask() == 1


async def test_a_child_may_call_its_parent_while_both_shut_down(start: Start) -> None:
    class Child(Recorder):
        def __init__(self, parent: Handle[Parent]) -> None:
            super().__init__()
            self.parent = parent

        async def agent_on_shutdown(self) -> None:
            self.events.append(await self.parent.echo("parent serves"))

    parent = await start(Parent())
    child = Child(parent.handle)
    await (await parent.handle.launch(child)).ping()
    await parent.stop()
    assert child.events == ["startup", "parent serves"]


async def test_a_child_may_end_before_its_parent(
    client: UserExchangeClient, start: Start
) -> None:
    parent = await start(Parent())
    child = await parent.handle.launch(Recorder)
    await child.shutdown()
    await _terminated(client, child.agent_id)
    await parent.stop()


async def test_a_failing_child_is_an_error_of_its_parent(
    client: UserExchangeClient, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    agent = Failing()
    parent = await start(Parent())
    handle = await parent.handle.launch(agent)
    agent.release.set()
    await _terminated(client, handle.agent_id)
    assert await parent.handle.echo(1) == 1
    parent.runtime.signal_shutdown()
    with pytest.raises(KeyError, match="once"):
        await parent.task
    assert "Failing" in caplog.text


async def test_an_agent_that_shuts_down_launches_nothing(start: Start) -> None:
    class Late(Recorder):
        async def agent_on_shutdown(self) -> None:
            await self.agent_launch_alongside(Recorder)

    started = await start(Late())
    started.runtime.signal_shutdown()
    with pytest.raises(RuntimeError, match="shutting down and launches nothing"):
        await started.task


async def _terminated(client: UserExchangeClient, agent_id: AgentId[Any]) -> None:
    while await client.status(agent_id) is not MailboxStatus.TERMINATED:
        await asyncio.sleep(0)


async def test_a_child_that_comes_too_late_leaves_nothing(
    client: UserExchangeClient, start: Start
) -> None:
    class Hasty(Recorder):
        @action
        async def launch(self) -> None:
            self.agent_shutdown()
            await self.agent_launch_alongside(Recorder)

        @action
        async def race(self) -> None:
            launching = asyncio.create_task(self.agent_launch_alongside(Recorder))
            await asyncio.sleep(0)
            self.agent_shutdown()
            await launching

    for name in ("launch", "race"):
        started = await start(Hasty())
        with pytest.raises((RuntimeError, ActionCancelledError)):
            await started.handle.action(name)
        await started.task
    await asyncio.sleep(0)
    assert await client.discover(Recorder, allow_subclasses=False) == ()
