"""The hosts of an EventLoopExecutor, as seen from its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ExchangeError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageTooLargeError,
    PingCancelledError,
    QuotaExceededError,
)
from academy.executors.event_loop.host import EventLoopHost
from academy.executors.futures import end_of, submit, withdraw
from academy.failure import AgentLostError
from academy.handle import Handle
from academy.launch import AgentSpec, run_agent
from academy.runtime import RuntimeConfig

if TYPE_CHECKING:
    from academy.exchange.client import UserExchangeClient
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.transport import AgentRegistration

logger = logging.getLogger("academy.executors.event_loop")

LAST_WORDS = 5.0
"""Seconds that the inner executor has to say why a host that is gone has ended."""


@dataclass(frozen=True)
class Hosting:
    """How agents are put on hosts (see `EventLoopExecutor`).

    `on_hosts` has, for the future of each agent that has a place, that of its host.
    """

    inner: Executor
    agents_per_worker: int
    idle_timeout: float
    on_hosts: dict[Future[Any], Future[Any]] = field(default_factory=dict)


class HostGroup:
    """The hosts of one exchange and one set of `submit_kwargs`."""

    def __init__(
        self,
        hosting: Hosting,
        factory: ExchangeFactory,
        submit_kwargs: Mapping[str, Any],
    ) -> None:
        self._hosting = hosting
        self._factory = factory
        self._submit_kwargs = submit_kwargs
        self._client: UserExchangeClient | None = None
        self._hosts: set[Host] = set()  # those that take agents
        self._ending: set[asyncio.Task[None]] = set()
        self._launching = asyncio.Lock()

    async def run(self, future: Future[Any], packed: bytes) -> Exception | None:
        """Run an agent on a host; return what it failed of."""
        host = await self._place()
        self._hosting.on_hosts[future] = host.future
        try:
            await host.started()
            if not future.set_running_or_notify_cancel():
                return None
            return await host.run(packed)
        except (MailboxFullError, MessageTooLargeError, QuotaExceededError):
            raise
        except ExchangeError:
            await self._forget(host)
            raise
        finally:
            del self._hosting.on_hosts[future]
            host.agents -= 1
            if not host.agents and host in self._hosts:
                host.idle = asyncio.get_running_loop().call_later(
                    self._hosting.idle_timeout, self._dismiss, host
                )

    async def _place(self) -> Host:
        """Return a host that keeps a place for one agent."""
        limit = self._hosting.agents_per_worker
        async with self._launching:
            free = (host for host in self._hosts if host.agents < limit)
            host = next(free, None) or await self._launch()
            host.agents += 1
            if host.idle is not None:
                host.idle.cancel()
                host.idle = None
            return host

    async def _launch(self) -> Host:
        client = self._client
        if client is None:
            client = self._client = await self._factory.create_user_client()
        try:
            registration = await client.register_agent(EventLoopHost)
        except ExchangeError:
            await self._forget(None)
            raise
        host = Host(self._hosting, client, registration)
        try:
            host.submit(self._factory, self._submit_kwargs)
        except BaseException:
            await client.terminate(registration.agent_id)
            raise
        self._hosts.add(host)
        host.ended.add_done_callback(lambda _: self._dismiss(host))
        logger.info("submitted %s to %r", registration.agent_id, self._hosting.inner)
        return host

    async def _forget(self, host: Host | None) -> None:
        """Give the client up, since it fails, with its hosts: those end by themselves.

        The next launch gets a new one.
        """
        if host is not None and host.client is not self._client:
            return
        client, self._client = self._client, None
        self._hosts.clear()
        if client is not None:
            await client.close()

    def _dismiss(self, host: Host) -> None:
        if host not in self._hosts:
            return
        self._hosts.remove(host)
        task = asyncio.get_running_loop().create_task(host.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all hosts, and the client."""
        for host in list(self._hosts):
            self._dismiss(host)
        if self._ending:
            await asyncio.wait(self._ending)
        if self._client is not None:
            await self._client.close()


