"""The public exchange, or another of protocol v1, with clients at Globus for agents.

Each agent has a client of its own there and renews its access by itself, so that it
needs neither its launcher's login nor the launcher.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from uuid import UUID

from academy.exception import ExchangeError
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.cloud.client import HttpExchangeFactory
from academy.exchange.cloud.globus.names import PUBLIC_EXCHANGE, exchange_client_id
from academy.exchange.cloud.v1.client import AT_ONCE, V1ExchangeTransport
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.transport import AgentRegistration, ExchangeTransport
from academy.identifier import AgentId, EntityId

if TYPE_CHECKING:
    import globus_sdk

    from academy.agent import Agent
    from academy.exchange.cloud.globus.agents import AgentClient, GlobusProject
    from academy.exchange.cloud.globus.login import TokenSource

AgentT = TypeVar("AgentT")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GlobusAgentRegistration(AgentRegistration[AgentT]):
    """Proof that a mailbox was registered, and the agent's client at Globus.

    Attributes:
        client_id: of the client.
        secret: of the client.
        exchange_type: what kind of registration this is.
    """

    client_id: str
    secret: str = field(repr=False)
    exchange_type: Literal["globus"] = "globus"


class GlobusExchangeFactory(HttpExchangeFactory):
    """Makes clients of an exchange that asks for Globus Auth, over protocol v1.

    Args:
        project_id: of the Globus project in which agents get their clients; whoever
            registers agents has to be an administrator of it.
        client_params: further parameters of these clients, as
            `globus_sdk.AuthClient.create_client` takes them.
        request_timeout_s: seconds that the exchange may take for an answer.
        url: address of the exchange. Default: the public one.
        ssl_verify: see `HttpExchangeFactory`.
        fingerprint: see `HttpExchangeFactory`.
        globus_app: see `HttpExchangeFactory`.
        config: how clients show that they are alive.
        reconnect_timeout_s: seconds that a failing request is tried again.

    Raises:
        ValueError: the id of the project is none.
    """

    def __init__(
        self,
        project_id: UUID | str,
        client_params: Mapping[str, Any] | None = None,
        request_timeout_s: float = 60,
        *,
        url: str = PUBLIC_EXCHANGE,
        ssl_verify: bool | None = None,
        fingerprint: str | None = None,
        globus_app: globus_sdk.GlobusApp | None = None,
        config: ExchangeClientConfig | None = None,
        reconnect_timeout_s: float = 3600,
    ) -> None:
        from academy.exchange.cloud.globus.login import GlobusLogin

        super().__init__(
            url,
            auth_method="globus",
            request_timeout_s=request_timeout_s,
            ssl_verify=ssl_verify,
            fingerprint=fingerprint,
            config=config,
            reconnect_timeout_s=reconnect_timeout_s,
        )
        try:
            self.project_id = str(UUID(str(project_id)))
        except ValueError:
            raise ValueError(
                f"The id of a Globus project is a UUID, not {str(project_id)!r}."
            ) from None
        self.client_params = dict(client_params or {})
        self._exchange = exchange_client_id()
        self.tokens = GlobusLogin(globus_app, self._exchange, manages_projects=True)
        self.speaks_v1 = True

    def for_agents(self) -> Self:
        """Return a factory without what the user, or an agent that launches, may do."""
        from academy.exchange.cloud.globus.login import GlobusLogin

        return self._with_tokens(GlobusLogin(exchange=self._exchange))

    def on_behalf_of(self, registration: AgentRegistration[Any]) -> Self:
        """Return a factory of clients that act as a registered agent."""
        if not isinstance(registration, GlobusAgentRegistration):
            return super().on_behalf_of(registration)
        from academy.exchange.cloud.globus.login import DelegatedAccess

        client_id, secret = registration.client_id, registration.secret
        token = registration.token or ""
        return self._with_tokens(
            DelegatedAccess(client_id, secret, token, self._exchange)
        )

    def _with_tokens(self, tokens: TokenSource) -> Self:
        other = self.with_token(None)
        other.tokens = tokens
        return other

    async def connect(
        self,
        registration: AgentRegistration[Any] | None = None,
        *,
        name: str | None = None,
    ) -> ExchangeTransport:
        factory, patience = self, self.first_patience
        if registration is not None:
            factory, patience = self.on_behalf_of(registration), self.request_timeout_s
        return await GlobusExchangeTransport.connect(
            factory, registration, name, patience
        )

    def project(self) -> GlobusProject:
        """Return the project, as whoever is logged in may use it."""
        from academy.exchange.cloud.globus.agents import GlobusProject
        from academy.exchange.cloud.globus.login import GlobusLogin

        assert isinstance(self.tokens, GlobusLogin)
        return GlobusProject(self.tokens, self.project_id, self.client_params)


class GlobusExchangeTransport(V1ExchangeTransport):
    """A mailbox at an exchange that asks for Globus Auth.

    `_clients` has the clients that were made here and not deleted yet, by agent; `_own`
    is the registration of the agent whose mailbox this is, if it is one's.
    """

    _factory: GlobusExchangeFactory

    def __init__(
        self,
        factory: HttpExchangeFactory,
        registration: AgentRegistration[Any] | None,
        name: str | None,
    ) -> None:
        super().__init__(factory, registration, name)
        self._own = registration
        self._clients: dict[AgentId[Any], str] = {}

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        # Mailboxes first: nobody is asked for consent if the exchange has trouble.
        aids = [plain.agent_id for plain in await super().register_agents(agents)]
        own = self._own
        if isinstance(own, GlobusAgentRegistration):
            # An agent may make no clients: its children share its own.
            return [replace(own, agent_id=aid) for aid in aids]
        try:
            clients = await self._make_clients(aids)
        except BaseException:
            for aid in aids:
                with suppress(ExchangeError):
                    await super().terminate(aid)
            raise
        made = list(zip(aids, clients, strict=True))
        self._clients |= {aid: client.client_id for aid, client in made}
        return [
            GlobusAgentRegistration(
                aid, client.token, client_id=client.client_id, secret=client.secret
            )
            for aid, client in made
        ]

    async def _make_clients(self, aids: Sequence[AgentId[Any]]) -> list[AgentClient]:
        from academy.exchange.cloud.globus.calls import in_thread

        given_up = threading.Event()
        try:
            return await in_thread(self._factory.project().create, aids, given_up)
        except BaseException:
            given_up.set()
            raise

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        await super().terminate(uid, reason)
        if self._own is None and isinstance(uid, AgentId):
            await self._delete_clients(uid)

    async def _delete_clients(self, *uids: AgentId[Any]) -> None:
        """Delete the clients of agents, whoever has made them."""
        from academy.exchange.cloud.globus.calls import in_thread

        known = {uid: self._clients.pop(uid, None) for uid in uids}
        if not known:
            return
        try:
            await in_thread(self._factory.project().delete, known)
        except ExchangeError as error:
            logger.warning("the clients of agents stay at Globus: %s", error)

    async def close(self) -> None:
        if not self._closed and self._clients:
            # Those that have ended by themselves: they may not delete their clients.
            with suppress(ExchangeError, TimeoutError):
                await self._delete_clients(*await self._ended())
        await super().close()

    async def _ended(self) -> list[AgentId[Any]]:
        turns = asyncio.Semaphore(AT_ONCE)

        async def has_ended(uid: AgentId[Any]) -> bool:
            async with turns:
                return await self.status(uid) is not MailboxStatus.ACTIVE

        uids = list(self._clients)
        ended = await asyncio.gather(*map(has_ended, uids))
        return [uid for uid, gone in zip(uids, ended, strict=True) if gone]
