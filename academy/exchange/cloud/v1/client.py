"""A mailbox at an exchange that speaks protocol v1 only.

v1 has no incarnations, leases or confirmations: a message that was read is gone from
the exchange. Here, each message has one tag, by which one that came twice is known.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import aiohttp

from academy.exception import (
    BadEntityIdError,
    ExchangeError,
    IncompatibleNetworkProtocolError,
    MailboxTerminatedError,
    ProtocolError,
)
from academy.exchange.cloud.v1.lanes import Lanes
from academy.exchange.cloud.v1.messages import (
    read_message,
    write_entity,
    write_message,
)
from academy.exchange.cloud.v1.presence import V1Presence
from academy.exchange.cloud.v1.requests import Events, Pauses, V1Requests
from academy.exchange.directory import new_agents
from academy.exchange.inbox import Inbox
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.transport import AgentRegistration, MailboxOwner
from academy.identifier import AgentId, EntityId, UserId
from academy.message import Message
from academy.serialize import NoPickleMixin
from academy.stats import AgentStats

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.exchange.presence import PresenceCallback

logger = logging.getLogger(__name__)

LISTEN_TIMEOUT = 60.0
"""Seconds without a message after which a stream is to end, to be opened again."""
SILENCE = 2 * LISTEN_TIMEOUT
"""Seconds without a byte after which the exchange counts as lost."""
LONG_SILENCE = 10 * LISTEN_TIMEOUT
"""The same where the exchange alone decides how long a stream may be silent."""
REMEMBERED = 10_000
"""Latest messages that are known again when they come twice."""
AT_ONCE = 16
"""Requests of one kind that are under way together."""
CLOSE_PATIENCE = 10.0

_TROUBLE = (OSError, aiohttp.ClientError, TimeoutError)


class V1ExchangeTransport(NoPickleMixin):
    """A mailbox at an exchange that speaks protocol v1 only.

    `_known` has what came lately; `_released` are requests to be given back.
    """

    def __init__(
        self,
        factory: HttpExchangeFactory,
        registration: AgentRegistration[Any] | None,
        name: str | None,
    ) -> None:
        self.mailbox_id: EntityId = (
            UserId.new(name) if registration is None else registration.agent_id
        )
        self._factory = factory
        self._requests = V1Requests(factory)
        self._inbox = Inbox()
        self._numbers = itertools.count(1)
        self._known: dict[tuple[EntityId, bytes, bool], None] = {}
        self._lanes = Lanes(self._put, self._inbox.refused)
        self._released: list[Message] = []
        self._background: list[asyncio.Task[None]] = []
        self._presence = V1Presence(self, factory.client_config)
        self._closed = False

    @classmethod
    async def connect(
        cls,
        factory: HttpExchangeFactory,
        registration: AgentRegistration[Any] | None,
        name: str | None,
        patience: float,
    ) -> Self:
        """Open a registered agent's mailbox, or a new user's.

        Raises:
            BadEntityIdError: the registration's mailbox is unknown.
            ExchangeConnectionError: there is no exchange of protocol v1 either.
        """
        transport = cls(factory, registration, name)
        try:
            await transport._open(patience, new=registration is None)
        except BaseException:
            await transport.close()
            raise
        return transport

    async def _open(self, patience: float, *, new: bool) -> None:
        """Find the mailbox, or register it, and begin to receive."""
        me = self.mailbox_id
        status = await self._mailbox("GET", "", me, patience=patience)
        if not isinstance(status, dict) or "status" not in status:
            raise ProtocolError(f"{self._factory.url} is no exchange")
        if new:
            await self._mailbox("POST", "", me, patience=patience)
        elif status["status"] == MailboxStatus.MISSING.value:
            raise BadEntityIdError(me)
        elif status["status"] == MailboxStatus.TERMINATED.value:
            raise MailboxTerminatedError(me)
        await self._mailbox("POST", "/heartbeat", me, patience=patience)
        loop = asyncio.get_running_loop()
        self._background += [
            loop.create_task(self._receive()),
            loop.create_task(self._beat()),
        ]

    async def _mailbox(
        self, method: str, path: str, uid: EntityId, **options: Any
    ) -> Any:
        return await self._requests.ask(
            method, "/mailbox" + path, mailbox=_text(uid), **options
        )

    # --- receiving

    async def _receive(self) -> None:
        """Read the stream of messages, opened again and again, until it is refused."""
        url, patience = self._factory.url, self._factory.reconnect_timeout_s
        pauses = Pauses(url, patience)
        options: dict[str, float] = {"timeout": LISTEN_TIMEOUT}
        try:
            while True:
                try:
                    pause = await self._read_stream(options)
                    pauses = Pauses(url, patience)
                    await asyncio.sleep(pause)
                except _TROUBLE as error:
                    logger.debug("lost the stream of %s: %r", self.mailbox_id, error)
                    await pauses.wait(error)
                except ProtocolError:
                    if not options:
                        raise
                    options = {}  # that is longer than this exchange allows
        except ExchangeError as error:
            self._inbox.lost(error)
        except Exception as error:
            logger.exception("%s cannot be read", self.mailbox_id)
            self._inbox.lost(ExchangeError(f"{self.mailbox_id}: {error!r}"))

    async def _read_stream(self, options: dict[str, float]) -> float:
        me = self.mailbox_id
        events = Events()
        async with self._requests.stream(
            "/mailbox/listen",
            SILENCE if options else LONG_SILENCE,
            about=me,
            mailbox=_text(me),
            **options,
        ) as response:
            async for chunk in response.content.iter_any():
                for data in events.feed(chunk):
                    self._take(data)
        return events.retry

    def _take(self, data: bytes) -> None:
        try:
            message = read_message(data)
        except (ProtocolError, IncompatibleNetworkProtocolError) as error:
            logger.error("dropped a message to %s: %s", self.mailbox_id, error)
            return
        key = message.src, message.tag, message.is_response()
        if key in self._known:
            return
        self._known[key] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        message.dest = self.mailbox_id
        message.lease = next(self._numbers)
        self._inbox.deliver(message)

    def start(self, owner: MailboxOwner) -> None:
        self._inbox.start(owner)

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message, None]:
        return self._inbox.listen(timeout)

    def release(self, request: Message) -> None:
        self._released.append(request)

    # --- sending

    def post(
        self, message: Message, stored: asyncio.Future[None] | None = None
    ) -> None:
        if self._closed:
            raise ExchangeError(f"the transport of {self.mailbox_id} is closed")
        self._lanes.add(message, stored)

    def withdraw(self, message: Message) -> None:
        pass  # it is one request, which may be on its way

    async def send(self, message: Message) -> None:
        stored = asyncio.get_running_loop().create_future()
        self.post(message, stored)
        await stored

    async def _put(self, about: EntityId, text: str) -> None:
        try:
            await self._requests.ask("PUT", "/message", about=about, message=text)
        except MailboxTerminatedError:
            # The status does not say whose mailbox is: theirs, or ours.
            if await self.status(self.mailbox_id) is MailboxStatus.TERMINATED:
                raise MailboxTerminatedError(self.mailbox_id) from None
            raise

    # --- the directory

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        made = new_agents(agents)
        turns = asyncio.Semaphore(AT_ONCE)

        async def register(aid: AgentId[Any], classes: Sequence[str]) -> None:
            async with turns:
                await self._mailbox("POST", "", aid, agent=",".join(classes))

        work = [register(aid, record.classes) for aid, record in made]
        for problem in await asyncio.gather(*work, return_exceptions=True):
            if problem is not None:
                for aid, _ in made:
                    with suppress(ExchangeError):
                        await self.terminate(aid)
                raise problem
        # v1 has no tokens of mailboxes: agents show what their program shows.
        token = self._requests.token
        return [AgentRegistration(aid, token) for aid, _ in made]

    async def register_agent(
        self, agent: type[Agent], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        (registration,) = await self.register_agents([(agent, name)])
        return registration

    async def discover(
        self, agent: str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        async with asyncio.timeout(self._factory.client_timeout):
            found = await self._requests.ask(
                "GET", "/discover", agent=agent, allow_subclasses=allow_subclasses
            )
        uids = filter(None, found["agent_ids"].split(","))
        return tuple(AgentId(uid=UUID(uid)) for uid in uids)

    async def _question(self, path: str, uid: EntityId) -> Any:
        async with asyncio.timeout(self._factory.client_timeout):
            return await self._mailbox("GET", path, uid, about=uid)

    async def status(self, uid: EntityId) -> MailboxStatus:
        return MailboxStatus((await self._question("", uid))["status"])

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        await self._lanes.drained()
        if uid == self.mailbox_id:
            # Who ends itself need not be told so by its stream.
            await self._stop(self._background)
        await self._mailbox("DELETE", "", uid)

    async def update_heartbeat(self) -> None:
        await self._mailbox("POST", "/heartbeat", self.mailbox_id)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._factory.client_config.heartbeat_interval)
            with suppress(ExchangeError):  # the stream tells its owner
                await self.update_heartbeat()

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        try:
            silence: float | None = (await self._question("/heartbeat", uid))[
                "heartbeat"
            ]
        except BadEntityIdError:
            return None
        return silence

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        return AgentStats(**await self._question("/stats", uid))

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        await self._presence.watch(uids, callback)

    async def unwatch(self, uids: Collection[EntityId]) -> None:
        self._presence.unwatch(uids)

    # --- the end

    def factory(self) -> HttpExchangeFactory:
        return self._factory

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # First of all: what is read from now on would be lost.
            await self._stop(self._background)
            await self._presence.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lanes.drained(), CLOSE_PATIENCE)
            await self._lanes.close(ExchangeError(f"{self.mailbox_id} was closed"))
            await self._give_back()
        finally:
            await self._requests.close()

    async def _stop(self, tasks: Collection[asyncio.Task[None]]) -> None:
        tasks = list(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _give_back(self) -> None:
        """Put requests that were not begun into the mailbox again."""
        released, self._released = self._released, []
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                for request in released:
                    await self._put(self.mailbox_id, write_message(request))
        except (ExchangeError, TimeoutError) as error:
            logger.warning(
                "%s could not give its requests back: %s", self.mailbox_id, error
            )


def _text(uid: EntityId) -> str:
    return json.dumps(write_entity(uid))
