"""Agents, their callers and an exchange, while disasters happen to all of them."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from academy.exchange import AgentRegistration, HttpExchangeFactory
from tests.integration.chaos.ledger import Ledger
from tests.integration.chaos.processes import AgentJob, CallerJob, Scribe
from tests.integration.chaos.site import Site
from tests.support.tcp_proxy import TcpProxy

AGENTS = 3
CALLERS = 4
OUTSTANDING = 32
PATIENCE = 300.0
"""Seconds that a storm may take."""
WIRE = {"heartbeat": 1.0, "request_timeout_s": 30.0, "retries": 6}
"""An agent that starts while its exchange is away waits for `request_timeout_s`."""

Disaster = Callable[["Storm"], Awaitable[None]]


class Actor:
    """A process that reaches the exchange through a network of its own.

    Attributes:
        busy: held while something happens to it that is to be over before the next.
    """

    def __init__(self, number: int, job: AgentJob | CallerJob, proxy: TcpProxy) -> None:
        self.number = number
        self.job = job
        self.proxy = proxy
        self.busy = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self, log: Path) -> None:
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.integration.chaos.processes"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(self.job))
        self._process.stdin.close()

    async def kill(self) -> bool:
        """Kill it; return whether it was still there to be killed."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        return await self.process.wait() == -signal.SIGKILL


class Storm:
    """One run: the same seed makes the same calls and the same disasters.

    Args:
        site: the exchange.
        folder: for ledgers and logs.
        seed: of everything that is left to chance.
        calls: to make, of all callers together.

    Attributes:
        events: what has happened, for whoever has to find out why.
    """

    def __init__(self, site: Site, folder: Path, seed: int, calls: int) -> None:
        self.site = site
        self.dice = random.Random(seed)
        self.events: list[str] = []
        self.ledger = Ledger()
        self.agents: list[Actor] = []
        self.callers: list[Actor] = []
        self._calls = calls
        self._folder = folder
        self._log = folder / "actors.log"
        self._answered = 0
        self._begun_at = time.monotonic()
        self._progress = asyncio.Condition()
        self._senders = itertools.count()
        self._registrations: list[AgentRegistration[Any]] = []
        self._cleanup = AsyncExitStack()
        self._watching: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, disasters: Sequence[Disaster]) -> list[str]:
        """Make the calls while disasters happen; return what went wrong."""
        async with asyncio.timeout(PATIENCE), self._everybody():
            work = asyncio.create_task(self._work(disasters))
            try:
                done = {work, self._broken}
                await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                await asyncio.wait([work])
        if self._broken.done():
            return [self._broken.result()]
        work.result()
        for agent in self.agents:
            self.ledger.read_agent(agent.number, agent.job.path)
        return self.ledger.faults()

    async def _work(self, disasters: Sequence[Disaster]) -> None:
        async with asyncio.TaskGroup() as happening:
            for disaster in self._schedule(disasters):
                happening.create_task(disaster)
        for caller in self.callers:
            await caller.process.wait()
            self._read_caller(caller)

    @asynccontextmanager
    async def _everybody(self) -> AsyncIterator[None]:
        async with self._cleanup:
            async with await self.site.factory().create_user_client() as client:
                names = [(Scribe, f"scribe {number}") for number in range(AGENTS)]
                self._registrations = await client.register_agents(names)
            for number, registration in enumerate(self._registrations):
                proxy = await self._proxy()
                path = self._folder / f"agent-{number}"
                job = AgentJob(self._factory(proxy), registration, path)
                agent = Actor(number, job, proxy)
                self.agents.append(agent)
                await self._begin(agent)
            for _ in range(CALLERS):
                await self.call(self._calls // CALLERS)
            yield

    async def _proxy(self) -> TcpProxy:
        return await self._cleanup.enter_async_context(TcpProxy(self.site.port))

    def _factory(self, proxy: TcpProxy) -> HttpExchangeFactory:
        return self.site.factory(proxy.port, **WIRE)

    async def _begin(self, actor: Actor) -> None:
        await actor.start(self._log)
        self._cleanup.push_async_callback(actor.kill)
        watching = asyncio.create_task(self._watch(actor))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    async def _watch(self, actor: Actor) -> None:
        """Count what a process does, and notice when it ends by itself."""
        process = actor.process
        output = process.stdout
        assert output is not None
        while data := await output.read(4096):
            async with self._progress:
                self._answered += len(data)
                self._progress.notify_all()
        code = await process.wait()
        finished = code == 0 and isinstance(actor.job, CallerJob)
        if not (finished or code == -signal.SIGKILL or self._broken.done()):
            who = "caller" if actor in self.callers else "agent"
            self._broken.set_result(f"{who} {actor.number} has ended with {code}")

    async def call(self, count: int) -> None:
        """Start a caller."""
        sender = next(self._senders)
        proxy = await self._proxy()
        path = self._folder / f"caller-{sender}"
        job = CallerJob(
            self._factory(proxy),
            self._registrations,
            path,
            sender,
            count,
            OUTSTANDING,
            self.dice.getrandbits(32),
        )
        caller = Actor(sender, job, proxy)
        self.callers.append(caller)
        self.ledger.wanted[sender] = count
        await self._begin(caller)

    async def restart_agent(self, agent: Actor) -> None:
        """Kill an agent and run it anew, under the same identity."""
        async with agent.busy:
            assert await agent.kill()
            self.ledger.kills[agent.number] += 1
            await self._begin(agent)

    async def replace_caller(self, caller: Actor) -> None:
        """Kill a caller; another one makes the calls that are left."""
        job = caller.job
        assert isinstance(job, CallerJob)
        if not await caller.kill():
            return
        self.callers.remove(caller)
        self._read_caller(caller)
        self.ledger.killed_senders.add(job.sender)
        del self.ledger.wanted[job.sender]
        await self.call(job.count - len(self.ledger.posted[job.sender]))

    def _read_caller(self, caller: Actor) -> None:
        self.ledger.read_caller(caller.number, caller.job.path)

    def _schedule(self, disasters: Sequence[Disaster]) -> list[Any]:
        """Spread disasters over the calls."""
        moments = sorted(self.dice.sample(range(self._calls * 9 // 10), len(disasters)))
        return [
            self._at(moment, disaster)
            for moment, disaster in zip(moments, disasters, strict=True)
        ]

    async def _at(self, moment: int, disaster: Disaster) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self._answered >= moment)
        seconds = time.monotonic() - self._begun_at
        self.events.append(f"{self._answered} ({seconds:.1f} s): {disaster.__name__}")
        await disaster(self)
