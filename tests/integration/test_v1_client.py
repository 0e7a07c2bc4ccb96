"""Our programs and agents at an exchange that speaks protocol v1 only."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from academy.agent import Agent, action
from academy.exception import (
    ActionCancelledError,
    AgentTerminatedError,
    ExchangeConnectionError,
    ForbiddenError,
    MessageTooLargeError,
    StreamsUnsupportedError,
    UnauthorizedError,
)
from academy.exchange import (
    ExchangeClientConfig,
    HttpExchangeFactory,
    MailboxStatus,
)
from academy.exchange.presence import PresenceState
from academy.manager import Manager
from academy.message import ActionRequest, Message
from tests.support import v1_server
from tests.support.agents import Adder
from tests.support.server import ExchangeServer
from tests.support.v1_peer import V1Client, action as v1_action, entity, result_of
from tests.support.watcher import Watcher


class Worker(Agent):
    """What is called through a v1 exchange."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.cancelled = asyncio.Event()

    @action
    async def number(self, n: int) -> int:
        self.seen.append(n)
        return n

    @action
    async def all_numbers(self) -> list[int]:
        return self.seen

    @action
    async def fail(self) -> None:
        raise KeyError("no such isotope")

    @action
    async def stream(self) -> AsyncIterator[int]:
        yield 1

    @action
    async def large(self, size: int) -> bytes:
        return bytes(size)

    @action
    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    @action
    async def until_cancelled(self) -> None:
        await self.cancelled.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An exchange that speaks v1 only."""
    with v1_server.running() as url:
        yield url


@contextlib.asynccontextmanager
async def worker(factory: HttpExchangeFactory) -> AsyncIterator[Any]:
    async with await Manager.from_exchange_factory(factory) as manager:
        yield await manager.launch(Worker())


async def test_agents_are_launched_called_and_ended(url: str) -> None:
    factory = HttpExchangeFactory(url)
    async with await Manager.from_exchange_factory(factory) as manager:
        handle = await manager.launch(Worker(), name="worker")
        assert await asyncio.gather(*(handle.number(n) for n in range(50))) == list(
            range(50)
        )
        assert await handle.all_numbers() == list(range(50))
        assert await handle.ping() > 0
        with pytest.raises(KeyError, match="no such isotope"):
            await handle.fail()
        with pytest.raises(StreamsUnsupportedError, match="protocol v1"):
            await anext(handle.stream())
        (found,) = await manager.exchange_client.discover(Worker)
        assert found == handle.agent_id
        await manager.shutdown(handle, terminate=True)
        with pytest.raises(AgentTerminatedError):
            await handle.number(1)
    assert factory.speaks_v1


async def test_an_agent_in_another_process_uses_v1_at_once(url: str) -> None:
    pool = ProcessPoolExecutor(1)
    async with await Manager.from_exchange_factory(
        HttpExchangeFactory(url), pool
    ) as manager:
        sent = pickle.loads(pickle.dumps(manager.exchange_factory))
        assert sent.speaks_v1
        handle = await manager.launch(Worker)
        assert await handle.number(7) == 7


async def test_a_call_that_is_given_up_is_cancelled_at_the_agent(url: str) -> None:
    async with worker(HttpExchangeFactory(url)) as handle:
        hanging = asyncio.create_task(handle.hang())
        await handle.ping()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await handle.until_cancelled()


async def test_a_shutdown_answers_what_runs(url: str) -> None:
    async with await Manager.from_exchange_factory(HttpExchangeFactory(url)) as manager:
        handle = await manager.launch(Worker())
        hanging = asyncio.create_task(handle.hang())
        await handle.ping()
        await manager.shutdown(handle, terminate=True)
        with pytest.raises((ActionCancelledError, AgentTerminatedError)):
            await hanging


async def test_what_is_too_large_fails_at_its_sender_and_a_result_at_its_caller(
    url: str,
) -> None:
    async with worker(HttpExchangeFactory(url)) as handle:
        with pytest.raises(MessageTooLargeError, match="524288"):
            await handle.number(bytes(600_000))
        with pytest.raises(MessageTooLargeError, match="524288"):
            await handle.large(600_000)
        assert len(await handle.large(100_000)) == 100_000


async def test_trouble_neither_loses_a_call_nor_runs_one_twice() -> None:
    """Each ninth request is refused for now, and each ninth answer is lost."""
    with v1_server.running("--trouble", "9", "--listen-timeout", "0.3") as url:
        async with worker(HttpExchangeFactory(url)) as handle:
            for batch in range(0, 200, 50):
                numbers = range(batch, batch + 50)
                assert await asyncio.gather(*map(handle.number, numbers)) == list(
                    numbers
                )
            assert await handle.all_numbers() == list(range(200))


async def test_a_token_is_shown_by_programs_and_their_agents() -> None:
    with v1_server.running("--token", "secret") as url:
        with pytest.raises(UnauthorizedError):
            await HttpExchangeFactory(url).create_user_client()
        with pytest.raises((ForbiddenError, UnauthorizedError)):
            await HttpExchangeFactory(url, token="wrong").create_user_client()
        factory = HttpExchangeFactory(f"{url}/", token="secret")
        async with await Manager.from_exchange_factory(
            factory, ProcessPoolExecutor(1)
        ) as manager:
            handle = await manager.launch(Worker)
            assert await handle.number(7) == 7


async def test_requests_that_an_agent_did_not_begin_are_for_the_next(url: str) -> None:
    factory = HttpExchangeFactory(url)
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        sender = await factory.connect()
        first = await factory.connect(registration)
        for n in range(3):
            body = ActionRequest.of("add", [n])
            await sender.send(_message(sender, registration.agent_id, body))
        async with asyncio.timeout(30):
            got = [await anext(first.listen()) for _ in range(3)]
        for request in got[1:]:
            first.release(request)
        await first.close()

        second = await factory.connect(registration)
        async with asyncio.timeout(30):
            again = [await anext(second.listen()) for _ in range(2)]
        await second.close()
        await sender.close()

    assert [m.tag for m in again] == [m.tag for m in got[1:]]


def _message(transport: Any, dest: Any, body: Any) -> Any:
    return Message.create(transport.mailbox_id, dest, body)


async def test_a_watcher_learns_by_heartbeats_who_comes_and_goes(url: str) -> None:
    config = ExchangeClientConfig(heartbeat_interval=0.1)
    factory = HttpExchangeFactory(url, config=config)
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        watcher = Watcher()
        await user.watch([registration.agent_id], watcher)
        assert watcher.states(registration.agent_id) == [PresenceState.REGISTERED]
        agent = await factory.connect(registration)
        await watcher.until(registration.agent_id, PresenceState.ATTACHED)
        assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE
        await agent.close()
        await watcher.until(registration.agent_id, PresenceState.GONE)
        assert await user.status(registration.agent_id) is MailboxStatus.INACTIVE
        again = await factory.connect(registration)
        back = await watcher.until(registration.agent_id, PresenceState.ATTACHED)
        assert back.epoch == 2
        await again.close()
        await user.terminate(registration.agent_id)
        await watcher.until(registration.agent_id, PresenceState.TERMINATED)


async def test_a_v1_program_and_ours_meet_at_a_v1_exchange(url: str) -> None:
    async with (
        worker(HttpExchangeFactory(url)) as handle,
        V1Client(url, entity("user")) as client,
    ):
        await client.register()
        dest = {"uid": str(handle.agent_id.uid), "name": None, "role": "agent"}
        answer = await client.call(v1_action(client.me, dest, "number", 7))
        assert result_of(answer) == 7


class _Pages(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


async def test_something_else_at_the_address_is_named_as_such() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Pages)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        factory = HttpExchangeFactory(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ExchangeConnectionError, match="not an exchange"):
            await factory.create_user_client()
        assert not factory.speaks_v1
    finally:
        await asyncio.to_thread(server.shutdown)
        serving.join()
        server.server_close()


async def test_an_exchange_that_stays_away_fails_calls() -> None:
    with v1_server.running() as url:
        factory = HttpExchangeFactory(url, reconnect_timeout_s=0.2)
        client = await factory.create_user_client()
    with pytest.raises(ExchangeConnectionError):
        await client.status(client.client_id)
    await client.close()


async def test_calls_over_v1_survive_a_killed_exchange_of_ours(tmp_path: Path) -> None:
    """Each is executed once, and answered."""
    with ExchangeServer(tmp_path) as exchange:
        factory = exchange.factory()
        factory.url += "/v1"  # where there is no newer protocol
        async with worker(factory) as handle:
            calls = [asyncio.create_task(handle.number(n)) for n in range(150)]
            await calls[50]
            await exchange.restart()
            assert await asyncio.gather(*calls) == list(range(150))
            assert await handle.all_numbers() == list(range(150))
        assert factory.speaks_v1


async def test_calls_over_v1_follow_an_exchange_that_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_HOME", str(tmp_path / "home"))
    with contextlib.ExitStack() as exchanges:
        first = exchanges.enter_context(ExchangeServer(tmp_path, name="campaign"))
        factory = first.factory()
        factory.url += "/v1"  # where there is no newer protocol
        async with worker(factory) as handle:
            calls = [asyncio.create_task(handle.number(n)) for n in range(150)]
            await calls[50]
            await asyncio.to_thread(first.stop)
            second = ExchangeServer(tmp_path, name="campaign")
            await asyncio.to_thread(exchanges.enter_context, second)
            assert await asyncio.gather(*calls) == list(range(150))
            assert await handle.all_numbers() == list(range(150))
        assert factory.address == f"{second.url}/v1"
