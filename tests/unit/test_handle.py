"""Handles: values that call an agent's actions from wherever they are used."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import pickle
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from academy.agent import Agent, action
from academy.context import ActionContext
from academy.exception import (
    AcademyRemoteError,
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    AgentInactiveError,
    AgentTerminatedError,
    ExchangeClientNotFoundError,
    ExchangeError,
    PingCancelledError,
)
from academy.exchange.client import (
    AgentExchangeClient,
    UserExchangeClient,
)
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.local import LocalExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.handle import Handle, ProxyHandle
from academy.identifier import AgentId
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Message,
    PingRequest,
    Response,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy.serialize import JSON, PICKLE, Payload, default_serializer
from academy.stats import AgentStats


class Counter(Agent):
    def __init__(self) -> None:
        self.count = 0

    @action
    async def add(self, amount: int) -> int:
        self.count += amount
        return self.count

    @action
    async def fail(self) -> None:
        raise KeyError("x")

    @action(context=True)
    async def who(self, *, context: ActionContext) -> str:
        return str(context.source_id)

    async def helper(self) -> None: ...


AGENT: AgentId[Counter] = AgentId.new("alice")


class Mailbox:
    """An agent's side, answered by the test."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[Message] = asyncio.Queue()
        self.client: AgentExchangeClient
        self.user: UserExchangeClient
        self.handle: Handle[Counter]

    async def take(self, kind: type) -> Any:
        self.message = await self.requests.get()
        body = self.message.body
        assert type(body) is kind
        return body

    def answer(self, response: Response) -> None:
        self.client.post(self.message.create_response(response))


@asynccontextmanager
async def mailbox(
    config: ExchangeClientConfig | None = None, **options: Any
) -> AsyncIterator[Mailbox]:
    """Give the test an agent's mailbox, and a handle in a user's context."""
    box = Mailbox()
    factory = LocalExchangeFactory(config=config)
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Counter, name="alice")
        box.user = user
        box.client = await factory.create_agent_client(
            registration, box.requests.put_nowait
        )
        box.handle = Handle(registration.agent_id, **options)
        try:
            yield box
        finally:
            await box.client.close()


def asked(handle: Handle[Any], name: str, *args: Any, **kwargs: Any) -> Any:
    return asyncio.create_task(handle.action(name, *args, **kwargs))


# --- a value


def test_handles_are_equal_by_agent() -> None:
    options = {"request_serializer": JSON}
    assert Handle(AGENT) == Handle(AGENT, **options)  # type: ignore[arg-type]
    assert Handle(AGENT) != Handle(AgentId.new("alice"))
    assert Handle(AGENT) != AGENT
    assert {Handle(AGENT): 1}[Handle(AGENT)] == 1


def test_a_handle_says_whom_it_refers_to() -> None:
    assert repr(Handle(AGENT)) == "Handle(AgentId<alice>)"
    assert repr(Handle()) == "Handle(unbound)"


def test_a_handle_cannot_be_given_attributes() -> None:
    with pytest.raises(AttributeError):
        Handle(AGENT).color = "red"  # type: ignore[attr-defined]  # the point


def test_an_unbound_handle_refers_to_nobody() -> None:
    handle: Handle[Counter] = Handle()
    with pytest.raises(RuntimeError, match="not bound"):
        _ = handle.agent_id
    with pytest.raises(RuntimeError, match="not bound"):
        hash(handle)
    with pytest.raises(pickle.PicklingError, match="unbound"):
        pickle.dumps(handle)
    assert handle != Handle()
    assert handle == handle


async def test_an_unbound_handle_calls_nobody() -> None:
    async with mailbox():
        with pytest.raises(RuntimeError, match="not bound"):
            await Handle().add(1)
        with pytest.raises(RuntimeError, match="not bound"):
            await Handle().ping()


def test_a_handle_that_is_bound_later_is_as_any_other() -> None:
    handle: Handle[Counter] = Handle()
    handle._bind(AGENT)
    assert pickle.loads(pickle.dumps(handle)) == Handle(AGENT)


