"""Actions that yield: every item arrives, once and in order, as fast as it is taken."""

from __future__ import annotations

import asyncio
import copy
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from academy.agent import Agent, action
from academy.context import ActionContext
from academy.exception import (
    ActionCancelledError,
    ExchangeError,
    MailboxFullError,
    ResultSerializationError,
)
from academy.exchange import (
    ExchangeClientConfig,
    ExchangeFactory,
    HttpExchangeFactory,
    LocalExchangeFactory,
    UserExchangeClient,
)
from academy.handle import Handle, ProxyHandle
from academy.handle.streams import Inlet
from academy.identifier import AgentId
from academy.manager import Manager
from academy.message import (
    STREAM_BYTES,
    STREAM_ITEMS,
    Message,
    PingRequest,
    StreamCredit,
    StreamItem,
    StreamRequest,
    UserErrorResponse,
)
from academy.runtime import Runtime
from academy.serialize import JSON, PICKLE, Payload

PING = PingRequest()


class Source(Agent):
    def __init__(self) -> None:
        self.yielded = 0
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    @action
    async def count(self, to: int, fail: bool = False) -> AsyncIterator[int]:
        """Count from 0."""
        try:
            for number in range(to):
                self.yielded = number + 1
                yield number
            if fail:
                raise KeyError("in mid-stream")
        finally:
            await asyncio.sleep(0)  # who cleans up may have to wait
            self.ended.set()

    @action
    async def arrays(self, size: int) -> AsyncIterator[Any]:
        for number in range(64):
            self.yielded = number + 1
            yield np.full(size, number, dtype=np.uint8)

    @action
    async def hang(self) -> AsyncIterator[int]:
        try:
            yield 0
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    @action
    async def functions(self) -> AsyncGenerator[Any, None]:
        yield 1
        yield lambda: (x for x in ())
        yield asyncio.get_running_loop()

    @action(context=True)
    async def callers(self, *, context: ActionContext) -> AsyncIterator[str]:
        yield str(context.source_id)

    @action
    async def count_by(self, handle: Handle[Source], to: int) -> list[int]:
        return [n async for n in handle.action(Source.count, to)]

    @action
    async def add(self, a: int, b: int) -> int:
        return a + b


async def take(
    items: AsyncIterator[Any],
    into: list[Any] | None = None,
    each: Callable[[], Awaitable[Any]] | None = None,
) -> list[Any]:
    """Take every item, and do something after each."""
    got = [] if into is None else into
    async for item in items:
        got.append(item)
        if each is not None:
            await each()
    return got


def count_request(to: int) -> StreamRequest:
    return StreamRequest("count", Payload(PICKLE, ((to,), {})))


def item(index: int) -> Message:
    body = StreamItem(index, Payload(PICKLE, index))
    return Message(AgentId.new(), AgentId.new(), b"", body)


class Running:
    """A source with its user's client and handles."""

    def __init__(self, runtime: Runtime[Source], client: UserExchangeClient) -> None:
        self.agent = runtime.agent
        self.client = client
        self.known: Handle[Source] = Handle._of(runtime.agent_id, Source)
        self.handle: Handle[Any] = Handle(runtime.agent_id)
        self.task = asyncio.create_task(runtime.run_until_complete())

    def is_clean(self) -> bool:
        """Whether the client remembers no call."""
        return not self.client._pending and not self.client._streams


@asynccontextmanager
async def running(factory: ExchangeFactory) -> AsyncIterator[Running]:
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(Source, name="source")
        runtime = Runtime(Source(), exchange_factory=factory, registration=registration)
        source = Running(runtime, client)
        yield source
        runtime.signal_shutdown()
        await source.task


@pytest.fixture(params=["local", "hosted"])
def factory(
    request: pytest.FixtureRequest, http_exchange: HttpExchangeFactory
) -> ExchangeFactory:
    return LocalExchangeFactory() if request.param == "local" else http_exchange


@pytest.fixture
async def source(factory: ExchangeFactory) -> AsyncIterator[Running]:
    async with running(factory) as source:
        yield source


async def test_every_item_arrives_once_in_order(source: Running) -> None:
    assert [n async for n in source.handle.count(1000)] == list(range(1000))
    by_method = source.known.action(Source.count, 3)
    assert [n async for n in by_method] == [0, 1, 2]
    assert [n async for n in source.handle.action("count", 0)] == []
    assert source.is_clean()


