"""The exchange of one process: messages are handed over by reference."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from academy.exception import AcademyError, ExchangeError
from academy.exchange.broker import Broker
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.directory import address_flags, new_agents
from academy.exchange.factory import ExchangeFactory
from academy.exchange.inbox import Inbox
from academy.exchange.mailbox import Limits
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.outbox import Outbox
from academy.exchange.presence import Presence, PresenceCallback, dispatch
from academy.exchange.store import Envelope, MailboxRecord
from academy.exchange.store.memory import MemoryStore
from academy.exchange.transport import AgentRegistration, MailboxOwner
from academy.identifier import AgentId, EntityId, UserId
from academy.message import Message
from academy.scheduler.here import place
from academy.serialize import NoPickleMixin

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.stats import AgentStats

# Nothing is copied or stored, so neither sizes nor a consumer's pace matter.
_LIMITS = Limits(window_messages=1 << 62, window_bytes=1 << 62)


class LocalExchangeFactory(ExchangeFactory):
    """An exchange that lives in this object, for one event loop; it does not pickle.

    Arguments and results are passed by reference: what an agent changes, its caller
    sees changed.
    """

    def __init__(self, *, config: ExchangeClientConfig | None = None) -> None:
        if config is not None:
            self.client_config = config
        self._broker = Broker(MemoryStore(), _LIMITS)

    def __getstate__(self) -> Any:
        raise pickle.PicklingError(
            "The local exchange lives in one process and does not pickle. Agents in "
            "other processes need a hosted exchange: use HttpExchangeFactory, or "
            "spawn_http_exchange()."
        )

    async def connect(
        self,
        registration: AgentRegistration[Any] | None = None,
        *,
        name: str | None = None,
    ) -> LocalExchangeTransport:
        """Attach to a registered agent's mailbox, or to a new user's."""
        owner: EntityId
        if registration is None:
            owner = UserId.new(name)
            record = MailboxRecord(owner.uid.bytes, False, name)
            await self._broker.register([record])
        else:
            owner = registration.agent_id
        transport = LocalExchangeTransport(self, self._broker, owner)
        try:
            await transport.attach()
        except ExchangeError:
            await transport.close()
            raise
        return transport


class LocalExchangeTransport(NoPickleMixin):
    """A mailbox of a local exchange."""

    __slots__ = (
        "_broker",
        "_closed",
        "_factory",
        "_inbox",
        "_outbox",
        "_released",
        "_session",
        "_watched",
        "mailbox_id",
    )

    def __init__(
        self, factory: LocalExchangeFactory, broker: Broker, mailbox_id: EntityId
    ) -> None:
        self.mailbox_id = mailbox_id
        self._factory = factory
        self._broker = broker
        self._inbox = Inbox()
        self._session = broker.connect(os.urandom(16), self)
        self._outbox = Outbox()
        self._released: list[int] = []
        self._watched: dict[bytes, tuple[EntityId, PresenceCallback]] = {}
        self._closed = False

    async def attach(self) -> None:
        """Become the consumer of the mailbox."""
        uid = self.mailbox_id.uid.bytes
        await self._broker.attach(self._session, uid, os.urandom(16), place=place())
        self._broker.start(self._session, [uid])

    def start(self, owner: MailboxOwner) -> None:
        self._inbox.start(owner)

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message, None]:
        return self._inbox.listen(timeout)

    def post(
        self, message: Message, stored: asyncio.Future[None] | None = None
    ) -> None:
        if self._closed:
            raise ExchangeError(f"the transport of {self.mailbox_id} is closed")
        sequence = self._outbox.add(message, self._inbox, stored=stored)
        envelope = Envelope(
            message.dest.uid.bytes,
            message.src.uid.bytes,
            message.tag,
            address_flags(message),
            message,
            1,
            message.lease or message.lifetime,
        )
        self._broker.post(self._session, sequence, envelope)

    def withdraw(self, message: Message) -> None:
        pass  # it was sent at once

    async def send(self, message: Message) -> None:
        stored = asyncio.get_running_loop().create_future()
        self.post(message, stored)
        await stored

    def release(self, request: Message) -> None:
        self._released.append(request.lease)

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        made = new_agents(agents)
        await self._broker.register([record for _, record in made])
        return [AgentRegistration(aid) for aid, _ in made]

    async def register_agent(
        self, agent: type[Agent], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        (registration,) = await self.register_agents([(agent, name)])
        return registration

    async def discover(
        self, agent: str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        found = self._broker.discover(agent, allow_subclasses)
        return tuple(AgentId(uid=UUID(bytes=r.uid), name=r.name) for r in found)

    async def status(self, uid: EntityId) -> MailboxStatus:
        return self._broker.status(uid.uid.bytes)

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        by = self.mailbox_id.uid.bytes
        await self._broker.terminate(uid.uid.bytes, by, reason)

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        self._watched.update((uid.uid.bytes, (uid, callback)) for uid in uids)
        self._broker.watch(self._session, [uid.uid.bytes for uid in uids])

    async def unwatch(self, uids: Collection[EntityId]) -> None:
        for uid in uids:
            self._watched.pop(uid.uid.bytes, None)
        self._broker.unwatch(self._session, [uid.uid.bytes for uid in uids])

    async def update_heartbeat(self) -> None:
        self._broker.touch(self.mailbox_id.uid.bytes)

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        return self._broker.silence(uid.uid.bytes)

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        return self._broker.stats(uid.uid.bytes)

    def factory(self) -> LocalExchangeFactory:
        return self._factory

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            uid = self.mailbox_id.uid.bytes
            await self._broker.detach(self._session, uid, self._released)
            self._broker.disconnect(self._session)
            self._outbox.fail(ExchangeError(f"{self.mailbox_id} was closed"))

    # --- what the broker says (Consumer)

    def deliver(self, envelope: Envelope) -> None:
        message = envelope.payload
        if not isinstance(message, Message):  # the broker's own words are bytes
            src: AgentId[Any] = AgentId(uid=UUID(bytes=envelope.src))
            data = memoryview(message)
            message = Message(src, self.mailbox_id, envelope.tag, data=data)
        message.lease = envelope.number
        message.redelivered = envelope.redelivered
        self._broker.acknowledge(self._session, 1)
        self._inbox.deliver(message)

    def delivered(self) -> None:
        """Each message is on its way already."""

    def confirm(self, sequence: int) -> None:
        self._outbox.confirm(sequence)

    def refuse(self, sequence: int, tag: bytes, error: AcademyError) -> None:
        self._outbox.refuse(sequence, error)
        self._broker.heard(self._session, sequence)

    def lost(self, uid: bytes, error: AcademyError) -> None:
        self._inbox.lost(error)

    def notice(self, changes: Mapping[bytes, Presence]) -> None:
        dispatch(changes, self._watched)

    def reset(self, error: AcademyError) -> None:
        self._inbox.lost(error)