def test_a_handle_pickles_without_an_event_loop_and_unpickles_in_any_thread() -> None:
    data = pickle.dumps(
        Handle(
            AGENT,
            request_serializer=JSON,
            result_serializer=PICKLE,
            exception_serializer=JSON,
            polling_interval=3,
            reject_on_inactive=True,
        )
    )
    copies: list[Handle[Counter]] = []
    thread = threading.Thread(target=lambda: copies.append(pickle.loads(data)))
    thread.start()
    thread.join()
    (handle,) = copies
    assert handle == Handle(AGENT)
    assert handle.agent_id.name == "alice"
    assert (handle._request_serializer, handle._result_serializer) == (JSON, PICKLE)
    assert (handle._exception_serializer, handle._polling_interval) == (JSON, 3)
    assert handle._reject_on_inactive


def test_a_pickled_handle_is_small() -> None:
    assert len(pickle.dumps(Handle(AGENT))) < 100


def test_a_handle_may_be_copied() -> None:
    for copied in (copy.copy(Handle(AGENT)), copy.deepcopy([Handle(AGENT)])[0]):
        assert copied == Handle(AGENT)


async def test_a_pickled_handle_leaves_its_client_behind() -> None:
    async with mailbox() as box:
        handle: Handle[Counter] = Handle(AGENT, exchange=box.user)
        assert pickle.loads(pickle.dumps(handle))._exchange is None


async def test_a_pinned_handle_does_not_pickle() -> None:
    async with mailbox() as box:
        pinned: Handle[Counter] = Handle(AGENT, exchange=box.user, ignore_context=True)
        with pytest.raises(pickle.PicklingError, match="ignore_context"):
            pickle.dumps(pinned)


def test_a_pinned_handle_needs_a_client() -> None:
    with pytest.raises(ValueError, match="exchange="):
        Handle(AGENT, ignore_context=True)


# --- which client


async def test_without_a_client_there_is_an_error_that_says_where_to_get_one() -> None:
    handle: Handle[Counter] = Handle(AGENT)
    for use in (handle.add(1), handle.ping(), handle.shutdown(), handle.agent_stats()):
        with pytest.raises(ExchangeClientNotFoundError, match="AgentId<alice>"):
            await use


async def test_the_context_comes_before_the_given_client() -> None:
    async with mailbox() as box:
        other = await box.user.factory().create_user_client()
        handle: Handle[Counter] = Handle(box.handle.agent_id, exchange=other)
        call = asked(handle, "add", 1)
        await box.take(ActionRequest)
        assert box.message.src == box.user.client_id
        call.cancel()
        await other.close()


async def test_a_pinned_client_comes_before_the_context() -> None:
    async with mailbox() as box:
        other = await box.user.factory().create_user_client()
        handle: Handle[Counter] = Handle(
            box.handle.agent_id, exchange=other, ignore_context=True
        )
        call = asked(handle, "add", 1)
        await box.take(ActionRequest)
        assert box.message.src == other.client_id
        call.cancel()
        await asyncio.wait([call])
        await other.close()


async def test_the_given_client_is_used_where_the_context_has_none() -> None:
    async with mailbox() as box:
        handle: Handle[Counter] = Handle(box.handle.agent_id, exchange=box.user)
        call = contextvars.Context().run(asked, handle, "add", 1)
        await box.take(ActionRequest)
        box.answer(ActionResponse(Payload(PICKLE, 1)))
        assert await call == 1


# --- calls


async def test_a_call_sends_its_name_and_arguments_and_returns_the_result() -> None:
    async with mailbox() as box:
        call = asyncio.create_task(box.handle.add(1, times=2))
        request = await box.take(ActionRequest)
        assert request.action == "add"
        assert (request.get_args(), request.get_kwargs()) == ((1,), {"times": 2})
        box.answer(ActionResponse(Payload(PICKLE, "result")))
        assert await call == "result"


