"""The manager: launches agents on executors, watches them, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextvars import Token
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, cast

from academy.agent import Agent
from academy.exception import BadEntityIdError, ExchangeError, raise_exceptions
from academy.exchange.client import exchange_context
from academy.exchange.transport import AgentRegistration
from academy.handle import Handle
from academy.identifier import AgentId
from academy.launch import LaunchOptions
from academy.manager.asking import Consents
from academy.manager.batch import LaunchBatch
from academy.manager.checks import check_launch, warn_of_overload
from academy.manager.ending import close_all, stop, take_failures, wait_for
from academy.manager.launched import LaunchedAgent
from academy.manager.places import EVENT_LOOP, NamedExecutors
from academy.manager.queued import Queues
from academy.manager.request import LaunchRequest, RetryPolicy
from academy.manager.sightings import Sightings
from academy.manager.watching import LOST_AFTER, Watching

if TYPE_CHECKING:
    from academy.exchange.client import ExchangeClient, UserExchangeClient
    from academy.exchange.factory import ExchangeFactory
    from academy.identifier import UserId
    from academy.logging.configs.base import LogConfig
    from academy.scheduler.job import JobInfo

logger = logging.getLogger(__name__)

AgentT = TypeVar("AgentT", bound=Agent)
Executors = Executor | Mapping[str, Executor | None] | None


class Manager:
    """Launches agents on executors, and owns its exchange client and executors.

    Args:
        exchange_client: client through which agents are registered and stopped.
        executors: where agents run: one executor, or several by name; None in their
            place is this event loop, which is also there as "event_loop".
        default_executor: where an agent runs whose launch names none.
        max_retries: how often an agent that exits with an error runs again, under
            the same identity.
        retry_backoff: seconds before the first retry; doubles with each further one,
            up to a minute.
        log_config: how workers log, unless a launch says otherwise.
        lost_after: seconds after which an agent without connection to its exchange
            counts as lost, where neither its executor nor a scheduler can tell.

    Raises:
        ValueError: the executors are none, or the default is not one of them.

    Example:
        >>> import asyncio
        >>> from academy.agent import Agent, action
        >>> from academy.exchange import LocalExchangeFactory
        >>> from academy.manager import Manager
        >>> class Counter(Agent):
        ...     count = 0
        ...
        ...     @action
        ...     async def add(self, number: int) -> int:
        ...         self.count += number
        ...         return self.count
        >>> async def main() -> None:
        ...     async with await Manager.from_exchange_factory(
        ...         LocalExchangeFactory()
        ...     ) as manager:
        ...         counter = await manager.launch(Counter)
        ...         print(await counter.add(2))
        >>> asyncio.run(main())
        2
    """

    def __init__(
        self,
        exchange_client: UserExchangeClient,
        executors: Executors = None,
        *,
        default_executor: str = EVENT_LOOP,
        max_retries: int = 0,
        retry_backoff: float = 0.5,
        log_config: LogConfig | None = None,
        lost_after: float = LOST_AFTER,
    ) -> None:
        self._executors = NamedExecutors(executors, default_executor)
        self._client = exchange_client
        self._retry = RetryPolicy(max_retries, retry_backoff)
        self._log_config = log_config
        self._watching = Watching(
            Sightings(exchange_client), Queues(), lost_after, set()
        )
        self._consents = Consents()
        self._launched: dict[AgentId[Any], LaunchedAgent] = {}
        self._handles: dict[AgentId[Any], Handle[Any]] = {}
        self._context_tokens: list[Token[ExchangeClient]] = []
        self._closed = False

    @classmethod
    async def from_exchange_factory(
        cls,
        factory: ExchangeFactory,
        executors: Executors = None,
        *,
        default_executor: str = EVENT_LOOP,
        max_retries: int = 0,
        retry_backoff: float = 0.5,
        log_config: LogConfig | None = None,
        lost_after: float = LOST_AFTER,
    ) -> Self:
        """Make a manager with a new client of an exchange."""
        client = await factory.create_user_client()
        try:
            return cls(
                client,
                executors,
                default_executor=default_executor,
                max_retries=max_retries,
                retry_backoff=retry_backoff,
                log_config=log_config,
                lost_after=lost_after,
            )
        except BaseException:
            await client.close()
            raise

    async def __aenter__(self) -> Self:
        self._context_tokens.append(exchange_context.set(self._client))
        return self

    async def __aexit__(
        self, exc_type: object, error: BaseException | None, traceback: object
    ) -> None:
        with contextlib.suppress(ValueError):  # entered in another context
            exchange_context.reset(self._context_tokens.pop())
        if self._closed:  # by the body, which may have chosen to keep the client
            return
        try:
            await self.close()
        except Exception as failure:
            if error is None:
                raise
            # The body's own error, or a Ctrl-C, is what the caller must see.
            logger.error("while closing %r: %r", self, failure)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client.client_id})"

    @property
    def exchange_client(self) -> UserExchangeClient:
        """The client through which agents are registered and stopped."""
        return self._client

    @property
    def exchange_factory(self) -> ExchangeFactory:
        """A factory for further clients of the same exchange."""
        return self._client.factory()

    @property
    def user_id(self) -> UserId:
        """The id of this manager's client."""
        return cast("UserId", self._client.client_id)

    # --- executors

    def add_executor(self, name: str, executor: Executor | None) -> Self:
        """Add a place to run agents; the manager shuts it down in the end.

        Raises:
            ValueError: there is one of that name already.
        """
        self._executors.add(name, executor)
        return self

    def set_default_executor(self, name: str) -> Self:
        """Choose where an agent runs whose launch names no executor.

        Raises:
            ValueError: there is no such executor.
        """
        self._executors.set_default(name)
        return self

    # --- launching

    async def launch(
        self,
        agent: AgentT | type[AgentT],
        *,
        registration: AgentRegistration[AgentT] | None = None,
        **options: Unpack[LaunchOptions],
    ) -> Handle[AgentT]:
        """Run an agent on an executor; returns when it has been submitted.

        Args:
            agent: an agent, or a type that is instantiated on the worker.
            registration: of a mailbox that was registered before.
            **options: see `LaunchOptions`.

        Raises:
            ValueError: there is no such executor, or it or its scheduler refuses
                `submit_kwargs`.
            TypeError: the type does not take these arguments.
            PicklingError: names what cannot travel to the worker.
            RuntimeError: the registration was launched before.
            Exception: whatever the executor's `submit` raises.
        """
        request = self._check(agent, options)
        packed = request.pack(self._client)
        await self._consents.ask([request])
        mine: list[AgentRegistration[Any]] = []
        if registration is None:
            mine = await self.register_agents([(request.agent_type, request.name)])
            registration = mine[0]
        try:
            self._start(request, registration, packed)
        except BaseException:
            await self._abandon(mine)
            raise
        agent_id = registration.agent_id
        if agent_id not in self._handles:
            handle = self._new_handle(agent_id, request.agent_type)
            self._handles[agent_id] = handle
        return self._handles[agent_id]

    def launch_batch(self) -> LaunchBatch:
        """Launch many agents at once, which may hold each other's handles.

        Example:
            >>> async def main() -> None:
            ...     factory = LocalExchangeFactory()
            ...     async with await Manager.from_exchange_factory(factory) as manager:
            ...         async with manager.launch_batch() as batch:
            ...             counters = [await batch.queue(Counter) for _ in range(3)]
            ...         print([await counter.add(1) for counter in counters])
            >>> asyncio.run(main())
            [1, 1, 1]
        """
        return LaunchBatch(self)

    async def register_agent(
        self, agent: type[AgentT], *, name: str | None = None
    ) -> AgentRegistration[AgentT]:
        """Register a mailbox for an agent that is to be launched later."""
        (registration,) = await self.register_agents([(agent, name)])
        return registration

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        """Register mailboxes for (type, name) pairs, all or none, in one call."""
        return await self._client.register_agents(agents)

    def _check(self, agent: Any, options: Mapping[str, Any]) -> LaunchRequest:
        """Refuse all that is known to fail before anything is registered."""
        self._check_open()
        return check_launch(agent, options, self._executors, self._log_config)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed: it launches nothing any more.")

    def _start(
        self,
        request: LaunchRequest,
        registration: AgentRegistration[Any],
        packed: bytes | None,
        future: Future[Any] | None = None,
    ) -> None:
        self._check_open()
        agent_id = registration.agent_id
        if agent_id in self._launched:
            raise RuntimeError(f"{agent_id} has already been executed.")
        warn_of_overload(request, self._launched.values())
        self._launched[agent_id] = LaunchedAgent(
            self._client,
            self._retry,
            request,
            registration,
            packed,
            self._watching,
            future,
        )
        logger.info("launched %s on %s", agent_id, request.executor_name)

    async def _abandon(self, registrations: list[AgentRegistration[Any]]) -> None:
        """Terminate mailboxes of agents that were not launched."""
        for registration in registrations:
            self._handles.pop(registration.agent_id, None)
            try:
                await self._client.terminate(registration.agent_id)
            except ExchangeError as error:
                logger.error("%s stays registered: %s", registration.agent_id, error)

    # --- what was launched

    def _new_handle(
        self, agent_id: AgentId[Any] | None, agent_type: type[Agent]
    ) -> Handle[Any]:
        return Handle._of(agent_id, agent_type, exchange=self._client)

    def get_handle(
        self, agent: AgentId[AgentT] | AgentRegistration[AgentT]
    ) -> Handle[AgentT]:
        """Return the one handle of this manager to an agent."""
        agent_id = _id_of(agent)
        if agent_id not in self._handles:
            self._handles[agent_id] = Handle(agent_id, exchange=self._client)
        return self._handles[agent_id]

    def running(self) -> set[AgentId[Any]]:
        """Return the launched agents that have not ended."""
        return {aid for aid, one in self._launched.items() if not one.task.done()}

    async def job(
        self, agent: AgentId[Any] | Handle[Any] | AgentRegistration[Any]
    ) -> JobInfo | None:
        """Describe the batch job that an agent is in, or waits for.

        Returns:
            None if there is none, or nobody can tell which.

        Raises:
            BadEntityIdError: this manager did not launch it.
        """
        return await self._find(agent).job()

    async def shutdown(
        self,
        agent: AgentId[Any] | Handle[Any] | AgentRegistration[Any],
        *,
        blocking: bool = True,
        raise_error: bool = True,
        terminate: bool | None = None,
        timeout: float | None = None,
    ) -> None:
        """Ask an agent to shut down; nothing is asked of one that has ended.

        Args:
            agent: whom to ask.
            blocking: wait until it has ended.
            raise_error: raise what it failed of, when waiting.
            terminate: whether its mailbox ends with it (as configured if None).
            timeout: seconds to wait.

        Raises:
            BadEntityIdError: this manager did not launch it.
            TimeoutError: it has not ended in time; it has been asked nevertheless.
            Exception: what it failed of.
        """
        launched = self._find(agent)
        clock = asyncio.get_running_loop().time
        begun = clock()
        await stop(launched, terminate, timeout)
        if blocking:
            left = None if timeout is None else max(0.0, begun + timeout - clock())
            await self.wait([agent], raise_error=raise_error, timeout=left)

    async def wait(
        self,
        agents: Iterable[AgentId[Any] | Handle[Any] | AgentRegistration[Any]],
        *,
        raise_error: bool = False,
        return_when: str = asyncio.ALL_COMPLETED,
        timeout: float | None = None,
    ) -> None:
        """Wait until agents have ended.

        Args:
            agents: whom to wait for.
            raise_error: raise what those that have ended failed of.
            return_when: ALL_COMPLETED, FIRST_COMPLETED or FIRST_EXCEPTION of asyncio.
            timeout: seconds to wait.

        Raises:
            BadEntityIdError: this manager did not launch one of them.
            TimeoutError: too few have ended in time.
            Exception: what an agent failed of; several make an ExceptionGroup.
        """
        await wait_for(
            [self._find(agent) for agent in agents],
            raise_error=raise_error,
            return_when=return_when,
            timeout=timeout,
        )

    def _find(self, agent: Any) -> LaunchedAgent:
        agent_id = _id_of(agent)
        launched = self._launched.get(agent_id)
        if launched is None:
            raise BadEntityIdError(agent_id)
        return launched

    # --- the end

    async def close(self, close_exchange: bool = True) -> None:
        """Ask all agents to stop, wait for them, and release all that is owned.

        Everything is released, whatever fails; then failures of agents that nobody
        has been told yet are raised, several as one group. May be called twice.

        Args:
            close_exchange: whether to close the exchange client too.

        Cancellation:
            Stops waiting for agents, and still releases everything.
        """
        self._closed = True
        errors = await close_all(
            self._launched.values(),
            self._watching,
            self._client.close if close_exchange else None,
            self._executors.give_up(),
        )
        errors += take_failures(self._launched.values())
        raise_exceptions(errors, f"{self!r} was closed, with {len(errors)} errors")


def _id_of(agent: Any) -> AgentId[Any]:
    return agent if isinstance(agent, AgentId) else agent.agent_id
