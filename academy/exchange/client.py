"""Exchange clients: who sends, who waits for an answer, who serves requests."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from academy.exception import ExchangeError
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.watches import Watches
from academy.message import (
    AcademyErrorResponse,
    Body,
    Message,
    PingRequest,
    StreamCredit,
    StreamItem,
    SuccessResponse,
    UserErrorResponse,
)
from academy.serialize import NoPickleMixin, Payload, SerializationStrategy

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.presence import PresenceCallback
    from academy.exchange.transport import AgentRegistration, ExchangeTransport
    from academy.identifier import AgentId, EntityId
    from academy.stats import AgentStats

logger = logging.getLogger(__name__)

AgentT = TypeVar("AgentT", bound="Agent")
Key = tuple[int, bytes]
"""A call: whom it asks, as a number, and its tag."""
RequestHandler = Callable[[Message], "Awaitable[None] | None"]

TERMINATE_PATIENCE = 10.0
"""Seconds that an entity that ends waits for an exchange that is away."""

exchange_context: ContextVar[ExchangeClient] = ContextVar("exchange_context")
"""The client that handles use when none is pinned to them."""


class ExchangeClient(NoPickleMixin):
    """An entity's access to its exchange; owns the calls that wait for an answer.

    `async with client:` makes it the client of the context and closes it at the end.
    """

    def __init__(
        self,
        transport: ExchangeTransport,
        config: ExchangeClientConfig | None = None,
    ) -> None:
        self._transport = transport
        self._watches = Watches(transport)
        self.config = config or ExchangeClientConfig()
        # A tag is 8 random bytes of the client and a count: unique without a uuid.
        self._tag_prefix = os.urandom(8)
        self._tags = itertools.count(1)
        # By whom was asked as well: what anybody else says is not an answer.
        self._pending: dict[Key, asyncio.Future[Message]] = {}
        self._streams: dict[Key, Callable[[Message], None]] = {}
        self._lost: Exception | None = None
        self._closed = False
        self._context_tokens: list[Token[ExchangeClient]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._context_tokens.append(exchange_context.set(self))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        exchange_context.reset(self._context_tokens.pop())
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client_id})"

    @property
    def client_id(self) -> EntityId:
        """Whose mailbox this client uses."""
        return self._transport.mailbox_id

    def factory(self) -> ExchangeFactory:
        """Return a factory for further clients of the same exchange."""
        return self._transport.factory()

    # --- calls

    def new_message(self, dest: EntityId, body: Body) -> Message:
        """Make a message from this client with a tag that nobody else uses."""
        tag = self._tag_prefix + next(self._tags).to_bytes(8, "big")
        return Message(self.client_id, dest, tag, body)

    def request(self, message: Message) -> asyncio.Future[Message]:
        """Post a request; the future gets its response, or the reason for none.

        Cancelling the future forgets the call; the request itself stays sent.

        Raises:
            ExchangeError: the client is closed or has lost its mailbox.
            RuntimeError: the client belongs to another event loop.
            Exception: the arguments do not serialize.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._check_loop(loop)
        future: asyncio.Future[Message] = loop.create_future()
        key = message.dest.uid.int, message.tag
        self._pending[key] = future
        try:
            self._transport.post(message)
        except BaseException:
            del self._pending[key]
            raise
        return future

    def request_stream(
        self, message: Message, on_one_way: Callable[[Message], None]
    ) -> asyncio.Future[Message]:
        """Post a request as `request` does, on the way to whose response more comes.

        Args:
            message: the request.
            on_one_way: gets the items that come on the way, in order, until `forget`;
                and those credits of this client's that were refused.
        """
        future = self.request(message)
        self._streams[message.dest.uid.int, message.tag] = on_one_way
        return future

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None:
            raise RuntimeError(
                f"{self!r} belongs to another event loop, so its answers would never "
                "arrive here. From a thread, use asyncio.run_coroutine_threadsafe "
                "with the event loop of the agent or program."
            )
        self._loop = loop

    def forget(self, message: Message) -> None:
        """Stop waiting for the answer to a request."""
        key = message.dest.uid.int, message.tag
        self._streams.pop(key, None)
        if self._pending.pop(key, None) is not None:
            self._transport.withdraw(message)

    async def send(self, message: Message) -> None:
        """Send one message, and return when the exchange has stored it."""
        self._check_open()
        await self._transport.send(message)

    def post(self, message: Message) -> None:
        """Send one message without waiting; a refusal is only logged."""
        self._check_open()
        self._transport.post(message)

    def _check_open(self) -> None:
        if self._lost is not None:
            raise self._lost
        if self._closed:
            raise ExchangeError(f"{self!r} is closed.")

    # --- the exchange's directory

    async def register_agent(
        self, agent: type[AgentT], *, name: str | None = None
    ) -> AgentRegistration[AgentT]:
        """Register a mailbox for an agent that is to be launched."""
        (registration,) = await self.register_agents([(agent, name)])
        return registration

    async def register_agents(
        self, agents: Sequence[tuple[type[Any], str | None]]
    ) -> list[AgentRegistration[Any]]:
        """Register mailboxes for (type, name) pairs in one call, all or none."""
        return await self._transport.register_agents(agents)

    async def discover(
        self, agent: type[Agent] | str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        """Find agents by class or qualified class name, terminated ones excluded."""
        name = agent
        if not isinstance(name, str):
            name = f"{name.__module__}.{name.__qualname__}"
        return await self._transport.discover(name, allow_subclasses=allow_subclasses)

    async def status(self, uid: EntityId) -> MailboxStatus:
        """Return the state of a mailbox."""
        status = await self._transport.status(uid)
        if status is MailboxStatus.ACTIVE:
            silent = await self.silence(uid)
            if silent is not None and silent > self.config.stale_after:
                return MailboxStatus.INACTIVE
        return status

    async def silence(self, uid: EntityId) -> float | None:
        """Return the seconds since an entity's last sign of life; None if never."""
        return await self._transport.heartbeat_status(uid)

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        """Terminate a mailbox for good; unknown ids are ignored.

        Args:
            uid: whose mailbox.
            reason: what `MailboxTerminatedError` tells whoever still wants something.
        """
        await self._transport.terminate(uid, reason)

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Have `callback` told where the owners of mailboxes are, and every change.

        Args:
            uids: whom to watch, in addition to those who are watched already.
            callback: gets the `Presence` of those of whom there is something new. It
                has been told of all of them when this returns, and is told of them
                again after a lost connection.
        """
        await self._watches.watch(uids, callback)

    async def unwatch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Tell a callback no more about these; others are told as before."""
        await self._watches.unwatch(uids, callback)

    async def retire(self, reason: str = "") -> None:
        """Terminate this client's own mailbox.

        Args:
            reason: see `terminate`.

        Raises:
            ExchangeError: the exchange refuses, or is away for longer than 10 s.
        """
        try:
            async with asyncio.timeout(TERMINATE_PATIENCE):
                await self._transport.terminate(self.client_id, reason)
        except TimeoutError as error:
            raise ExchangeError(
                f"The mailbox of {self.client_id} was not terminated: its exchange has "
                f"not answered for {TERMINATE_PATIENCE:.0f} s."
            ) from error

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        """Return the message counts of an entity."""
        return await self._transport.agent_stats(uid)

    # --- what the transport tells (MailboxOwner)

    def deliver(self, message: Message) -> None:
        """Take one message from the exchange."""
        try:
            kind = message.get_body().kind
        except ValueError as error:
            logger.error("dropped a malformed message of %s: %s", message.src, error)
            return
        if kind != "response":
            if kind == "request":
                self._serve(message)
            else:
                self._take_one_way(message)
            return
        future = self._pending.pop((message.src.uid.int, message.tag), None)
        # A call that was given up, or an answer that came twice, is nobody's.
        if future is not None and not future.done():
            future.set_result(message)

    def refused(self, message: Message, error: Exception) -> None:
        """Learn that the exchange did not take a message."""
        kind = message.get_body().kind
        if kind == "one-way":
            self._one_way_refused(message, error)
            return
        future = self._pending.pop((message.dest.uid.int, message.tag), None)
        if kind == "request" and future is not None:
            if not future.done():
                future.set_exception(error)
        else:
            logger.debug("%r was refused: %s", message, error)

    def held(self) -> Iterable[bytes]:
        """Name the requests that are being worked on."""
        return ()

    def lost(self, error: Exception) -> None:
        """Learn that the mailbox is gone; every pending call fails."""
        self._lost = error
        self._fail_pending(error)

    def _serve(self, request: Message) -> None:
        if self._closed:
            return
        body: SuccessResponse | AcademyErrorResponse = SuccessResponse()
        if not isinstance(request.get_body(), PingRequest):
            body = AcademyErrorResponse(4, text=f"{self.client_id} has no actions.")
        self._transport.post(request.create_response(body))

    def _take_one_way(self, message: Message) -> None:
        # Credits are for agents. What comes late is nobody's.
        if isinstance(message.get_body(), StreamItem):
            self._tell_stream(message.src, message)

    def _one_way_refused(self, message: Message, error: Exception) -> None:
        logger.debug("%r was refused: %s", message, error)
        if isinstance(message.get_body(), StreamCredit):
            self._tell_stream(message.dest, message)

    def _tell_stream(self, asked: EntityId, message: Message) -> None:
        on_one_way = self._streams.get((asked.uid.int, message.tag))
        if on_one_way is not None:
            on_one_way(message)

    def _fail_pending(self, error: Exception) -> None:
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # the caller may be gone: no complaint about that

    async def close(self) -> None:
        """Release the mailbox; calls in flight fail. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._fail_pending(ExchangeError(f"{self!r} was closed."))
        await self._transport.close()


class UserExchangeClient(ExchangeClient):
    """The client of a program outside of any agent; its mailbox ends with it."""

    async def close(self) -> None:
        """Terminate the mailbox and release the link. May be called twice."""
        if self._closed:
            return
        try:
            if self._lost is None:
                await self.retire()
        except ExchangeError as error:
            logger.warning("%s", error)
        finally:
            await super().close()


class AgentExchangeClient(ExchangeClient):
    """The client of a running agent: hands requests to a handler.

    Args:
        transport: link that is attached to the agent's mailbox.
        request_handler: gets each request; answers it with `respond`.
        config: see `ExchangeClientConfig`.
    """

    def __init__(
        self,
        transport: ExchangeTransport,
        request_handler: RequestHandler,
        config: ExchangeClientConfig | None = None,
    ) -> None:
        super().__init__(transport, config)
        self._handler = request_handler
        self._unanswered: dict[bytes, None] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._on_lost: Callable[[Exception], None] | None = None
        self.on_refused: Callable[[Message, Exception], None] | None = None
        """Called with each item of a stream that its receiver's mailbox refused."""

    @property
    def on_lost(self) -> Callable[[Exception], None] | None:
        """Called with the reason when the mailbox is lost, or was already."""
        return self._on_lost

    @on_lost.setter
    def on_lost(self, callback: Callable[[Exception], None] | None) -> None:
        self._on_lost = callback
        if callback is not None and self._lost is not None:
            callback(self._lost)

    @property
    def client_id(self) -> AgentId[Any]:
        """The agent's id."""
        return cast("AgentId[Any]", self._transport.mailbox_id)

    def post(self, message: Message) -> None:
        """Send one message without waiting; a response settles its request."""
        self._check_open()
        self._transport.post(message)
        if message.is_response():
            self._unanswered.pop(message.tag, None)

    async def send(self, message: Message) -> None:
        """Send one message; a response settles its request."""
        await super().send(message)
        if message.is_response():
            self._unanswered.pop(message.tag, None)

    def release(self, request: Message) -> None:
        """Give back a request that was not begun; the next incarnation may serve it."""
        self._unanswered.pop(request.tag, None)
        self._transport.release(request)

    def held(self) -> Iterable[bytes]:
        """Name the requests that were handed out and are not answered yet."""
        return self._unanswered

    def lost(self, error: Exception) -> None:
        """Learn that the mailbox is gone; tell the runtime, which stops."""
        super().lost(error)
        if self._on_lost is not None:
            self._on_lost(error)

    def _serve(self, request: Message) -> None:
        if self._closed:
            self._transport.release(request)
            return
        self._unanswered[request.tag] = None
        try:
            result = self._handler(request)
        except Exception as error:
            self._handler_failed(request, error)
            return
        if result is not None and inspect.isawaitable(result):
            task = asyncio.ensure_future(self._handled(request, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take_one_way(self, message: Message) -> None:
        if not isinstance(message.get_body(), StreamCredit):
            super()._take_one_way(message)
        elif not self._closed:
            self._handler(message)

    def _one_way_refused(self, message: Message, error: Exception) -> None:
        super()._one_way_refused(message, error)
        if self.on_refused is not None and isinstance(message.get_body(), StreamItem):
            self.on_refused(message, error)

    async def _handled(self, request: Message, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception as error:
            self._handler_failed(request, error)

    def _handler_failed(self, request: Message, error: Exception) -> None:
        """Answer a request that its handler fails to answer: nobody waits for ever."""
        logger.error("the handler of %s failed", self.client_id, exc_info=error)
        if request.tag in self._unanswered and self._lost is None:
            body = UserErrorResponse(Payload(SerializationStrategy.PICKLE, error))
            self.post(request.create_response(body))
