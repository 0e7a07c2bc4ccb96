"""The runtime: what serves an agent's mailbox and runs its actions and loops."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from academy.context import AgentContext
from academy.exception import AgentNotInitializedError, raise_exceptions
from academy.exchange.client import exchange_context
from academy.handle import Handle
from academy.logging.context import current_entity
from academy.runtime.children import Children
from academy.runtime.config import RuntimeConfig
from academy.runtime.serving import RequestServer
from academy.serialize import allowed_deserializers, default_serializer

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.client import AgentExchangeClient, ExchangeClient
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.transport import AgentRegistration
    from academy.identifier import AgentId

__all__ = ["Runtime", "RuntimeConfig"]

logger = logging.getLogger(__name__)

AgentT = TypeVar("AgentT", bound="Agent")
Step = Callable[[], Awaitable[None]]

LOOP_GRACE = 0.5
"""Seconds that loops have to return once shutdown is set, before they are cancelled.

Enough for a loop that waits for the event; one that sleeps through it is cancelled.
"""


@functools.cache
def _default_config() -> RuntimeConfig:
    # One for all agents; making the first builds the model, which importing need not.
    return RuntimeConfig()


class Runtime(Generic[AgentT]):
    """Runs one agent, once: `await runtime.run_until_complete()`.

    `async with runtime:` starts it and shuts it down at the end.

    Args:
        agent: the agent to run.
        exchange_factory: makes its client.
        registration: its mailbox.
        config: how it runs.
    """

    __slots__ = (
        "_children",
        "_client",
        "_context",
        "_errors",
        "_expected",
        "_loops",
        "_lost",
        "_outer",
        "_reason",
        "_server",
        "_shutdown",
        "_terminate",
        "_used",
        "agent",
        "config",
        "factory",
        "registration",
    )

    def __init__(
        self,
        agent: AgentT,
        *,
        exchange_factory: ExchangeFactory,
        registration: AgentRegistration[AgentT],
        config: RuntimeConfig | None = None,
    ) -> None:
        self.agent = agent
        self.factory = exchange_factory
        self.registration = registration
        self.config = config or _default_config()
        self._server = RequestServer(agent, self._shutdown_requested, self._exited)
        self._client: AgentExchangeClient | None = None
        self._context: AgentContext | None = None
        self._outer: contextvars.Token[ExchangeClient] | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._children: Children | None = None
        self._shutdown = asyncio.Event()
        self._used = False
        self._lost = False
        self._expected = True
        self._reason = ""
        self._terminate: bool | None = None
        self._errors: list[Exception] = []

    @property
    def agent_id(self) -> AgentId[AgentT]:
        """The id under which the agent runs."""
        return self.registration.agent_id

    @property
    def was_connected(self) -> bool:
        """Whether the agent has ever been connected to its exchange."""
        return self._client is not None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.agent).__name__}, {self.agent_id})"

    async def run_until_complete(self) -> None:
        """Run the agent until it shuts down.

        Raises:
            RuntimeError: it has run already.
            ExchangeError: its mailbox was lost.
            Exception: what its hooks or loops raised (a group if several did).

        Cancellation:
            Shuts the agent down in order, then propagates.
        """
        async with self:
            await self.wait_shutdown()

    async def wait_shutdown(self, timeout: float | None = None) -> None:
        """Wait until the agent is told to shut down.

        Raises:
            AgentNotInitializedError: it has not been started.
            TimeoutError: `timeout` seconds have passed.
        """
        if self._client is None:
            raise AgentNotInitializedError()
        if timeout is None:
            await self._shutdown.wait()
            return
        try:
            async with asyncio.timeout(timeout):
                await self._shutdown.wait()
        except TimeoutError:
            raise TimeoutError(
                f"{self.agent_id} still runs after {timeout} seconds."
            ) from None

    def signal_shutdown(
        self,
        expected: bool = True,
        terminate: bool | None = None,
        reason: str = "",
    ) -> None:
        """Tell the agent to shut down; returns at once.

        Args:
            expected: whether this is a success or an error.
            terminate: whether the mailbox ends (as it is configured if None).
            reason: told to callers, if the mailbox ends.
        """
        self._expected = self._expected and expected
        self._reason = self._reason or reason
        if terminate is not None:
            self._terminate = terminate
        self._shutdown.set()

    def _shutdown_requested(self, terminate: bool | None) -> None:
        self.signal_shutdown(terminate=terminate)

    def _note(self, error: Exception) -> None:
        # A lost mailbox is raised by whatever uses it, as the same object.
        if not any(error is known for known in self._errors):
            self._errors.append(error)

    def _fail(self, error: Exception) -> None:
        self._note(error)
        self.signal_shutdown(expected=False)

    def _mailbox_lost(self, error: Exception) -> None:
        self._lost = True
        self._fail(error)

    def _exited(self, error: SystemExit) -> None:
        # As itself it would end the event loop, and with it every other agent there.
        raised = RuntimeError(f"{self.agent_id} ended itself with {error!r}.")
        raised.__cause__ = error
        self._fail(raised)

    # --- start

    async def __aenter__(self) -> Self:
        if self._used:
            raise RuntimeError("Agent has already been shutdown.")
        self._used = True
        try:
            client = await self._start()
        except SystemExit as error:
            self._exited(error)
            await self._stop(None)
        except BaseException as error:
            await self._stop(error)
            raise
        else:
            self._outer = exchange_context.set(client)
        return self

    async def _start(self) -> AgentExchangeClient:
        client = self._client = await self.factory.create_agent_client(
            self.registration, self._server.handle
        )
        client.on_lost = self._mailbox_lost
        client.on_refused = self._server.refused
        self.agent._agent_context = self._context = AgentContext(
            self.agent_id,
            client,
            shutdown_event=self._shutdown,
            max_sync_concurrency=self.config.max_sync_concurrency,
            launch_alongside=self._launch_alongside,
        )
        with self._own_context(client):
            await self.agent.agent_on_startup()
            context = contextvars.copy_context()
        for name in self.agent._agent_loops():
            task = asyncio.create_task(self._run_loop(name), context=context.copy())
            self._loops.append(task)
        self._server.start(client, context)
        logger.info("%s runs as %s", type(self.agent).__name__, self.agent_id)
        return client

    async def _launch_alongside(
        self, agent: Agent | type[Agent], **options: Any
    ) -> Handle[Any]:
        if self._client is None or self._shutdown.is_set():
            raise RuntimeError(
                f"{self.agent_id} is shutting down and launches nothing."
            )
        if self._children is None:
            self._children = Children(self._client, self._note)
        return await self._children.launch(agent, **options)

    @contextlib.contextmanager
    def _own_context(self, client: AgentExchangeClient) -> Iterator[None]:
        """Be the agent: its client, its name in logs, its serializers."""
        config = self.config
        tokens: list[contextvars.Token[Any]] = [
            exchange_context.set(client),
            current_entity.set(str(self.agent_id)),
        ]
        if config.default_serializer is not None:
            tokens.append(default_serializer.set(config.default_serializer))
        if config.allowed_deserializers is not None:
            tokens.append(allowed_deserializers.set(config.allowed_deserializers))
        try:
            yield
        finally:
            for token in tokens:
                token.var.reset(token)

    async def _run_loop(self, name: str) -> None:
        try:
            await getattr(self.agent, name)(self._shutdown)
        except asyncio.CancelledError:
            if not self._shutdown.is_set():
                logger.warning("loop %s of %s cancelled itself", name, self.agent_id)
        except Exception as error:
            error.add_note(f"Raised in loop {name} of {self.agent_id}.")
            logger.error("loop %s of %s failed", name, self.agent_id, exc_info=error)
            if self.config.raise_loop_errors_on_shutdown:
                self._note(error)
            if self.config.shutdown_on_loop_error:
                self.signal_shutdown(expected=False)
        except SystemExit as error:
            self._exited(error)

    # --- stop

    async def __aexit__(
        self, _: object, error: BaseException | None, __: object
    ) -> None:
        if self._outer is not None:
            # Another task than the one that has started the agent may stop it.
            with contextlib.suppress(ValueError):
                exchange_context.reset(self._outer)
        await self._stop(error)

    async def _stop(self, error: BaseException | None) -> None:
        """Take every step of the shutdown, then raise what went wrong."""
        self.signal_shutdown(expected=error is None)
        interruption = None
        if self._client is not None:
            with self._own_context(self._client):
                interruption = await self._take(self._steps(self._client))
        logger.info("%s has shut down", self.agent_id)
        self._raise(error, interruption)

    async def _take(self, steps: list[Step]) -> BaseException | None:
        """Take each step; an interruption ends the one it meets, not the others."""
        interruption = None
        for step in steps:
            try:
                await step()
            except Exception as problem:
                self._note(problem)
            except SystemExit as problem:
                self._exited(problem)
            except BaseException as problem:
                interruption = problem
        return interruption

    def _steps(self, client: AgentExchangeClient) -> list[Step]:
        steps: list[Step] = [
            self._wait_for_loops,
            self._cancel_loops,
            self._wait_for_actions,
            self._server.cancel,
            self._terminate_mailbox,
            client.close,
        ]
        if self._children is not None:  # those may still need this agent's actions
            steps.insert(2, self._children.stop)
        if self._server.started:
            steps.insert(0, self.agent.agent_on_shutdown)
        if self._context is not None:
            steps.append(self._context.close)
        return steps

    async def _wait_for_loops(self) -> None:
        if self._loops:
            await asyncio.wait(self._loops, timeout=LOOP_GRACE)

    async def _cancel_loops(self) -> None:
        if self._loops:
            for task in self._loops:
                task.cancel()
            await asyncio.wait(self._loops)

    async def _wait_for_actions(self) -> None:
        assert self._client is not None
        self._server.stop(self._client)
        if not self.config.cancel_actions_on_shutdown:
            await self._server.finish()

    async def _terminate_mailbox(self) -> None:
        client, config = self._client, self.config
        assert client is not None
        client.on_lost = None
        if self._lost:
            return
        terminate = self._terminate
        if terminate is None:
            good = self._expected and not self._errors
            terminate = (
                config.terminate_on_success if good else config.terminate_on_error
            )
        if terminate:
            # A first error may have led to the others.
            failed = repr(self._errors[0]) if self._errors else ""
            await client.retire(failed or self._reason)

    def _raise(
        self, error: BaseException | None, interruption: BaseException | None
    ) -> None:
        errors: list[BaseException] = [*self._errors]
        if interruption is None and not isinstance(error, Exception | None):
            interruption = error
        if interruption is not None:
            # Who is to stop must stop, whatever else there is to say.
            for problem in errors:
                logger.error("%s failed", self.agent_id, exc_info=problem)
            raise interruption
        if error is not None and errors:
            errors.insert(0, error)
        raise_exceptions(errors, f"{self.agent_id} failed")
