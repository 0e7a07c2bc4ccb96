"""The way from another thread's event loop to an exchange that lives in this one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, TypeVar

from academy.exception import ExchangeError
from academy.exchange.factory import ExchangeFactory
from academy.exchange.inbox import Inbox
from academy.serialize import NoPickleMixin

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.mailbox_status import MailboxStatus
    from academy.exchange.presence import Presence, PresenceCallback
    from academy.exchange.transport import (
        AgentRegistration,
        ExchangeTransport,
        MailboxOwner,
    )
    from academy.identifier import AgentId, EntityId
    from academy.message import Message
    from academy.stats import AgentStats

T = TypeVar("T")


class BridgeFactory(NoPickleMixin, ExchangeFactory):
    """Lets threads use a local exchange, which belongs to one event loop.

    Args:
        inner: makes transports in the event loop that is running now.
    """

    def __init__(self, inner: ExchangeFactory) -> None:
        self.inner = inner
        self.client_config = inner.client_config
        self.home = asyncio.get_running_loop()

    async def connect(
        self,
        registration: AgentRegistration[Any] | None = None,
        *,
        name: str | None = None,
    ) -> ExchangeTransport:
        if asyncio.get_running_loop() is self.home:
            return await self.inner.connect(registration, name=name)
        inner = await self.at_home(self.inner.connect(registration, name=name))
        return BridgeTransport(self, inner)

    async def at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the exchange's event loop."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self.home)
        except RuntimeError as error:
            work.close()
            raise _gone() from error
        return await asyncio.wrap_future(future)


def _gone() -> ExchangeError:
    return ExchangeError("The event loop of the local exchange has been closed.")


class BridgeTransport(NoPickleMixin):
    """A mailbox whose transport lives in another thread's event loop."""

    def __init__(self, factory: BridgeFactory, inner: ExchangeTransport) -> None:
        self._factory = factory
        self._inner = inner
        self._inbox = Inbox()
        self._owner = _Owner(self._inbox)
        self._call_home(inner.start, self._owner)

    def _call_home(self, call: Any, *args: Any) -> None:
        try:
            self._factory.home.call_soon_threadsafe(call, *args)
        except RuntimeError as error:
            raise _gone() from error

    @property
    def mailbox_id(self) -> EntityId:
        return self._inner.mailbox_id

    def start(self, owner: MailboxOwner) -> None:
        self._inbox.start(owner)

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message, None]:
        return self._inbox.listen(timeout)

    def post(self, message: Message) -> None:
        self._call_home(self._post, message)

    def _post(self, message: Message) -> None:
        try:
            self._inner.post(message)
        except Exception as error:
            self._owner.refused(message, error)

    def withdraw(self, message: Message) -> None:
        with contextlib.suppress(ExchangeError):  # then nothing is sent anyway
            self._call_home(self._inner.withdraw, message)

    async def send(self, message: Message) -> None:
        await self._factory.at_home(self._inner.send(message))

    def release(self, request: Message) -> None:
        self._call_home(self._inner.release, request)

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        return await self._factory.at_home(self._inner.register_agents(agents))

    async def register_agent(
        self, agent: type[Agent], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        return await self._factory.at_home(self._inner.register_agent(agent, name=name))

    async def discover(
        self, agent: str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        return await self._factory.at_home(
            self._inner.discover(agent, allow_subclasses=allow_subclasses)
        )

    async def status(self, uid: EntityId) -> MailboxStatus:
        return await self._factory.at_home(self._inner.status(uid))

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        await self._factory.at_home(self._inner.terminate(uid, reason))

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        loop = asyncio.get_running_loop()

        def tell(changes: Mapping[EntityId, Presence]) -> None:
            with contextlib.suppress(RuntimeError):  # the watcher's loop is closed
                loop.call_soon_threadsafe(callback, changes)

        await self._factory.at_home(self._inner.watch(uids, tell))

    async def unwatch(self, uids: Collection[EntityId]) -> None:
        await self._factory.at_home(self._inner.unwatch(uids))

    async def update_heartbeat(self) -> None:
        await self._factory.at_home(self._inner.update_heartbeat())

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        return await self._factory.at_home(self._inner.heartbeat_status(uid))

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        return await self._factory.at_home(self._inner.agent_stats(uid))

    def factory(self) -> BridgeFactory:
        return self._factory

    async def close(self) -> None:
        await self._factory.at_home(self._inner.close())


class _Owner:
    """Hands what the exchange says over to the loop of the mailbox's owner."""

    def __init__(self, inbox: Inbox) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox = inbox

    def _tell(self, call: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the owner's loop has been closed
            self._loop.call_soon_threadsafe(call, *args)

    def deliver(self, message: Message) -> None:
        self._tell(self._inbox.deliver, message)

    def held(self) -> Iterable[bytes]:
        return ()  # only asked after a lost connection, and there is none to lose

    def refused(self, message: Message, error: Exception) -> None:
        self._tell(self._inbox.refused, message, error)

    def lost(self, error: Exception) -> None:
        self._tell(self._inbox.lost, error)
