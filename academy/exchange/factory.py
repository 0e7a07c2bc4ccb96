"""Factories: small, picklable descriptions of an exchange that make its clients."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Self

from academy.exchange.client import (
    AgentExchangeClient,
    RequestHandler,
    UserExchangeClient,
)
from academy.exchange.client_config import ExchangeClientConfig

if TYPE_CHECKING:
    from academy.exchange.transport import AgentRegistration, ExchangeTransport


class ExchangeFactory(abc.ABC):
    """Makes clients of one exchange, here or in another process.

    Subclasses implement `connect`; everything else is the same for all exchanges.
    """

    client_config: ExchangeClientConfig = ExchangeClientConfig()

    @abc.abstractmethod
    async def connect(
        self,
        registration: AgentRegistration[Any] | None = None,
        *,
        name: str | None = None,
    ) -> ExchangeTransport:
        """Open a link attached to a registered agent's mailbox, or to a new user's.

        Raises:
            BadEntityIdError: the registration's mailbox is unknown.
            ExchangeConnectionError: the exchange cannot be reached.
            UnauthorizedError: it refuses the credentials.
        """

    def for_agents(self) -> Self:
        """Return what agents on other machines get: this without the user's secrets.

        Their own registrations open what they need.
        """
        return self

    def on_behalf_of(self, registration: AgentRegistration[Any]) -> Self:
        """Return a factory whose clients may do what a registered agent may."""
        return self

    async def create_user_client(
        self, name: str | None = None, start_listener: bool = True
    ) -> UserExchangeClient:
        """Make a client with a mailbox of its own that ends with it.

        Args:
            name: for people, in logs.
            start_listener: False leaves incoming messages to `transport.listen`.
        """
        transport = await self.connect(name=name)
        client = UserExchangeClient(transport, self.client_config)
        if start_listener:
            transport.start(client)
        return client

    async def create_agent_client(
        self, registration: AgentRegistration[Any], request_handler: RequestHandler
    ) -> AgentExchangeClient:
        """Make the client of a registered agent; `request_handler` gets requests.

        Raises:
            BadEntityIdError: the agent is not registered.
        """
        transport = await self.connect(registration)
        client = AgentExchangeClient(transport, request_handler, self.client_config)
        transport.start(client)
        return client