async def test_an_ordinary_action_is_a_coroutine_to_whoever_runs_it(
    source: Running,
) -> None:
    add = source.handle.add
    assert await add(1, 2) == 3
    assert await asyncio.create_task(add(1, 2)) == 3
    assert await asyncio.gather(add(1, 2), add(3, 4)) == [3, 7]
    assert await asyncio.wait_for(add(1, 2), 30) == 3
    async with asyncio.TaskGroup() as group:
        task = group.create_task(add(5, 6))
    assert task.result() == 11
    call = add(1, 2)
    assert asyncio.iscoroutine(call)
    call.close()


async def test_many_streams_and_calls_run_side_by_side(source: Running) -> None:
    async def counted(to: int) -> list[int]:
        return [n async for n in source.handle.count(to)]

    calls = [source.handle.add(n, n) for n in range(50)]
    *counts, sums = await asyncio.gather(
        *map(counted, range(100, 110)), asyncio.gather(*calls)
    )
    assert counts == [list(range(to)) for to in range(100, 110)]
    assert sums == [2 * n for n in range(50)]


async def test_an_agent_may_iterate_over_itself_and_be_asked_meanwhile(
    source: Running,
) -> None:
    assert await source.handle.count_by(source.handle, 100) == list(range(100))


async def test_a_generator_runs_no_further_than_its_caller_has_room(
    source: Running,
) -> None:
    async with aclosing(aiter(source.handle.count(10_000))) as items:
        assert await anext(items) == 0
        await source.handle.add(1, 1)  # behind the items that had room
        assert source.agent.yielded == STREAM_ITEMS
        for n in range(1, STREAM_ITEMS):
            assert await anext(items) == n
        await source.handle.add(1, 1)
        assert STREAM_ITEMS < source.agent.yielded <= 2 * STREAM_ITEMS


def with_config(factory: HttpExchangeFactory, **config: Any) -> HttpExchangeFactory:
    factory = copy.copy(factory)
    factory.client_config = ExchangeClientConfig(**config)
    return factory


@pytest.mark.parametrize("room", [1, 3, 100])
async def test_a_caller_chooses_how_many_items_are_on_their_way(
    http_exchange: HttpExchangeFactory, room: int
) -> None:
    factory = with_config(http_exchange, stream_items=room)
    async with running(factory) as source:
        async with aclosing(aiter(source.handle.count(10_000))) as items:
            assert await anext(items) == 0
            await source.handle.add(1, 1)
            # The first one was taken, and is told of at once if that is half of them.
            assert source.agent.yielded == (2 if room == 1 else room)
        assert await take(aiter(source.handle.count(250))) == list(range(250))


async def test_a_caller_chooses_how_many_bytes_are_on_their_way(
    http_exchange: HttpExchangeFactory,
) -> None:
    factory = with_config(http_exchange, stream_bytes=STREAM_BYTES * 4)
    async with (
        running(factory) as source,
        aclosing(aiter(source.handle.arrays(STREAM_BYTES))) as arrays,
    ):
        await anext(arrays)
        while source.agent.yielded < 4:
            await source.handle.add(1, 1)
        assert source.agent.yielded <= 5


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 2**32])
def test_no_room_for_items_is_refused_with_what_was_given(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"stream_items is at least 1.*not {wrong}"):
        ExchangeClientConfig(stream_items=wrong)
    with pytest.raises(ValueError, match="stream_bytes"):
        ExchangeClientConfig(stream_bytes=wrong)


