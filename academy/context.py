"""What a running agent, and an action that asks for it, know of their surroundings."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from academy.handle import Handle

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.client import AgentExchangeClient, ExchangeClient
    from academy.identifier import AgentId, EntityId

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class ActionContext:
    """Who has called an action; given to actions that have `context=True`.

    Attributes:
        source_id: the agent or user that has called.
    """

    __slots__ = ("_client", "source_id")

    def __init__(self, source_id: EntityId, client: ExchangeClient | None) -> None:
        self.source_id = source_id
        self._client = client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source_id})"

    @property
    def source_handle(self) -> Handle[Any]:
        """A handle to the calling agent.

        Raises:
            TypeError: a user has called, and users have no actions.
        """
        source: Any = self.source_id
        if not self.is_agent_source():
            raise TypeError(f"{source} is a user: only agents have handles.")
        return Handle(source, exchange=self._client)

    def is_agent_source(self) -> bool:
        """Whether an agent has called."""
        return self.source_id.role == "agent"

    def is_user_source(self) -> bool:
        """Whether a program outside of any agent has called."""
        return self.source_id.role == "user"


class AgentContext:
    """What an agent has while it runs (`Agent.agent_context`).

    Args:
        agent_id: the agent's id.
        exchange_client: its client.
        executor: threads for `agent_run_sync`; made when first used if None.
        shutdown_event: set when the agent is to shut down.
        max_sync_concurrency: number of those threads.
        launch_alongside: what `agent_launch_alongside` calls.
    """

    __slots__ = (
        "_executor",
        "_launch_alongside",
        "_max_threads",
        "_running",
        "agent_id",
        "exchange_client",
        "shutdown_event",
    )

    def __init__(
        self,
        agent_id: AgentId[Any],
        exchange_client: AgentExchangeClient,
        executor: ThreadPoolExecutor | None = None,
        shutdown_event: asyncio.Event | None = None,
        *,
        max_sync_concurrency: int | None = None,
        launch_alongside: Callable[..., Any] | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.exchange_client = exchange_client
        self.shutdown_event = shutdown_event or asyncio.Event()
        self._executor = executor
        # The default of ThreadPoolExecutor, which does not tell.
        self._max_threads = max_sync_concurrency or min(32, (os.cpu_count() or 1) + 4)
        self._launch_alongside = launch_alongside
        self._running: set[Future[Any]] | None = None

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The threads in which `agent_run_sync` runs functions."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(
                self._max_threads, thread_name_prefix=str(self.agent_id)
            )
        return self._executor

    async def run_sync(
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run a function in a thread, in a copy of the caller's context."""
        running = self._running
        if running is None:
            running = self._running = set()
        if len(running) >= self._max_threads:
            logger.warning(
                "all %d threads of %s are busy: %s waits for one "
                "(RuntimeConfig.max_sync_concurrency sets their number)",
                self._max_threads,
                self.agent_id,
                getattr(function, "__qualname__", function),
            )
        call = functools.partial(function, *args, **kwargs)
        future = self.executor.submit(contextvars.copy_context().run, call)
        running.add(future)
        future.add_done_callback(running.discard)
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Wait for the functions that are running; those in the queue do not start."""
        if self._executor is None:
            return
        self._executor.shutdown(wait=False, cancel_futures=True)
        running = [future for future in list(self._running or ()) if not future.done()]
        if running:
            logger.info(
                "%s waits for %d functions in threads", self.agent_id, len(running)
            )
            await asyncio.wait([asyncio.wrap_future(future) for future in running])
        # The functions have returned, so the threads are about to end.
        self._executor.shutdown(wait=True)

    async def launch_alongside(
        self, agent: Agent | type[Agent], **options: Any
    ) -> Handle[Any]:
        """Start another agent in this event loop (`Agent.agent_launch_alongside`)."""
        if self._launch_alongside is None:
            raise RuntimeError(
                f"{self.agent_id} has no runtime that could run another."
            )
        handle: Handle[Any] = await self._launch_alongside(agent, **options)
        return handle
