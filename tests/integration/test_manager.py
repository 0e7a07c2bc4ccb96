"""The manager: what it launches, what it refuses, and how it ends what it owns."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from academy.exception import AgentTerminatedError, BadEntityIdError, ExchangeError
from academy.exchange.client import UserExchangeClient
from academy.exchange.cloud import HttpExchangeFactory, spawn_http_exchange
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.identifier import AgentId
from academy.launch import AgentInterruptedError
from academy.manager import Manager
from academy.runtime import RuntimeConfig
from tests.support.executors import Recording
from tests.support.launchables import (
    Counter,
    Diary,
    Exits,
    FailingLoop,
    FailsAtFirst,
    Link,
    Stubborn,
)

KEEP = RuntimeConfig(terminate_on_error=False, terminate_on_success=False)


@pytest.fixture
async def client() -> AsyncIterator[UserExchangeClient]:
    client = await LocalExchangeFactory().create_user_client()
    yield client
    await client.close()


@pytest.fixture
async def manager(client: UserExchangeClient) -> AsyncIterator[Manager]:
    async with Manager(client) as manager:
        yield manager


# --- executors


async def test_agents_run_in_the_event_loop_unless_told_otherwise(
    manager: Manager,
) -> None:
    counter = await manager.launch(Counter)
    assert await counter.thread() == threading.current_thread().name


async def test_one_executor_is_the_default_and_named_default(
    client: UserExchangeClient,
) -> None:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as executor:
        async with Manager(client, executor) as manager:
            by_default = await manager.launch(Counter)
            by_name = await manager.launch(Counter, executor="default")
            assert (await by_default.thread()).startswith("mine")
            assert (await by_name.thread()).startswith("mine")


async def test_the_event_loop_is_always_there(client: UserExchangeClient) -> None:
    executors = {"threads": ThreadPoolExecutor(1), "here": None}
    async with Manager(client, executors, default_executor="threads") as manager:
        main = threading.current_thread().name
        for name in ("event_loop", "here"):
            counter = await manager.launch(Counter, executor=name)
            assert await counter.thread() == main
        assert await (await manager.launch(Counter)).thread() != main


@pytest.mark.parametrize("executors", [[], 3, {"a": 3}, {3: None}, "event_loop"])
async def test_what_is_no_executor_is_refused(
    client: UserExchangeClient, executors: Any
) -> None:
    with pytest.raises(ValueError, match="Invalid executors parameter"):
        Manager(client, executors)


async def test_an_unknown_default_executor_is_refused(
    client: UserExchangeClient,
) -> None:
    with pytest.raises(ValueError, match='No executor named "gpu"'):
        Manager(client, default_executor="gpu")


async def test_an_executor_can_be_added_once(manager: Manager) -> None:
    threads = ThreadPoolExecutor(1)
    assert manager.add_executor("threads", threads) is manager
    with pytest.raises(ValueError, match='named "threads" already exists'):
        manager.add_executor("threads", threads)
    with pytest.raises(ValueError, match="Invalid executors parameter"):
        manager.add_executor("other", 3)  # type: ignore[arg-type]  # that is the test
    counter = await manager.launch(Counter, executor="threads")
    assert await counter.thread() != threading.current_thread().name


async def test_the_default_executor_can_be_changed(manager: Manager) -> None:
    manager.add_executor("threads", ThreadPoolExecutor(1))
    assert manager.set_default_executor("threads") is manager
    counter = await manager.launch(Counter)
    assert await counter.thread() != threading.current_thread().name
    with pytest.raises(ValueError, match='An executor named "thread" does not exist'):
        manager.set_default_executor("thread")


async def test_more_agents_than_workers_is_worth_a_warning(manager: Manager) -> None:
    manager.add_executor("threads", ThreadPoolExecutor(1))
    await manager.launch(Counter, executor="threads")
    with pytest.warns(RuntimeWarning, match="Executor overload: .*1 workers for 2"):
        await manager.launch(Counter, executor="threads")


# --- what is refused before anything is registered


async def test_an_unknown_executor_names_the_known_ones(manager: Manager) -> None:
    manager.add_executor("gpu", ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match='No executor named "gup"') as caught:
        await manager.launch(Counter, executor="gup")
    assert 'Did you mean "gpu"? Known: event_loop, gpu.' in str(caught.value)
    assert await manager.exchange_client.discover(Counter) == ()


@pytest.mark.parametrize(
    ("agent", "options", "error", "words"),
    [
        (
            Counter,
            {"submit_kwargs": {"nodes": 2}},
            ValueError,
            "takes no submit_kwargs",
        ),
        (Counter, {"kwargs": {"stepp": 2}}, TypeError, "unexpected keyword.*'stepp'"),
        (Counter, {"args": (1, 2)}, TypeError, "too many positional"),
        (Counter(), {"args": (1,)}, TypeError, "args and kwargs are for a type"),
        (Counter, {"argz": (1,)}, TypeError, 'option "argz". Did you mean "args"'),
        (dict, {}, TypeError, "An Agent, or a subclass"),
        (None, {}, TypeError, "An Agent, or a subclass"),
    ],
)
async def test_a_launch_that_cannot_work_registers_nothing(
    manager: Manager,
    agent: Any,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await manager.launch(agent, **options)
    assert await manager.exchange_client.discover(Counter) == ()
    assert manager.running() == set()


async def test_submit_kwargs_that_an_executor_does_not_take_are_refused(
    manager: Manager,
) -> None:
    manager.add_executor("threads", ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="ThreadPoolExecutor takes no submit_kwargs"):
        await manager.launch(Counter, executor="threads", submit_kwargs={"nodes": 2})


async def test_the_local_exchange_does_not_reach_other_processes(
    manager: Manager,
) -> None:
    manager.add_executor("batch", Recording())
    with pytest.raises(pickle.PicklingError, match="HttpExchangeFactory"):
        await manager.launch(Counter, executor="batch")
    assert await manager.exchange_client.discover(Counter) == ()


async def test_an_argument_that_does_not_pickle_registers_nothing(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, Recording()
    ) as manager:
        with pytest.raises(pickle.PicklingError, match=r"args\[0\].*lock"):
            await manager.launch(Counter, args=(threading.Lock(),))
        assert await manager.exchange_client.discover(Counter) == ()


async def test_a_submission_that_fails_leaves_no_mailbox(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, Recording(refuse=0)
    ) as manager:
        with pytest.raises(OSError, match="the scheduler refuses"):
            await manager.launch(Counter)
        assert await manager.exchange_client.discover(Counter) == ()
        assert manager.running() == set()


# --- launching


async def test_a_type_is_made_with_its_arguments(manager: Manager) -> None:
    counter = await manager.launch(Counter, args=(10,), kwargs={"step": 5})
    assert await counter.add(2) == 20


async def test_an_instance_in_the_event_loop_is_the_instance_itself(
    manager: Manager,
) -> None:
    agent = Counter()
    counter = await manager.launch(agent, name="one")
    await counter.add(3)
    assert agent.value == 3
    assert counter.agent_id.name == "one"


async def test_a_handle_refuses_what_its_agent_does_not_have(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    with pytest.raises(AttributeError, match='no action "addd"'):
        await counter.addd(3)


async def test_a_handle_works_outside_of_the_managers_context(
    client: UserExchangeClient,
) -> None:
    manager = Manager(client)
    counter = await manager.launch(Counter)
    assert await counter.add(3) == 3
    await manager.close()


async def test_an_agent_calls_another_one_across_executors(manager: Manager) -> None:
    manager.add_executor("threads", ThreadPoolExecutor(2))
    last = await manager.launch(Link)
    middle = await manager.launch(Link, args=(last,), executor="threads")
    first = await manager.launch(Link, args=(middle,))
    other = await manager.launch(Link, args=(first,), executor="threads")
    assert await other.length() == 4


async def test_a_registration_is_launched_once(manager: Manager) -> None:
    registration = await manager.register_agent(Counter, name="early")
    early = manager.get_handle(registration)
    counter = await manager.launch(Counter, registration=registration)
    assert counter is early
    assert counter.agent_id == registration.agent_id
    with pytest.raises(RuntimeError, match="has already been executed"):
        await manager.launch(Counter, registration=registration)
    await manager.shutdown(counter)
    with pytest.raises(RuntimeError, match="has already been executed"):
        await manager.launch(Counter, registration=registration)


async def test_a_registration_whose_launch_fails_can_be_launched_again(
    manager: Manager,
) -> None:
    registration = await manager.register_agent(Counter)
    with pytest.raises(ValueError, match="No executor"):
        await manager.launch(Counter, registration=registration, executor="gpu")
    counter = await manager.launch(Counter, registration=registration)
    assert await counter.add() == 1


async def test_registrations_come_in_the_order_asked_for(manager: Manager) -> None:
    names = [f"agent-{i}" for i in range(20)]
    registrations = await manager.register_agents([(Counter, name) for name in names])
    assert [one.agent_id.name for one in registrations] == names


async def test_there_is_one_handle_per_agent(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    assert manager.get_handle(counter.agent_id) is counter
    stranger: AgentId[Any] = AgentId.new()
    assert manager.get_handle(stranger) is manager.get_handle(stranger)


async def test_a_manager_says_who_it_is(client: UserExchangeClient) -> None:
    manager = Manager(client)
    assert manager.exchange_client is client
    assert manager.user_id == client.client_id
    assert isinstance(manager.exchange_factory, LocalExchangeFactory)
    assert str(client.client_id) in repr(manager)
    await manager.close()


async def test_a_thousand_agents_share_an_event_loop(manager: Manager) -> None:
    async with manager.launch_batch() as batch:
        counters = [await batch.queue(Counter, args=(i,)) for i in range(1000)]
    values = await asyncio.gather(*(counter.add() for counter in counters))
    assert values == list(range(1, 1001))


# --- the end of one agent


async def test_a_shutdown_waits_for_the_end(manager: Manager, tmp_path: Path) -> None:
    diary = await manager.launch(Diary, args=(tmp_path / "diary",))
    assert manager.running() == {diary.agent_id}
    await manager.shutdown(diary)
    assert (tmp_path / "diary").read_text().split() == ["startup", "shutdown"]
    assert manager.running() == set()
    await manager.shutdown(diary.agent_id)  # nothing is left to do


async def test_a_shutdown_need_not_wait(manager: Manager) -> None:
    agent = Stubborn()
    stubborn = await manager.launch(agent)
    await manager.shutdown(stubborn, blocking=False)
    await agent.asked.wait()
    assert manager.running() == {stubborn.agent_id}
    agent.let_go.set()


async def test_a_shutdown_that_takes_too_long_says_so(manager: Manager) -> None:
    agent = Stubborn()
    stubborn = await manager.launch(agent, name="stubborn")
    with pytest.raises(TimeoutError, match="AgentId<stubborn>"):
        await manager.shutdown(stubborn, timeout=0.01)
    agent.let_go.set()
    await manager.wait([stubborn])


async def test_who_was_not_launched_here_cannot_be_shut_down(manager: Manager) -> None:
    stranger: AgentId[Any] = AgentId.new()
    with pytest.raises(BadEntityIdError):
        await manager.shutdown(stranger)
    with pytest.raises(BadEntityIdError):
        await manager.wait([stranger])


@pytest.mark.parametrize(
    ("config", "terminate", "status"),
    [
        (None, None, MailboxStatus.TERMINATED),
        (None, False, MailboxStatus.ACTIVE),
        (KEEP, None, MailboxStatus.ACTIVE),
        (KEEP, True, MailboxStatus.TERMINATED),
    ],
)
async def test_a_mailbox_ends_as_configured_or_asked(
    manager: Manager,
    config: RuntimeConfig | None,
    terminate: bool | None,
    status: MailboxStatus,
) -> None:
    counter = await manager.launch(Counter, config=config)
    await manager.shutdown(counter, terminate=terminate)
    assert await manager.exchange_client.status(counter.agent_id) is status


async def test_what_an_agent_failed_of_is_raised_when_asked_for(
    manager: Manager,
) -> None:
    failing = await manager.launch(FailingLoop)
    await manager.wait([failing])
    with pytest.raises(ZeroDivisionError, match="in the loop"):
        await manager.wait([failing], raise_error=True)
    with pytest.raises(ZeroDivisionError, match="in the loop"):
        await manager.shutdown(failing)
    await manager.shutdown(failing, raise_error=False)


async def test_failures_of_several_agents_come_as_a_group(manager: Manager) -> None:
    failing = [await manager.launch(FailingLoop) for _ in range(2)]
    with pytest.raises(ExceptionGroup) as caught:
        await manager.wait(failing, raise_error=True)
    assert len(caught.value.exceptions) == 2


async def test_waiting_for_the_first_leaves_the_others_alone(manager: Manager) -> None:
    agent = Stubborn()
    stubborn, counter = await manager.launch(agent), await manager.launch(Counter)
    await manager.shutdown(counter)
    await manager.wait(
        [stubborn, counter], raise_error=True, return_when=asyncio.FIRST_COMPLETED
    )
    assert manager.running() == {stubborn.agent_id}
    agent.let_go.set()


async def test_waiting_for_the_first_failure_ends_with_it(manager: Manager) -> None:
    counter, failing = await manager.launch(Counter), await manager.launch(FailingLoop)
    with pytest.raises(ZeroDivisionError):
        await manager.wait(
            {counter.agent_id, failing.agent_id},
            raise_error=True,
            return_when=asyncio.FIRST_EXCEPTION,
        )
    assert manager.running() == {counter.agent_id}


@pytest.mark.parametrize(
    "return_when",
    [asyncio.ALL_COMPLETED, asyncio.FIRST_COMPLETED, asyncio.FIRST_EXCEPTION],
)
async def test_a_wait_that_takes_too_long_names_who_is_late(
    manager: Manager, return_when: str
) -> None:
    counter = await manager.launch(Counter, name="late")
    with pytest.raises(TimeoutError, match="AgentId<late>"):
        await manager.wait([counter], return_when=return_when, timeout=0.01)


async def test_waiting_for_nobody_returns_at_once(manager: Manager) -> None:
    await manager.wait([])


async def test_an_agent_that_exits_while_it_is_made_takes_only_itself_along(
    manager: Manager,
) -> None:
    class ExitsAtOnce(Counter):
        def __init__(self) -> None:
            raise SystemExit(4)

    exiting, counter = await manager.launch(ExitsAtOnce), await manager.launch(Counter)
    with pytest.raises(AgentInterruptedError, match=r"SystemExit\(4\)"):
        await manager.wait([exiting], raise_error=True)
    assert await counter.add() == 1


async def test_an_agent_that_exits_takes_only_itself_along(manager: Manager) -> None:
    exiting, counter = await manager.launch(Exits), await manager.launch(Counter)
    with pytest.raises(Exception, match="cancelled"):
        await exiting.exit()
    with pytest.raises(RuntimeError, match=r"SystemExit\(3\)"):
        await manager.wait([exiting], raise_error=True)
    assert await counter.add() == 1


# --- the end of the manager


async def test_closing_raises_what_nobody_has_been_told(
    client: UserExchangeClient,
) -> None:
    manager = Manager(client, ThreadPoolExecutor(1), default_executor="event_loop")
    failing = [await manager.launch(FailingLoop, executor="event_loop") for _ in "ab"]
    await manager.wait(failing)
    with pytest.raises(ExceptionGroup, match="2 errors") as caught:
        await manager.close()
    assert {type(error) for error in caught.value.exceptions} == {ZeroDivisionError}
    await manager.close()  # told once


async def test_closing_does_not_raise_what_was_raised_before(
    client: UserExchangeClient,
) -> None:
    async with Manager(client) as manager:
        failing = await manager.launch(FailingLoop)
        with pytest.raises(ZeroDivisionError):
            await manager.wait([failing], raise_error=True)


async def test_everything_is_released_even_if_all_agents_fail(
    client: UserExchangeClient, tmp_path: Path
) -> None:
    executor = Recording()
    manager = Manager(client, {"batch": executor})
    await manager.launch(FailingLoop)
    with pytest.raises(ZeroDivisionError):
        await manager.close()
    assert executor.is_shut_down.is_set()
    with pytest.raises(ExchangeError, match="closed"):
        client.post(client.new_message(client.client_id, None))  # type: ignore[arg-type]  # refused before


async def test_an_executor_that_does_not_shut_down_keeps_no_other_from_it(
    client: UserExchangeClient,
) -> None:
    class Stuck(Recording):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            raise OSError("the scheduler is away")

    executor = Recording()
    manager = Manager(client, {"stuck": Stuck(), "batch": executor})
    with pytest.raises(OSError, match="the scheduler is away"):
        await manager.close()
    assert executor.is_shut_down.is_set()


async def test_the_exchange_client_can_outlive_the_manager(
    client: UserExchangeClient,
) -> None:
    async with Manager(client) as manager:
        await manager.launch(Counter)
        await manager.close(close_exchange=False)
    assert await client.status(client.client_id) is MailboxStatus.ACTIVE


async def test_a_closed_manager_launches_nothing(client: UserExchangeClient) -> None:
    manager = Manager(client)
    await manager.close(close_exchange=False)
    with pytest.raises(RuntimeError, match="is closed"):
        await manager.launch(Counter)
    assert await client.discover(Counter) == ()


async def test_an_error_of_the_body_is_not_hidden_by_one_of_an_agent(
    client: UserExchangeClient,
) -> None:
    async def body() -> None:
        async with Manager(client) as manager:
            await manager.wait([await manager.launch(FailingLoop)])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await body()


async def test_a_cancelled_body_ends_its_agents_in_order(
    client: UserExchangeClient, tmp_path: Path
) -> None:
    executor = Recording()
    running = asyncio.Event()

    async def body() -> None:
        async with Manager(client, {"batch": executor}) as manager:
            diary = await manager.launch(Diary, args=(tmp_path / "diary",))
            await diary.ping()
            running.set()
            await diary.wait()

    task = asyncio.create_task(body())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "diary").read_text().split() == ["startup", "shutdown"]
    assert executor.is_shut_down.is_set()


async def test_a_second_cancellation_stops_waiting_for_agents(
    client: UserExchangeClient,
) -> None:
    agent, executor = Stubborn(), Recording()
    running = asyncio.Event()

    async def body() -> None:
        async with Manager(client, {"batch": executor}) as manager:
            await (await manager.launch(agent)).ping()
            running.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await running.wait()
    task.cancel()
    await agent.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert executor.is_shut_down.is_set()


async def test_a_factory_keeps_no_client_for_a_manager_that_cannot_be_made() -> None:
    factory = LocalExchangeFactory()
    made = []

    class Counting(LocalExchangeFactory):
        async def create_user_client(
            self, name: str | None = None, start_listener: bool = True
        ) -> UserExchangeClient:
            made.append(await factory.create_user_client(name, start_listener))
            return made[-1]

    with pytest.raises(ValueError, match="max_retries"):
        await Manager.from_exchange_factory(Counting(), max_retries=-1)
    with pytest.raises(ExchangeError, match="closed"):
        made[0].post(made[0].new_message(made[0].client_id, None))  # type: ignore[arg-type]  # refused before


async def test_an_agent_that_has_not_begun_is_withdrawn_at_the_end(
    client: UserExchangeClient, tmp_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    threads = ThreadPoolExecutor(1)
    threads.submit(lambda: (begun.set(), go_on.wait()))
    manager = Manager(client, threads)
    diary = await manager.launch(Diary, args=(tmp_path / "diary",))
    await asyncio.to_thread(begun.wait)
    await manager.shutdown(diary)
    assert await client.status(diary.agent_id) is MailboxStatus.TERMINATED
    assert not (tmp_path / "diary").exists()
    go_on.set()
    await manager.close()


async def test_a_run_that_its_executor_cancels_is_a_failure(
    http_exchange: HttpExchangeFactory,
) -> None:
    executor = Recording()
    async with await Manager.from_exchange_factory(
        http_exchange, {"batch": executor}
    ) as manager:
        counter = await manager.launch(Counter, executor="batch", name="one")
        executor.submitted[0].cancel()
        with pytest.raises(Exception, match='"batch" cancelled AgentId<one> before'):
            await manager.wait([counter], raise_error=True)


# --- other processes


async def test_an_agent_in_another_process_is_called_like_any_other(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1)
    ) as manager:
        counter = await manager.launch(Counter, args=(1,))
        assert await counter.add(2) == 3
        assert await counter.pid() != os.getpid()
        await manager.shutdown(counter)
        with pytest.raises(AgentTerminatedError):
            await counter.add()


async def test_what_an_agent_failed_of_comes_back_from_another_process(
    http_exchange: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1)
    ) as manager:
        failing = await manager.launch(FailsAtFirst, args=(tmp_path / "diary", 1))
        with pytest.raises(RuntimeError, match="failure 1"):
            await manager.wait([failing], raise_error=True)


async def test_nobody_waits_for_an_agent_whose_process_was_killed(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, {"pool": ProcessPoolExecutor(1)}, default_executor="pool"
    ) as manager:
        counter = await manager.launch(Counter)
        with pytest.raises(AgentTerminatedError):
            await counter.kill()
        with pytest.raises(BrokenProcessPool):
            await manager.wait([counter], raise_error=True)
        with pytest.raises(BrokenProcessPool, match=r'"pool" is broken.*add_executor'):
            await manager.launch(Counter)


async def test_an_agent_whose_mailbox_is_to_stay_can_be_launched_elsewhere(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with await Manager.from_exchange_factory(
        http_exchange, ProcessPoolExecutor(1)
    ) as manager:
        registration = await manager.register_agent(Counter)
        counter = await manager.launch(Counter, config=KEEP, registration=registration)
        await counter.ping()
        call = asyncio.create_task(counter.kill())
        with pytest.raises(BrokenProcessPool):
            await manager.wait([counter], raise_error=True)
        async with await Manager.from_exchange_factory(http_exchange) as other:
            again = await other.launch(Counter, registration=registration)
            assert await again.add() == 1
        with pytest.raises(Exception, match="interrupted"):
            await call


async def test_a_run_may_end_while_the_manager_closes(
    http_exchange: HttpExchangeFactory,
) -> None:
    executor = Recording()
    manager = await Manager.from_exchange_factory(http_exchange, executor)
    await manager.launch(Counter)
    closing = asyncio.create_task(manager.close())
    await asyncio.sleep(0)
    executor.submitted[0].set_result(None)
    await closing


@pytest.mark.slow
async def test_an_exchange_that_is_gone_does_not_keep_a_manager_from_closing() -> None:
    executor = Recording()
    with spawn_http_exchange() as factory:
        manager = await Manager.from_exchange_factory(factory, {"batch": executor})
        here = await manager.launch(Counter)
        there = await manager.launch(Counter, executor="batch")
        await here.ping()
    with pytest.raises(ExceptionGroup) as caught:
        await manager.close()
    assert executor.is_shut_down.is_set()
    words = [str(error) for error in caught.value.exceptions]
    for handle in (here, there):
        assert any(
            f"{handle.agent_id} could not be asked to shut down" in word
            for word in words
        )