async def test_large_items_take_more_room(http_exchange: HttpExchangeFactory) -> None:
    async with running(http_exchange) as source:
        got = []
        async for array in source.handle.arrays(STREAM_BYTES // 3):
            await source.handle.add(1, 1)
            assert source.agent.yielded <= len(got) + 4
            got.append(int(array[-1]))
        assert got == list(range(64))


async def test_strangers_add_no_items_to_a_stream_and_grant_it_no_room(
    source: Running, factory: ExchangeFactory
) -> None:
    stream = aiter(source.handle.count(1000))
    got = [await anext(stream)]
    await source.handle.ping()  # so all items are here for which there is room
    ((_, tag),) = source.client._streams
    me, agent_id = source.client.client_id, source.known.agent_id
    stranger = await factory.connect()
    source_id = stranger.mailbox_id
    item = StreamItem(STREAM_ITEMS, Payload(PICKLE, "forged"))
    await stranger.send(Message(source_id, me, tag, item))
    await stranger.send(Message(source_id, agent_id, tag, StreamCredit(1_000_000)))
    async with aclosing(stranger.listen()) as pongs:
        for dest in (me, agent_id):  # who have seen then what came before
            await stranger.send(Message.create(source_id, dest, PING))
            await anext(pongs)
    await stranger.close()

    assert source.agent.yielded <= STREAM_ITEMS + 1
    assert await take(stream, got) == list(range(1000))


async def test_an_error_comes_after_the_items_before_it(source: Running) -> None:
    got: list[int] = []
    with pytest.raises(KeyError, match="in mid-stream"):
        await take(source.handle.count(100, fail=True), got)
    assert got == list(range(100))
    assert source.is_clean()


@pytest.mark.parametrize("leave", ["break", "aclose", "forget", "cancel"])
async def test_who_leaves_early_ends_the_action_and_leaves_nothing(
    source: Running, leave: str
) -> None:
    items = source.handle.count(1_000_000)
    if leave == "break":
        async for n in items:
            if n == 40:
                break
        del items
    elif leave == "aclose":
        await anext(items)
        await items.aclose()
    elif leave == "forget":
        await anext(items)
        del items
        gc.collect()
    else:

        async def wait() -> None:
            async for _ in items:
                await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        while not source.agent.yielded:
            await source.handle.add(1, 1)
        task.cancel()
        await asyncio.wait([task])
        del items, task
    async with asyncio.timeout(30):
        await source.agent.ended.wait()
        assert await source.handle.add(1, 2) == 3
    assert source.is_clean()
    assert source.agent.yielded < 200


async def test_an_action_is_cancelled_while_its_caller_waits_for_an_item(
    source: Running,
) -> None:
    task = asyncio.create_task(take(source.handle.hang()))
    async with asyncio.timeout(30):
        await source.agent.begun.wait()
        task.cancel()
        await source.agent.ended.wait()
    assert source.is_clean()


async def test_a_stream_ends_with_an_error_when_its_agent_shuts_down(
    source: Running,
) -> None:
    with pytest.raises(ActionCancelledError, match='"hang"'):
        await take(source.handle.hang(), each=source.handle.shutdown)
    assert source.agent.ended.is_set()


async def test_a_stream_ends_with_an_error_when_its_client_closes(
    factory: ExchangeFactory,
) -> None:
    async with running(factory) as source:
        other = await factory.create_user_client()
        handle: Handle[Any] = Handle(
            source.handle.agent_id, exchange=other, ignore_context=True
        )
        with pytest.raises(ExchangeError, match="closed"):
            await take(handle.hang(), each=other.close)


@pytest.mark.parametrize("ended", [True, False])
async def test_a_stream_whose_caller_is_gone_is_given_up(ended: bool) -> None:
    config = ExchangeClientConfig(heartbeat_interval=0.01)
    factory = LocalExchangeFactory(config=config)
    async with running(factory) as source:
        other = await factory.create_user_client()
        handle: Handle[Any] = Handle(
            source.handle.agent_id, exchange=other, ignore_context=True
        )
        items = aiter(handle.count(1_000_000))
        assert await anext(items) == 0
        if ended:
            await other.close()
        else:
            # Nobody asks for items, and nobody has said farewell: it is waited for.
            await asyncio.sleep(0.2)
            assert not source.agent.ended.is_set()
            await other.retire()
        async with asyncio.timeout(30):
            await source.agent.ended.wait()
        await items.aclose()
        await other.close()


async def test_a_stream_into_a_full_mailbox_ends_with_an_error(
    source: Running,
) -> None:
    """Items are refused; what ends the stream is taken."""
    request = source.client.new_message(source.handle.agent_id, count_request(1000))
    got: list[Message] = []
    future = source.client.request_stream(request, got.append)
    while not got:
        await source.handle.add(1, 1)
    error = MailboxFullError(source.client.client_id, "9 messages")
    source.agent.agent_exchange_client.refused(got[0], error)
    async with asyncio.timeout(30):
        body = (await future).get_body()
        await source.agent.ended.wait()
    assert isinstance(body, UserErrorResponse)
    assert isinstance(body.get_exception(), MailboxFullError)
    source.client.forget(request)


async def test_items_that_never_come_end_a_stream_with_an_error(
    source: Running,
) -> None:
    inlet = Inlet(source.client, source.client.new_message(AgentId.new(), PING))
    inlet.take(item(0))
    inlet.take(item(2))
    assert inlet.next_item() is not None
    assert inlet.next_item() is None
    assert "items 1 to 1 were refused" in str(inlet.problem)


async def test_a_credit_that_was_refused_is_sent_again(
    factory: ExchangeFactory,
) -> None:
    async with (
        await factory.create_user_client() as client,
        await factory.create_user_client() as agent_side,
    ):
        agent = await agent_side.register_agent(Source)
        transport = await factory.connect(agent)
        request = client.new_message(agent.agent_id, count_request(1))
        inlet = Inlet(client, request)
        inlet.take(Message(client.client_id, agent.agent_id, b"", StreamCredit(0)))
        async with asyncio.timeout(30), aclosing(transport.listen()) as messages:
            message = await anext(messages)
        assert isinstance(message.get_body(), StreamCredit)
        assert message.tag == request.tag
        await transport.close()


async def test_what_is_awaited_or_iterated_wrongly_says_which_to_use(
    source: Running,
) -> None:
    for handle in (source.handle, source.known):
        with pytest.raises(TypeError, match=r"async for item in handle\.count\(\.\.\."):
            await handle.action("count", 3)
        with pytest.raises(TypeError, match=r"await handle\.add\(\.\.\.\)"):
            await take(handle.action("add", 1, 2))
    with pytest.raises(AttributeError, match=r'no action "cuont"\. Did you mean count'):
        await take(source.handle.cuont(1))
    assert source.is_clean()


async def test_an_item_that_does_not_cross_is_named(
    http_exchange: HttpExchangeFactory,
) -> None:
    async with running(http_exchange) as source:
        got: list[Any] = []
        with pytest.raises(ResultSerializationError, match='"functions"'):
            await take(source.handle.functions(), got)
        assert got[0] == 1
        assert len(got) == 2
        json: Handle[Any] = Handle(source.handle.agent_id, request_serializer=JSON)
        assert [n async for n in json.count(3)] == [0, 1, 2]


async def test_an_action_that_yields_gets_its_context(source: Running) -> None:
    assert [c async for c in source.handle.callers()] == [str(source.client.client_id)]


async def test_an_agent_describes_its_streams(source: Running) -> None:
    described = (await source.handle.agent_describe()).actions["count"]
    assert described.doc == "Count from 0."
    assert described.type_signature.endswith("-> AsyncIterator[int]")


async def test_an_agent_in_a_thread_streams_to_its_manager() -> None:
    """The local exchange lives in another event loop than the agent."""
    with ThreadPoolExecutor(1) as threads:
        factory = LocalExchangeFactory()
        async with await Manager.from_exchange_factory(factory, threads) as manager:
            handle = await manager.launch(Source)
            async with asyncio.timeout(60):
                assert [n async for n in handle.count(200)] == list(range(200))
                async with aclosing(aiter(handle.action("hang"))) as items:
                    assert await anext(items) == 0
                with pytest.raises(KeyError, match="in mid-stream"):
                    await take(handle.count(3, fail=True))


async def test_a_proxy_streams_as_well() -> None:
    agent = Source()
    proxy = ProxyHandle(agent)
    assert [n async for n in proxy.count(100)] == list(range(100))
    agent.ended.clear()
    async with aclosing(aiter(proxy.action("count", 100))) as items:
        assert await anext(items) == 0
    assert agent.ended.is_set()
    (caller,) = [c async for c in proxy.callers()]
    assert caller.startswith("UserId")
    with pytest.raises(TypeError, match="async for"):
        await proxy.action("count", 3)
    with pytest.raises(TypeError, match="await"):
        await take(proxy.action("add", 1, 2))


async def test_a_call_that_nobody_awaits_is_warned_of() -> None:
    proxy = ProxyHandle(Source())
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        proxy.action("add", 1, 2)
