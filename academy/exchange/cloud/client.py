"""Clients of a hosted exchange."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from academy.exception import ExchangeError
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.cloud import protocol
from academy.exchange.cloud.calls import batched
from academy.exchange.cloud.connector import is_unknown_path
from academy.exchange.cloud.credentials import (
    claims_of,
    current_address,
    find_fingerprint,
    find_token,
)
from academy.exchange.cloud.links import acquire, release
from academy.exchange.cloud.security.pinning import parse_fingerprint, trust
from academy.exchange.directory import new_agents
from academy.exchange.factory import ExchangeFactory
from academy.exchange.inbox import Inbox
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.presence import PresenceCallback
from academy.exchange.store import MailboxRecord
from academy.exchange.transport import (
    AgentRegistration,
    ExchangeTransport,
    MailboxOwner,
)
from academy.identifier import AgentId, EntityId, UserId
from academy.serialize import NoPickleMixin
from academy.stats import AgentStats

if TYPE_CHECKING:
    from ssl import SSLContext

    from globus_sdk import GlobusApp

    from academy.agent import Agent
    from academy.exchange.cloud.globus.console import ExchangeConsole
    from academy.exchange.cloud.globus.login import TokenSource
    from academy.exchange.cloud.link import Link
    from academy.message import Message


class HttpExchangeFactory(ExchangeFactory):
    """Makes clients of a hosted exchange.

    All clients and agents of a user share one outbound connection per event loop.

    Args:
        url: address of the exchange, `https://host:port`.
        token: who the clients are. Without one, `ACADEMY_EXCHANGE_TOKEN` and then
            `exchange.json` under the Academy home are searched for this url.
        auth_method: None for the exchange's own tokens; "globus" for Globus Auth: the
            client logs in as whom the environment names (see docs/exchange.md).
        additional_headers: sent with each connection.
        request_timeout_s: seconds that the exchange may take to accept a connection,
            and that an agent's first connection is tried for.
        ssl_verify: False trusts any certificate of an https url.
        fingerprint: SHA-256 of the only certificate to trust, in hex digits. Without
            one, `ACADEMY_EXCHANGE_FINGERPRINT` and then `exchange.json` are searched,
            and at last the certificate has to be one of a known authority.
        client_timeout: seconds that the exchange may take to answer a question (about a
            mailbox, say); None waits for as long as it is connected to or looked for.
        config: how clients show that they are alive.
        retries: how often a user's first connection is tried again; it is tried more
            often than that in the same time.
        initial_retry_backoff: seconds before the first retry; doubles with each.
        reconnect_timeout_s: seconds that a lost connection is tried again, before
            calls in flight fail.
        shared_by: whose agents are used, where they are shared with a group of yours:
            a user's name at Globus. Clients use protocol v1 then.
        globus_app: who logs in with Globus Auth, in this process. Default: the person
            or service that the environment names.

    Attributes:
        tokens: where Globus Auth's tokens come from, if it is used.

    Raises:
        ValueError: the url or the fingerprint is none, or the authentication method
            is not known.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        auth_method: str | None = None,
        additional_headers: Mapping[str, str] | None = None,
        request_timeout_s: float = 60,
        ssl_verify: bool | None = None,
        fingerprint: str | None = None,
        client_timeout: float | None = None,
        config: ExchangeClientConfig | None = None,
        retries: int = 1,
        initial_retry_backoff: float = 1,
        reconnect_timeout_s: float = 3600,
        shared_by: str | None = None,
        globus_app: GlobusApp | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"The url of an exchange begins with http:// or https://, not {url!r}."
            )
        if auth_method not in (None, "globus"):
            raise ValueError(
                f"auth_method={auth_method!r} is not known: there are None, for the "
                "exchange's own tokens, and 'globus'."
            )
        self.url = url.rstrip("/")
        self.ssl_verify = ssl_verify
        self._fingerprint = fingerprint and parse_fingerprint(fingerprint)
        self.client_timeout = client_timeout
        self.additional_headers = dict(additional_headers or {})
        self.request_timeout_s = request_timeout_s
        self.client_config = config or ExchangeClientConfig()
        self.first_patience = initial_retry_backoff * (2**retries - 1)
        self.reconnect_timeout_s = reconnect_timeout_s
        self.speaks_v1 = shared_by is not None
        if shared_by is not None:
            self.additional_headers[protocol.NAMESPACE_HEADER] = shared_by
        self.tokens: TokenSource | None = None
        if auth_method == "globus":
            from academy.exchange.cloud.globus.login import GlobusLogin

            self.tokens = GlobusLogin(globus_app)
        self._token = token

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def address(self) -> str:
        """Where the exchange is: elsewhere than at its url if it has moved."""
        return current_address(self.url)

    def link_key(self, token: str | None) -> tuple[object, ...]:
        """Return what clients must have in common to share a connection.

        Agents have their user in common, so that a thousand of them share one.
        """
        headers = tuple(sorted(self.additional_headers.items()))
        claims = claims_of(token)
        who = claims.get("ns"), claims.get("user", claims.get("sub"))
        return self.url, headers, self.find_fingerprint(), self.ssl_verify, who

    def __getstate__(self) -> dict[str, Any]:
        """Take along which certificate to trust: elsewhere it may not be found."""
        return {**self.__dict__, "_fingerprint": self.find_fingerprint()}

    def with_token(self, token: str | None) -> Self:
        """Return a factory of the same exchange with another token."""
        other = copy.copy(self)
        other._token = token
        return other

    def for_agents(self) -> Self:
        """Return a factory without the user's token."""
        return self.with_token(None)

    def on_behalf_of(self, registration: AgentRegistration[Any]) -> Self:
        """Return a factory with the agent's token, unless there is a user's here."""
        return self if self.find_token() else self.with_token(registration.token)

    def find_token(self) -> str | None:
        """Return the token to use, if there is one to be found."""
        if self._token or self.tokens is not None:
            return self._token
        return find_token(self.url)

    async def access_token(self, refused: str | None = None) -> str | None:
        """Return the token to use, logging in for it where that is needed.

        Args:
            refused: a token that the exchange does not take any more.

        Raises:
            UnauthorizedError: the login fails.
        """
        token = self.find_token()
        if self.tokens is None or (token and token != refused):
            return token
        from academy.exchange.cloud.globus.calls import in_thread

        return await in_thread(self.tokens.token, refused)

    def find_fingerprint(self) -> str | None:
        """Return the fingerprint of the certificate to trust, if one is to be found."""
        if self._fingerprint or self.ssl_verify is False:
            return self._fingerprint
        found = find_fingerprint(self.url)
        return found and parse_fingerprint(found)

    @property
    def trust(self) -> SSLContext:
        """Which certificates are trusted."""
        return trust(self.find_fingerprint(), self.ssl_verify is not False)

    async def _log_in(self, patience: float) -> str | None:
        """Return a token of the exchange for one of Globus Auth, if both are used."""
        if self.tokens is None:
            return None
        from academy.exchange.cloud.v1.requests import V1Requests

        async with V1Requests(self) as requests:
            found = await requests.ask(
                "POST", protocol.LOGIN_PATH, patience=patience, optional=True
            )
        return found and str(found["token"])

    async def console(self) -> ExchangeConsole:
        """Return what shares mailboxes with groups of Globus."""
        from academy.exchange.cloud.globus.console import ExchangeConsole

        return ExchangeConsole(self)

    async def connect(
        self,
        registration: AgentRegistration[Any] | None = None,
        *,
        name: str | None = None,
    ) -> ExchangeTransport:
        factory = self if registration is None else self.on_behalf_of(registration)
        token = factory.find_token()
        # A worker may start while the exchange is being restarted.
        patience = (
            self.first_patience if registration is None else self.request_timeout_s
        )
        link = None
        try:
            if not factory.speaks_v1:
                token = token or await factory._log_in(patience)
                link = await acquire(factory, token, patience)
        except ExchangeError as error:
            if not is_unknown_path(error):
                raise
        if link is None:
            from academy.exchange.cloud.v1.client import V1ExchangeTransport

            older = await V1ExchangeTransport.connect(
                factory, registration, name, patience
            )
            self.speaks_v1 = factory.speaks_v1 = True
            return older
        transport = HttpExchangeTransport(factory, link)
        try:
            if registration is None:
                await transport.register_user(UserId.new(name), token)
            else:
                await transport.attach(registration.agent_id, registration.token)
        except BaseException:
            await transport.close()
            raise
        return transport


