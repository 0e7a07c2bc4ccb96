"""Agents that run beside another in its event loop, and end with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from academy.handle import Handle

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.client import AgentExchangeClient
    from academy.exchange.transport import AgentRegistration
    from academy.runtime import Runtime, RuntimeConfig

logger = logging.getLogger(__name__)

Registered: TypeAlias = "asyncio.Future[AgentRegistration[Any]]"


class Children:
    """The agents that one agent has launched alongside.

    Args:
        client: the parent's client, through which they are registered.
        on_error: called with the error of each that fails.
    """

    __slots__ = ("_client", "_on_error", "_running", "_stopped", "_tasks")

    def __init__(
        self, client: AgentExchangeClient, on_error: Callable[[Exception], None]
    ) -> None:
        self._client = client
        self._on_error = on_error
        self._running: set[Runtime[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def launch(
        self,
        agent: Agent | type[Agent],
        *,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any] | None,
        config: RuntimeConfig | None,
        name: str | None,
    ) -> Handle[Any]:
        """Register and start an agent."""
        if isinstance(agent, type):
            agent = agent(*(args or ()), **(kwargs or {}))
        elif args or kwargs:
            raise TypeError(
                "args and kwargs are for an agent's type; an instance of "
                f"{type(agent).__name__} was given."
            )
        registered: Registered = asyncio.get_running_loop().create_future()
        # A task of its own, so that no mailbox is left over if this one is cancelled.
        task = asyncio.create_task(self._run(agent, config, name, registered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        registration = await registered
        return Handle._of(registration.agent_id, type(agent))

    async def _run(
        self,
        agent: Agent,
        config: RuntimeConfig | None,
        name: str | None,
        registered: Registered,
    ) -> None:
        from academy.runtime import Runtime

        client = self._client
        try:
            registration = await client.register_agent(type(agent), name=name)
            if self._stopped or registered.cancelled():
                await client.terminate(registration.agent_id)
                raise RuntimeError(f"{client.client_id} has shut down meanwhile.")
        except Exception as error:
            if not registered.done():
                registered.set_exception(error)
            return
        registered.set_result(registration)
        runtime = Runtime(
            agent,
            exchange_factory=client.factory(),
            registration=registration,
            config=config,
        )
        self._running.add(runtime)
        try:
            await runtime.run_until_complete()
        except Exception as error:
            error.add_note(f"Raised in {runtime!r}, launched by {client.client_id}.")
            logger.error("%r failed", runtime, exc_info=error)
            self._on_error(error)
        finally:
            self._running.discard(runtime)

    async def stop(self) -> None:
        """Shut all of them down, and wait until they have ended."""
        self._stopped = True
        for runtime in self._running:
            runtime.signal_shutdown()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