class Host:
    """A host on a worker, as seen from here.

    Attributes:
        agents: how many are on it, or on their way to it.
        client: whose call starts it.
        idle: the timer that ends it when there are none.
        ended: done when its worker is; only after `submit`.
        future: that of its worker; only after `submit`.
    """

    def __init__(
        self,
        hosting: Hosting,
        client: UserExchangeClient,
        registration: AgentRegistration[EventLoopHost],
    ) -> None:
        self.agents = 0
        self.idle: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None]
        self._hosting = hosting
        self.client = client
        self._registration = registration
        # Its longest call takes as long as an agent lives.
        self._handle: Handle[Any] = Handle(
            registration.agent_id,
            exchange=client,
            ignore_context=True,
            timeout=math.inf,
        )
        self.future: Future[Any]
        self._ping: asyncio.Task[float] | None = None

    def submit(
        self, factory: ExchangeFactory, submit_kwargs: Mapping[str, Any]
    ) -> None:
        """Submit the host to the inner executor."""
        patience = max(60.0, 3 * self._hosting.idle_timeout)
        # The agents on it are told that it ends, and answer before it does.
        config = RuntimeConfig(cancel_actions_on_shutdown=False)
        spec = AgentSpec(
            EventLoopHost, factory, self._registration, config, args=(patience,)
        )
        self.future = submit(
            self._hosting.inner, run_agent, spec.pack(), **submit_kwargs
        )
        self.ended = end_of(self.future)

    async def started(self) -> None:
        """Wait until the host runs.

        Raises:
            AgentLostError: it ended instead, and the inner executor knows of what.
            BrokenExecutor: it ended instead.
        """
        if self._ping is None:
            self._ping = asyncio.ensure_future(self._handle.ping())
        await self._unless_ended(self._ping)

    async def run(self, packed: bytes) -> Exception | None:
        """Run an agent; return what it failed of.

        Raises:
            AgentLostError: the host was lost, and the inner executor knows of what.
            BrokenExecutor: the host was lost.
        """
        call = asyncio.ensure_future(self._handle.action(EventLoopHost.run, packed))
        try:
            failure: Exception | None = await self._unless_ended(call)
        finally:
            call.cancel()
        return failure

    async def _unless_ended(self, answer: asyncio.Future[Any]) -> Any:
        await asyncio.wait((answer, self.ended), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            try:
                return answer.result()
            except _HOST_IS_GONE:
                # Why it is gone, only the inner executor knows.
                await asyncio.wait((self.ended,), timeout=LAST_WORDS)
        raise self._lost()

    def _lost(self) -> AgentLostError | BrokenExecutor:
        cause = None
        if self.future.done() and not self.future.cancelled():
            cause = self.future.exception()
        if isinstance(cause, AgentLostError):  # what its host is lost of, so is it
            lost = type(cause)(*cause.args)
            lost.__cause__ = cause
            return lost
        reason = "it has ended" if cause is None else repr(cause)
        error = BrokenExecutor(
            f"The worker that hosted the agent in its event loop was lost: {reason}"
        )
        error.__cause__ = cause
        return error

    async def end(self) -> None:
        """Have the host end, wait until it has, and leave nothing of it."""
        if self.idle is not None:
            self.idle.cancel()
        if not withdraw(self._hosting.inner, self.future) and not self.ended.done():
            with contextlib.suppress(ExchangeError):
                await self._handle.shutdown()
        await self.ended
        if self._ping is not None:
            self._ping.cancel()
        # One that was killed, or never began, could not do this.
        with contextlib.suppress(ExchangeError):
            await self.client.terminate(self._registration.agent_id)


_HOST_IS_GONE = (
    ActionCancelledError,
    ActionInterruptedError,
    MailboxTerminatedError,
    PingCancelledError,
)