class HttpExchangeTransport(NoPickleMixin):
    """A mailbox at a hosted exchange, served by the link that its loop shares."""

    __slots__ = (
        "_closed",
        "_factory",
        "_link",
        "_released",
        "inbox",
        "incarnation",
        "mailbox_id",
        "token",
    )

    mailbox_id: EntityId

    def __init__(self, factory: HttpExchangeFactory, link: Link) -> None:
        self._factory = factory
        self._link = link
        self._closed = False
        self._released: list[int] = []
        self.inbox = Inbox()
        self.incarnation = os.urandom(16)
        self.token: str | None = None

    async def attach(self, mailbox_id: EntityId, token: str | None) -> None:
        """Become the consumer of a mailbox."""
        self.mailbox_id = mailbox_id
        self.token = token
        await self._link.attach(self)

    async def register_user(self, user: UserId, token: str | None) -> None:
        """Register a user's mailbox and become its consumer."""
        self.mailbox_id = user
        item = {"uid": user.uid.hex, "agent": False, "name": user.name}
        (own,) = await self._link.call("register", mailboxes=[item], token=token)
        # Whoever speaks for an agent gets a token that opens the new mailbox.
        await self.attach(user, own or token)

    def start(self, owner: MailboxOwner) -> None:
        self.inbox.start(owner)

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message, None]:
        return self.inbox.listen(timeout)

    def post(self, message: Message) -> None:
        if self._closed:
            raise ExchangeError(f"the transport of {self.mailbox_id} is closed")
        self._link.sender.post(message, self.inbox)

    def withdraw(self, message: Message) -> None:
        self._link.sender.withdraw(message)

    async def send(self, message: Message) -> None:
        if self._closed:
            raise ExchangeError(f"the transport of {self.mailbox_id} is closed")
        stored = asyncio.get_running_loop().create_future()
        self._link.sender.post(message, self.inbox, stored)
        await stored

    def release(self, request: Message) -> None:
        self._released.append(request.lease)

    async def _call(self, method: str, **arguments: Any) -> Any:
        speaker = self.mailbox_id.uid.hex
        async with asyncio.timeout(self._factory.client_timeout):
            return await self._link.call(method, **{"as": speaker}, **arguments)

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        made = new_agents(agents)
        tokens: list[str | None] = []
        try:
            for batch in batched(_mailbox(record) for _, record in made):
                tokens += await self._call("register", mailboxes=batch)
        except (ExchangeError, TimeoutError):
            # All or none, as if one call could name them all.
            undone = [self.terminate(aid) for aid, _ in made[: len(tokens)]]
            await asyncio.gather(*undone, return_exceptions=True)
            raise
        return [
            AgentRegistration(aid, token)
            for (aid, _), token in zip(made, tokens, strict=True)
        ]

    async def register_agent(
        self, agent: type[Agent], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        (registration,) = await self.register_agents([(agent, name)])
        return registration

    async def discover(
        self, agent: str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        found = await self._call(
            "discover", agent=agent, allow_subclasses=allow_subclasses
        )
        return tuple(AgentId(uid=UUID(uid), name=name) for uid, name in found)

    async def status(self, uid: EntityId) -> MailboxStatus:
        return MailboxStatus(await self._call("status", uid=uid.uid.hex))

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        await self._call("terminate", uid=uid.uid.hex, reason=reason)

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        async with asyncio.timeout(self._factory.client_timeout):
            await self._link.watch(self, uids, callback)

    async def unwatch(self, uids: Collection[EntityId]) -> None:
        self._link.unwatch(self, uids)

    async def update_heartbeat(self) -> None:
        await self._call("touch", uid=self.mailbox_id.uid.hex)

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        silence: float | None = await self._call("silence", uid=uid.uid.hex)
        return silence

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        return AgentStats(**await self._call("stats", uid=uid.uid.hex))

    def factory(self) -> HttpExchangeFactory:
        return self._factory

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._link.unwatch(self, None)
        try:
            await self._link.detach(self, self._released)
        finally:
            await release(self._link)


def _mailbox(record: MailboxRecord) -> dict[str, Any]:
    return {
        "uid": record.uid.hex(),
        "agent": record.agent,
        "name": record.name,
        "classes": record.classes,
    }
