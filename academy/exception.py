"""Every error of this package: one tree, data in the arguments, words in `str()`.

All of them pickle without help, since their arguments are all they hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from academy.identifier import EntityId


class AcademyError(Exception):
    """Base of all errors of this package."""


# --- the exchange


class ExchangeError(AcademyError):
    """Something went wrong between a client and its exchange."""


class BadEntityIdError(ExchangeError):
    """No mailbox of this id was ever registered."""

    def __init__(self, uid: EntityId) -> None:
        super().__init__(uid)
        self.uid = uid

    def __str__(self) -> str:
        return f"No mailbox is registered for {self.uid!r} at this exchange."


class ForbiddenError(ExchangeError):
    """The credentials are good, but not for this."""


class UnauthorizedError(ExchangeError):
    """The credentials are missing, expired or not of this exchange."""


class ExchangeConnectionError(ExchangeError):
    """The exchange at an address could not be reached, or was lost for good."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"Exchange {self.address} cannot be reached: {self.reason}"


class ProtocolError(ExchangeError):
    """A peer sent bytes that no correct program sends."""


class StreamsUnsupportedError(ExchangeError):
    """A stream was asked for where only protocol v1 is spoken, which has none."""

    def __init__(self, uid: EntityId) -> None:
        super().__init__(uid)
        self.uid = uid

    def __str__(self) -> str:
        return (
            f"{self.uid} is reached through protocol v1, which has no streams: use an "
            "exchange of academy-hpc on both sides, or an action that returns a list."
        )


class StorageError(ExchangeError):
    """The exchange could not write what it was given (a full disk, for example)."""


class MessageTooLargeError(ExchangeError):
    """A message is above the exchange's limit; sizes in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"A message of {self.size} bytes is above the exchange's limit of "
            f"{self.limit} bytes. Send a reference (a path, a proxy) instead, or "
            "raise max_message_bytes in the exchange's configuration."
        )


class MailboxFullError(ExchangeError):
    """A mailbox holds as many unsettled messages as its exchange allows."""

    def __init__(self, uid: EntityId, limit: str) -> None:
        super().__init__(uid, limit)
        self.uid = uid
        self.limit = limit

    def __str__(self) -> str:
        return f"The mailbox of {self.uid} is full ({self.limit}): try again later."


class QuotaExceededError(ExchangeError):
    """A namespace has as much as its exchange lets it have.

    Attributes:
        quota: its key in the exchange's configuration.
        limit: its value.
        used: how much of it is used.
        asked: how much more was asked for.
    """

    def __init__(self, quota: str, limit: int, used: int, asked: int = 1) -> None:
        super().__init__(quota, limit, used, asked)
        self.quota = quota
        self.limit = limit
        self.used = used
        self.asked = asked

    def __str__(self) -> str:
        what, advice = _QUOTAS.get(self.quota, ("", "Try again later"))
        return (
            f"This namespace has used {self.used} of its {self.limit}{what} "
            f"({self.quota}), and {self.asked} more would be above that. {advice}, "
            "or ask whoever runs the exchange for more."
        )


class RateExceededError(ExchangeError):
    """A namespace has sent faster than its exchange lets it.

    Only clients of protocol v1 get it: others are read no faster than they may send.

    Attributes:
        quota: its key in the exchange's configuration.
        limit: its value.
        wait: seconds until more is taken.
    """

    def __init__(self, quota: str, limit: float, wait: int) -> None:
        super().__init__(quota, limit, wait)
        self.quota = quota
        self.limit = limit
        self.wait = wait

    def __str__(self) -> str:
        return (
            f"This namespace may send {self.limit} {str(self.quota).replace('_', ' ')},"
            f" and has sent more: try again in {self.wait} s, or ask whoever runs the "
            "exchange for more."
        )


_LATER = "Wait until agents have answered what they have"
_QUOTAS = {
    "max_namespace_mailboxes": (
        " mailboxes",
        "Terminate agents that are not needed any more",
    ),
    "max_namespace_messages": (" unsettled messages", _LATER),
    "max_namespace_bytes": (" bytes of unsettled messages", _LATER),
    "max_namespace_connections": (
        " connections",
        "End programs, or run more agents in each process",
    ),
}
"""By quota: of what, and what to do."""


class MessageExpiredError(ExchangeError):
    """Nobody has taken a request from a mailbox in time."""

    def __init__(self, uid: EntityId) -> None:
        super().__init__(uid)
        self.uid = uid

    def __str__(self) -> str:
        return (
            f"{self.uid} has not taken the request before it expired (by the call's "
            "timeout, or by message_lifetime in the exchange's configuration)."
        )


class SupersededError(ExchangeError):
    """A newer incarnation of the same entity has taken its mailbox over."""

    def __init__(self, uid: EntityId) -> None:
        super().__init__(uid)
        self.uid = uid

    def __str__(self) -> str:
        return f"{self.uid} runs elsewhere now: a newer incarnation attached."


class MailboxTerminatedError(ExchangeError):
    """The owner of a mailbox is gone for good.

    Constructs as the subclass that fits the type of `uid`.

    Attributes:
        uid: the owner.
        reason: why, if whoever terminated it has said so.
    """

    def __new__(cls, uid: EntityId, reason: str = "") -> MailboxTerminatedError:
        """Choose the subclass by the entity's role."""
        if cls is MailboxTerminatedError:
            cls = AgentTerminatedError if uid.role == "agent" else UserTerminatedError
        return super().__new__(cls, uid, reason)

    def __init__(self, uid: EntityId, reason: str = "") -> None:
        super().__init__(*((uid, reason) if reason else (uid,)))
        self.uid = uid
        self.reason = reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else "."
        return f"The mailbox of {self.uid} has been terminated{why}"