async def test_arguments_may_have_the_names_of_the_methods_own() -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add", action=1, self=2)
        request = await box.take(ActionRequest)
        assert request.get_kwargs() == {"action": 1, "self": 2}
        box.answer(ActionResponse(Payload(PICKLE)))
        assert await call is None


async def test_an_action_may_be_named_by_its_method() -> None:
    async with mailbox() as box:
        call = asyncio.create_task(box.handle.action(Counter.add, 1))
        request = await box.take(ActionRequest)
        assert (request.action, request.get_args()) == ("add", (1,))
        box.answer(ActionResponse(Payload(PICKLE, 5)))
        assert await call == 5


@pytest.mark.parametrize("method", [Counter.helper, len, 3])
async def test_a_method_that_is_no_action_is_refused(method: Any) -> None:
    with pytest.raises(TypeError, match=r"is not an action.*@action"):
        await Handle(AGENT).action(method)


async def test_the_strategies_are_those_of_the_handle() -> None:
    async with mailbox(
        request_serializer=JSON, result_serializer=PICKLE, exception_serializer=JSON
    ) as box:
        call = asked(box.handle, "add", 1)
        request = await box.take(ActionRequest)
        assert request.arguments.strategy is JSON
        assert (request.result_serialization, request.exception_serialization) == (
            PICKLE,
            JSON,
        )
        call.cancel()


async def test_the_default_strategy_is_that_of_the_context() -> None:
    async with mailbox() as box:
        token = default_serializer.set(JSON)
        call = asked(box.handle, "add", 1)
        request = await box.take(ActionRequest)
        default_serializer.reset(token)
        assert request.arguments.strategy is JSON
        assert request.result_serialization is None
        call.cancel()


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        AcademyRemoteError("text"),
        TimeoutError("remote"),
    ],
)
async def test_the_actions_own_exception_is_raised(error: Exception) -> None:
    async with mailbox() as box:
        call = asked(box.handle, "fail")
        await box.take(ActionRequest)
        box.answer(UserErrorResponse(Payload(PICKLE, error)))
        with pytest.raises(type(error)) as caught:
            await call
        assert caught.value.args == error.args


@pytest.mark.parametrize(
    "error",
    [
        ActionCancelledError("add"),
        ActionInterruptedError("add"),
        AgentTerminatedError(AGENT),
    ],
)
async def test_an_error_of_the_package_is_raised(error: Exception) -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add")
        await box.take(ActionRequest)
        response = AcademyErrorResponse.of(error)
        assert response is not None
        box.answer(response)
        with pytest.raises(type(error)) as caught:
            await call
        assert caught.value.args == error.args


async def test_an_answer_to_something_else_is_an_error() -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add")
        await box.take(ActionRequest)
        box.answer(SuccessResponse())
        with pytest.raises(ExchangeError, match="not an answer"):
            await call


async def test_a_terminated_agent_is_an_error() -> None:
    async with mailbox() as box:
        await box.user.terminate(box.handle.agent_id)
        for use in (box.handle.add(1), box.handle.ping(), box.handle.shutdown()):
            with pytest.raises(AgentTerminatedError):
                await use


async def test_a_call_of_a_client_that_closes_fails() -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add")
        await box.take(ActionRequest)
        await box.user.close()
        with pytest.raises(ExchangeError, match="closed"):
            await call


async def test_cancelling_the_caller_cancels_the_action() -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add")
        await box.take(ActionRequest)
        tag = box.message.tag
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        cancel = await box.take(CancelRequest)
        assert cancel.target == tag
        error = AcademyErrorResponse.of(ActionInvalidStateError())
        assert error is not None
        box.answer(error)
        assert not box.user._pending


