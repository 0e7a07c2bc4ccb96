"""Ten minutes of everything at once: a server's memory, files and tasks stay.

`SOAK_SECONDS=60 make test ARGS="-m soak tests/integration/test_soak.py"` takes less.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from academy.exception import MailboxFullError
from academy.exchange import AgentRegistration, UserExchangeClient
from academy.message import ActionRequest, ActionResponse, Message
from academy.serialize import PICKLE, Payload
from tests.support.agents import Adder
from tests.support.calls import call
from tests.support.server import ExchangeServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.watched_exchange import TASKS

SECONDS = float(os.environ.get("SOAK_SECONDS", 600))
SAMPLES = 60
GROWTH = 8_000_000
"""Bytes by which a server may grow, by a straight line through the second half."""
LIMITS = {
    "max_mailbox_messages": 500,
    "max_mailbox_bytes": 20_000_000,
    "tombstone_lifetime": 20,
}
SIZES = [10] * 30 + [10_000] * 10 + [1_000_000]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 300)]


class Sample(NamedTuple):
    """What a server holds at a moment."""

    at: float
    rss: int
    files: int
    tasks: int


class Soak:
    """A server, and what keeps it busy until it is over."""

    def __init__(self, server: ExchangeServer, proxy: TcpProxy, tasks: Path) -> None:
        self.server = server
        self.done: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.over = asyncio.Event()
        self.proxy = proxy
        self.dice = random.Random(1)
        self._tasks = tasks
        self._process = psutil.Process(server.pid)
        self._names = itertools.count()

    async def client(self) -> UserExchangeClient:
        """Connect a program of its own."""
        headers = {"X-Name": str(next(self._names))}
        factory = self.server.factory(self.proxy.port, additional_headers=headers)
        return await factory.create_user_client()

    async def agent(self, registration: AgentRegistration[Any]) -> Any:
        """Run an agent of its own that answers with what it was sent."""
        headers = {"X-Name": str(next(self._names))}
        factory = self.server.factory(self.proxy.port, additional_headers=headers)
        client: Any = None

        def answer(message: Message) -> None:
            body = message.get_body()
            assert isinstance(body, ActionRequest)
            result = ActionResponse(Payload(PICKLE, body.get_args()[-1]))
            client.post(message.create_response(result))

        client = await factory.create_agent_client(registration, answer)
        return client

    async def sample(self) -> Sample:
        """Look at the server."""
        self._tasks.unlink(missing_ok=True)
        os.kill(self.server.pid, signal.SIGUSR1)
        while not self._tasks.exists():
            await asyncio.sleep(0.01)
        return Sample(
            asyncio.get_running_loop().time(),
            self._process.memory_info().rss,
            self._process.num_fds(),
            int(self._tasks.read_text()),
        )

    async def watch(self) -> None:
        """Look at the server again and again."""
        for _ in range(SAMPLES):
            await asyncio.sleep(SECONDS / SAMPLES)
            self.samples.append(await self.sample())
        self.over.set()

    # --- what goes on all the time

    async def calls(self) -> None:
        """Messages large and small, some at a time, between programs that stay."""
        user = await self.client()
        registration = await user.register_agent(Adder)
        agent = await self.agent(registration)
        window = asyncio.Semaphore(16)

        def ended(future: asyncio.Future[Message]) -> None:
            window.release()
            self.done["calls"] += not future.cancelled() and not future.exception()

        while not self.over.is_set():
            await window.acquire()
            blob = bytes(self.dice.choice(SIZES))
            call(user, registration.agent_id, blob).add_done_callback(ended)
            await asyncio.sleep(0.002)
        await user.terminate(registration.agent_id)
        await agent.close()
        await user.close()

    async def visits(self) -> None:
        """Programs that come, register an agent, call it, end it, and go."""
        while not self.over.is_set():
            async with await self.client() as user:
                registration = await user.register_agent(Adder)
                agent = await self.agent(registration)
                await call(user, registration.agent_id, b"once")
                await user.terminate(registration.agent_id)
                refused = call(user, registration.agent_id, b"too late")
                await asyncio.wait([refused])
                assert refused.exception() is not None
                await agent.close()
            self.done["visits"] += 1

    async def slow_consumer(self) -> None:
        """A mailbox that is always full, since its owner takes one at a time."""
        user = await self.client()
        registration = await user.register_agent(Adder)
        headers = {"X-Name": str(next(self._names))}
        factory = self.server.factory(self.proxy.port, additional_headers=headers)
        slow = await factory.connect(registration)
        reading = asyncio.create_task(self._read_slowly(slow))
        while not self.over.is_set():
            body = ActionRequest.of("add", [bytes(self.dice.choice(SIZES))])
            try:
                await user.send(user.new_message(registration.agent_id, body))
            except MailboxFullError:
                self.done["refusals"] += 1
                await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.wait([reading])
        await user.terminate(registration.agent_id)
        await slow.close()
        await user.close()

    async def _read_slowly(self, transport: Any) -> None:
        async for message in transport.listen():
            self.done["slowly read"] += 1
            result = ActionResponse(Payload(PICKLE, None))
            transport.post(message.create_response(result))
            await asyncio.sleep(0.05)

    async def cuts(self) -> None:
        """A network that breaks every few seconds."""
        while not self.over.is_set():
            await asyncio.sleep(self.dice.uniform(1, 5))
            self.done["cuts"] += self.proxy.cut()

    # --- the verdict

    def slope(self) -> float:
        """Return how fast the server grew in the second half, in bytes per second."""
        late = self.samples[len(self.samples) // 2 :]
        line = statistics.linear_regression([s.at for s in late], [s.rss for s in late])
        return line.slope


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ExchangeServer]:
    server = ExchangeServer(tmp_path / "exchange", limits=LIMITS)
    server.module = "tests.support.watched_exchange"
    server.environment[TASKS] = str(tmp_path / "tasks")
    with server:
        yield server


async def test_memory_files_and_tasks_stay(
    server: ExchangeServer, tmp_path: Path
) -> None:
    async with TcpProxy(server.port) as proxy:
        soak = Soak(server, proxy, tmp_path / "tasks")
        before = await soak.sample()
        loads: list[Callable[[], Awaitable[None]]] = [
            *([soak.calls] * 3),
            *([soak.visits] * 2),
            soak.slow_consumer,
            soak.cuts,
            soak.watch,
        ]
        async with asyncio.TaskGroup() as group:
            for load in loads:
                group.create_task(load())  # type: ignore[arg-type]  # coroutines all
        after = await soak.sample()
    print(dict(soak.done), *soak.samples[::6], before, after, sep="\n")
    print(f"{soak.slope() * SECONDS / 2 / 1e6:.1f} MB in the second half")

    assert soak.slope() * SECONDS / 2 < GROWTH
    assert after.files <= before.files + 3
    assert after.tasks <= before.tasks + 3
    for name in ("calls", "visits", "refusals", "slowly read", "cuts"):
        assert soak.done[name], name