class AgentTerminatedError(MailboxTerminatedError):
    """The agent is gone for good."""


class UserTerminatedError(MailboxTerminatedError):
    """The user's client is gone for good."""


# --- actions and agents


class ActionCancelledError(AcademyError):
    """The agent cancelled the action, on request or because it shut down."""

    def __init__(self, action: str | None = None) -> None:
        super().__init__(action)
        self.action = action

    def __str__(self) -> str:
        name = f' "{self.action}"' if self.action else ""
        return f"The action{name} was cancelled by the agent."


class ActionInterruptedError(AcademyError):
    """The agent's process ended while it may have been running the action.

    Whether the action took effect is unknown, so it is not run again unless it is
    declared with `@action(idempotent=True)`. The caller decides.
    """

    def __init__(self, action: str | None = None) -> None:
        super().__init__(action)
        self.action = action

    def __str__(self) -> str:
        name = f' "{self.action}"' if self.action else ""
        return (
            f"The action{name} was interrupted when its agent's process ended; "
            "whether it took effect is unknown. @action(idempotent=True) lets the "
            "agent run it again."
        )


class ActionInvalidStateError(AcademyError):
    """The action to cancel is not known or is finished."""


class AgentNotInitializedError(AcademyError):
    """A property of a running agent was read before the agent ran."""

    def __str__(self) -> str:
        return (
            "The agent is not running yet: its context, id and exchange client "
            "exist from agent_on_startup() on."
        )


class AgentInactiveError(AcademyError):
    """The agent has missed its heartbeats."""

    def __init__(self, uid: EntityId) -> None:
        super().__init__(uid)
        self.uid = uid

    def __str__(self) -> str:
        return f"{self.uid} has missed its heartbeats."


class PingCancelledError(AcademyError):
    """The agent ended before it started, so nobody answers the ping."""


class RequestsNotServedError(AcademyError):
    """A request went to a client that has no actions."""


class ExchangeClientNotFoundError(AcademyError):
    """A handle was used where no exchange client is to be found."""

    def __init__(self, aid: EntityId | None) -> None:
        super().__init__(aid)
        self.aid = aid

    def __str__(self) -> str:
        return (
            f"The handle to {self.aid} found no exchange client in this context. Use "
            "it inside `async with` of a Manager or an exchange client, inside a "
            "running agent, or make it with exchange=."
        )


# --- serialization


class DeserializationMethodProhibitedError(AcademyError):
    """A payload came in a serialization that this side refuses."""

    def __init__(self, strategy: str) -> None:
        super().__init__(strategy)
        self.strategy = strategy

    def __str__(self) -> str:
        return (
            f'Payloads serialized as "{self.strategy}" are refused here (see '
            "allowed_deserializers)."
        )


class ExceptionSerializationError(AcademyError):
    """An action raised an exception that does not survive serialization."""

    def __init__(self, exception_name: str, serializer: str) -> None:
        super().__init__(exception_name, serializer)
        self.exception_name = exception_name
        self.serializer = serializer

    def __str__(self) -> str:
        return (
            f"The action raised {self.exception_name}, which does not survive "
            f'serialization as "{self.serializer}".'
        )


class ResultSerializationError(AcademyError):
    """An action returned something that does not serialize."""

    def __init__(self, action: str, type_name: str, reason: str) -> None:
        super().__init__(action, type_name, reason)
        self.action = action
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return (
            f'The result of action "{self.action}" is of type {self.type_name} and '
            f"does not serialize: {self.reason}"
        )


class AcademyRemoteError(AcademyError):
    """An exception that crossed as JSON, so as its formatted text only."""


class IncompatibleNetworkProtocolError(AcademyError):
    """A peer speaks a version of the protocol that this side does not."""

    def __init__(self, version: Any, cur_version: Any) -> None:
        super().__init__(version, cur_version)
        self.version = version
        self.cur_version = cur_version

    def __str__(self) -> str:
        return (
            f"The peer speaks protocol {self.version}, this side {self.cur_version}: "
            "use the same major version of academy-hpc on both sides."
        )


def raise_exceptions(
    exceptions: Iterable[BaseException], message: str | None = None
) -> None:
    """Raise nothing for none, the error itself for one, a group for several."""
    errors = list(exceptions)
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    raise BaseExceptionGroup(message or f"{len(errors)} errors", errors)