async def test_a_call_that_is_answered_already_is_not_cancelled() -> None:
    async with mailbox() as box:
        call = asked(box.handle, "add")
        await box.take(ActionRequest)
        (future,) = box.user._pending.values()
        box.answer(ActionResponse(Payload(PICKLE, 1)))
        while not future.done():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await box.handle.shutdown()  # what comes next is no cancel request
        await box.take(ShutdownRequest)


async def test_a_timeout_of_the_caller_cancels_the_action() -> None:
    async with mailbox() as box:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await box.handle.add(1)
        await box.take(ActionRequest)
        await box.take(CancelRequest)


async def test_calls_of_one_handle_run_side_by_side() -> None:
    async with mailbox() as box:
        calls = [asked(box.handle, "add", n) for n in range(3)]
        taken = []
        for _ in calls:
            await box.take(ActionRequest)
            taken.append(box.message)
        for message in reversed(taken):
            box.message = message
            (n,) = message.body.get_args()  # type: ignore[union-attr]
            box.answer(ActionResponse(Payload(PICKLE, n * 10)))
        assert await asyncio.gather(*calls) == [0, 10, 20]


async def test_a_client_of_another_event_loop_is_refused() -> None:
    async with mailbox() as box:
        ping = asyncio.create_task(box.handle.ping())
        await box.take(PingRequest)
        box.answer(SuccessResponse())
        await ping
        call = box.handle.add(1)
        with pytest.raises(RuntimeError, match="run_coroutine_threadsafe"):
            await asyncio.to_thread(asyncio.run, call)


# --- attributes


@pytest.mark.parametrize("name", ["_private", "__len__", "_repr_html_"])
def test_a_name_with_an_underscore_is_never_an_action(name: str) -> None:
    assert not hasattr(Handle(AGENT), name)


def test_a_handle_that_knows_the_class_refuses_other_names_at_once() -> None:
    handle = Handle._of(AGENT, Counter)
    assert hasattr(handle, "add")
    assert hasattr(handle, "agent_describe")
    assert not hasattr(handle, "ad")
    assert not hasattr(handle, "helper")
    with pytest.raises(AttributeError, match=r'no action "ad"\. Did you mean add\?'):
        _ = handle.ad
    with pytest.raises(AttributeError, match="Its actions: add, fail, who"):
        _ = handle.zzzz


async def test_a_handle_that_knows_the_class_sends_no_other_name() -> None:
    handle = Handle._of(AGENT, Counter)
    with pytest.raises(AttributeError, match="Did you mean add"):
        await handle.action("ad")


def test_what_a_handle_knows_of_the_class_pickles() -> None:
    handle = pickle.loads(pickle.dumps(Handle._of(AGENT, Counter)))
    assert not hasattr(handle, "typo")


def test_a_handle_that_does_not_know_the_class_takes_any_name() -> None:
    assert hasattr(Handle(AGENT), "anything")


def test_an_attribute_is_a_coroutine_function() -> None:
    assert inspect.iscoroutinefunction(Handle(AGENT).add)


# --- ping, shutdown, status


async def test_a_ping_takes_the_time_it_takes() -> None:
    async with mailbox() as box:
        ping = asyncio.create_task(box.handle.ping(timeout=10))
        await box.take(PingRequest)
        box.answer(SuccessResponse())
        assert 0 < await ping < 10


async def test_a_ping_that_is_not_answered_in_time_is_an_error() -> None:
    async with mailbox() as box:
        with pytest.raises(TimeoutError, match=r"alice.* within 0\.01 seconds"):
            await box.handle.ping(timeout=0.01)
        assert not box.user._pending


async def test_a_ping_of_an_agent_that_never_starts_is_an_error() -> None:
    async with mailbox() as box:
        ping = asyncio.create_task(box.handle.ping())
        await box.take(PingRequest)
        error = AcademyErrorResponse.of(PingCancelledError("ended early"))
        assert error is not None
        box.answer(error)
        with pytest.raises(PingCancelledError, match="ended early"):
            await ping


