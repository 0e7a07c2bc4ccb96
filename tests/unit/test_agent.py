"""Agents: what makes a method an action or a loop, and what an agent is by itself."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import cloudpickle
import pytest

from academy.agent import Agent, action, event, loop, timer
from academy.context import ActionContext
from academy.exception import AgentNotInitializedError
from academy.handle import Handle

if TYPE_CHECKING:
    from asyncio import Event  # what the test below is about


class Counter(Agent):
    """Counts.

    Slowly.
    """

    def __init__(self, start: int = 0) -> None:
        self.count = start

    @action
    async def add(self, amount: int, *, times: int = 1) -> int:
        """Add some."""
        self.count += amount * times
        return self.count

    @action(context=True)
    async def who(self, prefix: str = "", *, context: ActionContext) -> str:
        return f"{prefix}{context.source_id}"

    @action(idempotent=True)
    async def get(self) -> int:
        return self.count

    @loop
    async def run(self, shutdown: asyncio.Event) -> None:
        await shutdown.wait()

    async def helper(self) -> None: ...


class Silent(Counter):
    async def add(self, amount: int, *, times: int = 1) -> int:
        return amount

    @action
    async def more(self) -> None: ...


# --- the class


def test_the_base_class_cannot_be_instantiated() -> None:
    with pytest.raises(TypeError, match="base of agents"):
        Agent()


def test_a_subclass_need_not_call_super_init() -> None:
    assert Counter(3).count == 3
    with pytest.raises(AgentNotInitializedError):
        _ = Counter().agent_id


def test_a_subclass_may_call_super_init() -> None:
    class Polite(Agent):
        def __init__(self) -> None:
            super().__init__()

    Polite()


def test_surplus_arguments_are_refused() -> None:
    class Plain(Agent):
        pass

    with pytest.raises(TypeError, match="positional argument"):
        Plain(1)  # type: ignore[call-arg]  # the point


@pytest.mark.parametrize("hook", ["agent_on_startup", "agent_on_shutdown"])
def test_a_hook_that_is_not_a_coroutine_is_refused_at_class_creation(
    hook: str,
) -> None:
    with pytest.raises(TypeError, match=rf"Bad\.{hook} is not a coroutine"):
        type("Bad", (Agent,), {hook: lambda self: None})


def test_actions_and_loops_are_found_by_class() -> None:
    assert set(Counter._agent_actions()) == {"add", "agent_describe", "get", "who"}
    assert Counter._agent_loops() == ("run",)
    assert Counter._agent_actions()["who"].context
    assert Counter._agent_actions()["get"].idempotent
    assert not Counter._agent_actions()["add"].idempotent


def test_the_most_derived_method_decides_whether_it_is_an_action() -> None:
    assert set(Silent._agent_actions()) == {"agent_describe", "get", "more", "who"}


def test_an_action_of_a_mixin_is_an_action() -> None:
    class Mixin:
        @action
        async def mixed(self) -> None: ...

    class Mixed(Mixin, Agent):
        pass

    assert "mixed" in Mixed._agent_actions()


def test_members_are_collected_once_per_class() -> None:
    assert Counter._agent_actions() is Counter._agent_actions()
    assert Counter(1)._agent_action_names() is Counter(2)._agent_action_names()


def test_the_mro_names_classes_down_to_agent() -> None:
    assert Silent._agent_mro() == (f"{__name__}.Silent", f"{__name__}.Counter")


def test_a_class_that_goes_by_value_keeps_its_actions() -> None:
    class Local(Agent):
        @action
        async def f(self) -> int:
            return 1

        @loop
        async def g(self, shutdown: asyncio.Event) -> None: ...

    Local._agent_actions()
    copy = pickle.loads(cloudpickle.dumps(Local))
    assert "f" in copy._agent_actions()
    assert copy._agent_loops() == ("g",)


def test_an_agent_pickles() -> None:
    assert pickle.loads(pickle.dumps(Counter(4))).count == 4


# --- what only a running agent has


@pytest.mark.parametrize(
    "use",
    [
        lambda agent: agent.agent_context,
        lambda agent: agent.agent_id,
        lambda agent: agent.agent_exchange_client,
        lambda agent: agent.agent_shutdown(),
    ],
)
def test_an_agent_that_does_not_run_has_no_context(use: Callable[[Agent], Any]) -> None:
    with pytest.raises(AgentNotInitializedError):
        use(Counter())


async def test_an_agent_that_does_not_run_runs_nothing() -> None:
    with pytest.raises(AgentNotInitializedError):
        await Counter().agent_run_sync(print)
    with pytest.raises(AgentNotInitializedError):
        await Counter().agent_launch_alongside(Counter)


# --- actions


async def test_an_action_is_still_a_method() -> None:
    assert await Counter(1).add(2, times=3) == 7


def test_an_action_must_be_a_coroutine() -> None:
    def sync(self: Any) -> None: ...

    with pytest.raises(TypeError, match='Action method "sync" is not a coroutine'):
        action(sync)  # type: ignore[type-var]  # the point
    with pytest.raises(TypeError, match='Action method "sync" is not a coroutine'):
        action(context=True)(sync)  # type: ignore[type-var]  # the point


def test_a_context_action_must_accept_a_context() -> None:
    async def f(self: Any) -> None: ...

    with pytest.raises(TypeError, match='Action method "f" must accept a "context"'):
        action(context=True)(f)


def test_the_context_must_be_a_keyword_only_argument() -> None:
    async def f(self: Any, context: ActionContext) -> None: ...

    with pytest.raises(
        TypeError,
        match='The "context" argument to action method "f" must be a keyword only',
    ):
        action(context=True)(f)


@pytest.mark.parametrize(
    "name",
    ["action", "agent_id", "agent_stats", "agent_status", "ping", "shutdown"],
)
def test_a_name_of_a_handles_own_gives_a_warning(name: str) -> None:
    async def method(self: Any) -> None: ...

    method.__name__ = name
    with pytest.warns(UserWarning, match=f'"{name}".*Handle') as caught:
        action(method)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=f'"{name}".*Handle') as caught:
        action(idempotent=True)(method)
    assert caught[0].filename == __file__


def test_all_public_names_of_a_handle_are_protected() -> None:
    public = {name for name in dir(Handle) if not name.startswith("_")}
    assert public == {
        "action",
        "agent_id",
        "agent_stats",
        "agent_status",
        "ping",
        "shutdown",
        "with_timeout",
    }


def test_a_name_of_a_handles_own_may_be_allowed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Pinged(Agent):
            @action(allow_protected_name=True)
            async def ping(self) -> None: ...

    assert "ping" in Pinged._agent_actions()


# --- loops


def test_a_loop_may_spell_its_types_in_any_way() -> None:
    @loop
    async def one(self: Any, shutdown: asyncio.Event) -> None: ...

    @loop
    async def other(self: Any, shutdown: Event) -> None: ...


async def none_annotated(self: Any, shutdown: asyncio.Event): ...  # type: ignore[no-untyped-def]


async def not_annotated(self: Any, shutdown) -> None: ...  # type: ignore[no-untyped-def]


async def other_name(self: Any, stop: asyncio.Event) -> None: ...


async def no_event(self: Any) -> None: ...


async def too_much(self: Any, shutdown: asyncio.Event, more: int) -> None: ...


def no_coroutine(self: Any, shutdown: asyncio.Event) -> None: ...


@pytest.mark.parametrize(
    "method",
    [none_annotated, not_annotated, other_name, no_event, too_much, no_coroutine],
)
def test_a_loop_of_another_signature_is_refused(method: Any) -> None:
    name = method.__name__
    with pytest.raises(TypeError, match=f'^Signature of loop method "{name}"') as error:
        loop(method)
    assert "(self, shutdown: asyncio.Event) -> None" in str(error.value)


# --- events


class Doorbell(Agent):
    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self.answered = asyncio.Event()
        self.count = 0
        self.number = 5

    @event("rung")
    async def answer(self) -> None:
        """Open the door."""
        self.count += 1
        assert self.rung.is_set()
        self.answered.set()

    @event("missing")
    async def never(self) -> None: ...

    @event("number")
    async def wrong(self) -> None: ...


async def test_an_event_method_runs_each_time_its_event_is_set() -> None:
    bell, shutdown = Doorbell(), asyncio.Event()
    running = asyncio.create_task(bell.answer(shutdown))
    for count in (1, 2):
        bell.rung.set()
        await bell.answered.wait()
        bell.answered.clear()
        assert bell.count == count
    await asyncio.sleep(0)
    assert not bell.rung.is_set()
    shutdown.set()
    await running
    assert bell.count == 2


async def test_an_event_that_is_set_already_runs_its_method_at_once() -> None:
    bell, shutdown = Doorbell(), asyncio.Event()
    bell.rung.set()
    running = asyncio.create_task(bell.answer(shutdown))
    await bell.answered.wait()
    shutdown.set()
    await running


async def test_an_event_method_is_a_loop_that_keeps_its_name() -> None:
    assert set(Doorbell._agent_loops()) == {"answer", "never", "wrong"}
    assert (Doorbell.answer.__name__, Doorbell.answer.__doc__) == (
        "answer",
        "Open the door.",
    )


async def test_an_event_method_without_its_event_is_an_error() -> None:
    bell = Doorbell()
    with pytest.raises(AttributeError, match=r'"missing".*"never"'):
        await bell.never(asyncio.Event())
    with pytest.raises(TypeError, match=r'"number".*int, not\s+asyncio.Event'):
        await bell.wrong(asyncio.Event())


async def test_an_event_is_cleared_when_its_method_fails() -> None:
    class Failing(Agent):
        def __init__(self) -> None:
            self.rung = asyncio.Event()

        @event("rung")
        async def fail(self) -> None:
            raise KeyError("x")

    agent = Failing()
    agent.rung.set()
    with pytest.raises(KeyError):
        await agent.fail(asyncio.Event())
    assert not agent.rung.is_set()


def test_event_and_timer_methods_must_be_coroutines() -> None:
    def sync(self: Any) -> None: ...

    with pytest.raises(TypeError, match='Event method "sync" is not a coroutine'):
        event("x")(sync)  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match='Timer method "sync" is not a coroutine'):
        timer(1)(sync)  # type: ignore[arg-type]  # the point


# --- timers


async def test_a_timer_method_runs_at_its_interval_until_shutdown() -> None:
    times: list[float] = []
    shutdown = asyncio.Event()
    now = asyncio.get_running_loop().time

    class Clock(Agent):
        @timer(0.02)
        async def tick(self) -> None:
            times.append(now())
            if len(times) == 3:
                shutdown.set()

    started = now()
    await Clock().tick(shutdown)
    assert len(times) == 3
    assert times[0] - started >= 0.02
    assert times[2] - started >= 0.06


async def test_a_timer_takes_a_timedelta() -> None:
    shutdown = asyncio.Event()

    class Clock(Agent):
        @timer(timedelta(milliseconds=1))
        async def tick(self) -> None:
            shutdown.set()

    await Clock().tick(shutdown)
    assert Clock._agent_loops() == ("tick",)


async def test_a_timer_that_is_shut_down_does_not_wait_for_its_interval() -> None:
    class Clock(Agent):
        @timer(1000)
        async def tick(self) -> None:
            raise AssertionError

    shutdown = asyncio.Event()
    shutdown.set()
    await Clock().tick(shutdown)


@pytest.mark.parametrize("interval", [0, -1.5, timedelta(0)])
def test_an_interval_must_be_positive(interval: float | timedelta) -> None:
    with pytest.raises(ValueError, match="must be positive, not"):
        timer(interval)


# --- describing


async def test_an_agent_describes_itself() -> None:
    description = await Counter().agent_describe()
    assert description.description == "Counts.\n\nSlowly."
    assert set(description.actions) == {"add", "agent_describe", "get", "who"}
    add = description.actions["add"]
    assert (add.name, add.doc) == ("add", "Add some.")
    assert add.type_signature == "(amount: int, *, times: int = 1) -> int"
    assert description.actions["get"].doc is None


async def test_the_context_is_no_parameter_to_callers() -> None:
    description = await Counter().agent_describe()
    assert description.actions["who"].type_signature == "(prefix: str = '') -> str"


async def test_a_description_survives_pickling() -> None:
    description = await Counter().agent_describe()
    assert pickle.loads(pickle.dumps(description)) == description


async def test_an_agent_without_docstring_has_no_description() -> None:
    class Plain(Agent):
        pass

    assert (await Plain().agent_describe()).description is None
