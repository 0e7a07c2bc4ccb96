"""The contract between an exchange client and the link to its exchange."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from academy.exchange.mailbox_status import MailboxStatus

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.presence import PresenceCallback
    from academy.identifier import AgentId, EntityId
    from academy.message import Message
    from academy.stats import AgentStats

AgentT = TypeVar("AgentT")


@dataclass(frozen=True)
class AgentRegistration(Generic[AgentT]):
    """Proof that a mailbox was registered for an agent; all its owner needs.

    Attributes:
        agent_id: whose mailbox it is.
        token: opens this mailbox only, on exchanges that ask for a token.
    """

    agent_id: AgentId[AgentT]
    token: str | None = field(default=None, repr=False)


class MailboxOwner(Protocol):
    """Who consumes a mailbox. All calls come from the transport's event loop."""

    def deliver(self, message: Message) -> None:
        """Take one message; must neither block nor raise."""

    def held(self) -> Iterable[bytes]:
        """Name the tags of requests that were taken and not answered yet.

        After a lost connection the exchange delivers the others again.
        """

    def refused(self, message: Message, error: Exception) -> None:
        """Learn that the exchange did not take a posted message."""

    def lost(self, error: Exception) -> None:
        """Learn that the mailbox is gone for this owner, and why."""


class ExchangeTransport(Protocol):
    """One mailbox's link to its exchange.

    Messages of one sender to one receiver arrive in the order in which they were
    posted, once, whatever happens to connections in between. Every coroutine raises
    `ExchangeError`; all may be called until `close()`, which may be called twice.
    """

    @property
    def mailbox_id(self) -> EntityId:
        """Whose mailbox this is."""

    def start(self, owner: MailboxOwner) -> None:
        """Push what arrives to `owner` from now on (instead of `listen`)."""

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message, None]:
        """Yield what arrives; ends after `timeout` seconds without a message.

        Raises:
            MailboxTerminatedError: the mailbox was terminated.
            SupersededError: another incarnation has attached.
        """

    def post(self, message: Message) -> None:
        """Send without waiting; a refusal goes to `MailboxOwner.refused`.

        Raises:
            Exception: the body does not serialize, or is too large.
        """

    def withdraw(self, message: Message) -> None:
        """Learn that nobody waits for the answer to a request that was posted.

        What of it was not sent yet need not be.
        """

    async def send(self, message: Message) -> None:
        """Send, and return when the exchange has stored the message.

        Raises:
            BadEntityIdError: the destination was never registered.
            MailboxTerminatedError: the destination is gone for good.
            MailboxFullError: the destination has too many unsettled messages.
            QuotaExceededError: all mailboxes together have.
        """

    def release(self, request: Message) -> None:
        """Give a request back unserved, when this transport closes.

        The next incarnation gets it as if nobody had had it before.
        """

    async def register_agents(
        self, agents: Sequence[tuple[type[Agent], str | None]]
    ) -> list[AgentRegistration[Any]]:
        """Register mailboxes for agents (type, name), all or none, in one call."""

    async def register_agent(
        self, agent: type[Agent], *, name: str | None = None
    ) -> AgentRegistration[Any]:
        """Register one mailbox."""

    async def discover(
        self, agent: str, *, allow_subclasses: bool = True
    ) -> tuple[AgentId[Any], ...]:
        """Find the agents of a qualified class name that are not terminated."""

    async def status(self, uid: EntityId) -> MailboxStatus:
        """Return MISSING, ACTIVE or TERMINATED (see also `heartbeat_status`)."""

    async def terminate(self, uid: EntityId, reason: str = "") -> None:
        """Terminate a mailbox and answer its requests; no-op if it is unknown.

        Whoever wants something of it from then on is told the reason.
        """

    async def watch(
        self, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Have `callback` told where the owners of mailboxes are, and every change.

        It has been told of all of them when this returns, and is told of them again
        after a lost connection: of what is lost between two states it learns only the
        last one. Changes that come together are told together; after TERMINATED none
        follows. An id has one callback per transport: the latest. `close()` ends it.
        """

    async def unwatch(self, uids: Collection[EntityId]) -> None:
        """Tell no more about these."""

    async def update_heartbeat(self) -> None:
        """Show a sign of life beyond those that the link shows by itself."""

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Return the seconds since an entity's last sign of life; None if never."""

    async def agent_stats(self, uid: EntityId) -> AgentStats:
        """Return the message counts of an entity.

        Raises:
            BadEntityIdError: it was never registered.
        """

    def factory(self) -> ExchangeFactory:
        """Return a factory for further clients of the same exchange."""

    async def close(self) -> None:
        """Detach from the mailbox and release the link; the mailbox stays."""