@pytest.mark.parametrize("terminate", [None, True, False])
async def test_a_shutdown_is_only_sent(terminate: bool | None) -> None:
    async with mailbox() as box:
        await box.handle.shutdown(terminate=terminate)
        assert (await box.take(ShutdownRequest)).terminate is terminate


async def test_a_handle_tells_status_and_counts() -> None:
    async with mailbox() as box:
        assert await box.handle.agent_status() is MailboxStatus.ACTIVE
        assert isinstance(await box.handle.agent_stats(), AgentStats)
        await box.user.terminate(box.handle.agent_id)
        assert await box.handle.agent_status() is MailboxStatus.TERMINATED


# --- inactive agents


FAST = ExchangeClientConfig(heartbeat_interval=0.01, stale_heartbeat_threshold=1)


async def test_a_call_of_an_inactive_agent_is_rejected_when_wanted() -> None:
    async with mailbox(FAST, reject_on_inactive=True) as box:
        await box.client.close()
        async with asyncio.timeout(30):
            while await box.handle.agent_status() is not MailboxStatus.INACTIVE:
                await asyncio.sleep(0.01)
        with pytest.raises(AgentInactiveError, match="alice"):
            await box.handle.add(1)
        assert not box.user._pending


async def test_a_pending_call_is_rejected_once_the_agent_is_inactive() -> None:
    async with mailbox(FAST, reject_on_inactive=True) as box:
        call = asked(box.handle, "add", 1)
        await box.take(ActionRequest)
        await box.client.close()
        with pytest.raises(AgentInactiveError, match="alice"):
            await call
        assert not box.user._pending


async def test_an_active_agent_is_waited_for() -> None:
    async with mailbox(reject_on_inactive=True) as box:
        call = asked(box.handle, "add", 1)
        await box.take(ActionRequest)
        await asyncio.sleep(0.01)
        box.answer(ActionResponse(Payload(PICKLE, 2)))
        assert await call == 2


async def test_cancelling_a_watched_call_cancels_the_action() -> None:
    async with mailbox(reject_on_inactive=True) as box:
        call = asked(box.handle, "add", 1)
        await box.take(ActionRequest)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await box.take(CancelRequest)


# --- proxies


async def test_a_proxy_calls_a_local_agent() -> None:
    agent = Counter()
    proxy = ProxyHandle(agent)
    assert await proxy.add(2) == 2
    assert await proxy.action("add", 3) == 5
    assert await proxy.action(Counter.add, 4) == 9
    assert agent.count == 9
    assert proxy.agent is agent
    with pytest.raises(KeyError):
        await proxy.fail()


async def test_a_proxy_gives_an_action_its_context() -> None:
    assert (await ProxyHandle(Counter()).who()).startswith("UserId")


async def test_a_proxy_refuses_what_is_no_action() -> None:
    proxy = ProxyHandle(Counter())
    assert not hasattr(proxy, "helper")
    with pytest.raises(AttributeError, match='no action "helper"'):
        await proxy.action("helper")
    with pytest.raises(TypeError, match="is not an action"):
        await proxy.action(Counter.helper)


async def test_a_proxy_that_was_shut_down_is_terminated() -> None:
    proxy = ProxyHandle(Counter())
    assert await proxy.ping() == 0
    assert await proxy.agent_status() is MailboxStatus.ACTIVE
    await proxy.add(1)
    assert (await proxy.agent_stats()).completed == 1
    await proxy.shutdown()
    assert await proxy.agent_status() is MailboxStatus.TERMINATED
    uses: list[Callable[[], Any]] = [
        lambda: proxy.add(1),
        proxy.ping,
        proxy.shutdown,
    ]
    for use in uses:
        with pytest.raises(AgentTerminatedError):
            await use()


async def test_a_proxy_is_a_handle_that_pickles_with_its_agent() -> None:
    proxy = ProxyHandle(Counter())
    await proxy.add(1)
    assert isinstance(proxy, Handle)
    assert await pickle.loads(pickle.dumps(proxy)).add(1) == 2
