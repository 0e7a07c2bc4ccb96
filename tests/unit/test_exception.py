"""Errors: they cross processes unharmed and say what was wrong."""

from __future__ import annotations

import inspect
import pickle
from uuid import UUID

import pytest

from academy import exception
from academy.exception import (
    AcademyError,
    AcademyRemoteError,
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    AgentInactiveError,
    AgentNotInitializedError,
    AgentTerminatedError,
    BadEntityIdError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
    ExchangeClientNotFoundError,
    ExchangeConnectionError,
    ExchangeError,
    ForbiddenError,
    IncompatibleNetworkProtocolError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageExpiredError,
    MessageTooLargeError,
    PingCancelledError,
    ProtocolError,
    QuotaExceededError,
    RateExceededError,
    RequestsNotServedError,
    ResultSerializationError,
    StorageError,
    StreamsUnsupportedError,
    SupersededError,
    UnauthorizedError,
    UserTerminatedError,
    raise_exceptions,
)
from academy.identifier import AgentId, UserId

AGENT: AgentId[object] = AgentId(uid=UUID(int=1), name="alice")
USER = UserId(uid=UUID(int=2), name="bob")

# Each error, and words that its text must contain.
ERRORS: list[tuple[AcademyError, list[str]]] = [
    (AcademyError("words"), ["words"]),
    (AcademyRemoteError("Traceback of KeyError"), ["KeyError"]),
    (ActionCancelledError(), ["cancelled"]),
    (ActionCancelledError("add"), ['"add"', "cancelled"]),
    (ActionInterruptedError("add"), ['"add"', "unknown", "idempotent=True"]),
    (ActionInvalidStateError("no action runs"), ["no action runs"]),
    (AgentInactiveError(AGENT), ["alice", "heartbeats"]),
    (AgentNotInitializedError(), ["not running yet", "agent_on_startup"]),
    (AgentTerminatedError(AGENT), ["alice", "terminated"]),
    (BadEntityIdError(AGENT), ["alice", "registered"]),
    (DeserializationMethodProhibitedError("pickle"), ['"pickle"', "allowed_"]),
    (ExceptionSerializationError("x.Err", "pickle"), ["x.Err", '"pickle"']),
    (ExchangeClientNotFoundError(AGENT), ["alice", "async with", "exchange="]),
    (ExchangeConnectionError("https://x:1", "refused"), ["https://x:1", "refused"]),
    (ExchangeError("words"), ["words"]),
    (ForbiddenError("words"), ["words"]),
    (IncompatibleNetworkProtocolError(3, 1), ["3", "1", "academy-hpc"]),
    (MailboxFullError(AGENT, "9 messages"), ["alice", "9 messages"]),
    (MailboxTerminatedError(USER), ["bob", "terminated"]),
    (MessageExpiredError(AGENT), ["alice", "timeout", "message_lifetime"]),
    (MessageTooLargeError(11, 10), ["11 bytes", "10 bytes", "max_message_bytes"]),
    (PingCancelledError("ended before it had started"), ["ended before"]),
    (ProtocolError("words"), ["words"]),
    (QuotaExceededError("max_namespace_bytes", 9, 7, 3), ["9", "7", "3 more", "ask "]),
    (RateExceededError("bytes_per_second", 9, 2), ["9 bytes per second", "in 2 s"]),
    (RequestsNotServedError("has no actions"), ["has no actions"]),
    (ResultSerializationError("add", "m.T", "a lock"), ['"add"', "m.T", "a lock"]),
    (StorageError("disk full"), ["disk full"]),
    (StreamsUnsupportedError(AGENT), ["alice", "v1", "list"]),
    (SupersededError(AGENT), ["alice", "newer incarnation"]),
    (UnauthorizedError("words"), ["words"]),
    (UserTerminatedError(USER), ["bob", "terminated"]),
]
IDS = [type(error).__name__ for error, _ in ERRORS]


def test_every_error_of_the_package_is_tested_here() -> None:
    defined = {
        member
        for _, member in inspect.getmembers(exception, inspect.isclass)
        if issubclass(member, Exception)
    }
    abstract = {MailboxTerminatedError}  # it constructs as one of its subclasses
    assert defined - abstract == {type(error) for error, _ in ERRORS}


@pytest.mark.parametrize(("error", "words"), ERRORS, ids=IDS)
def test_an_error_survives_pickling(error: AcademyError, words: list[str]) -> None:
    error.add_note("a note")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error)
        assert (copy.args, copy.__dict__) == (error.args, error.__dict__)
        assert str(copy) == str(error)


@pytest.mark.parametrize(("error", "words"), ERRORS, ids=IDS)
def test_an_error_says_what_was_wrong(error: AcademyError, words: list[str]) -> None:
    assert [word for word in words if word not in str(error)] == []


def test_a_terminated_mailbox_is_that_of_an_agent_or_of_a_user() -> None:
    of_agent, of_user = MailboxTerminatedError(AGENT), MailboxTerminatedError(USER)
    assert (type(of_agent), of_agent.uid) == (AgentTerminatedError, AGENT)
    assert (type(of_user), of_user.uid) == (UserTerminatedError, USER)


@pytest.mark.parametrize(
    "kind",
    [
        BadEntityIdError,
        ForbiddenError,
        MailboxTerminatedError,
        MessageTooLargeError,
        UnauthorizedError,
    ],
)
def test_errors_of_the_exchange_are_exchange_errors(kind: type[Exception]) -> None:
    assert issubclass(kind, ExchangeError)


@pytest.mark.parametrize(
    "kind",
    [
        AcademyRemoteError,
        ActionCancelledError,
        ActionInvalidStateError,
        AgentInactiveError,
        AgentNotInitializedError,
        DeserializationMethodProhibitedError,
        ExceptionSerializationError,
        ExchangeClientNotFoundError,
        IncompatibleNetworkProtocolError,
        PingCancelledError,
    ],
)
def test_errors_of_agents_are_not_exchange_errors(kind: type[Exception]) -> None:
    assert not issubclass(kind, ExchangeError)


def test_no_exception_raises_nothing() -> None:
    raise_exceptions([])


def test_one_exception_is_raised_itself() -> None:
    error = KeyError("one")
    with pytest.raises(KeyError) as caught:
        raise_exceptions([error])
    assert caught.value is error


def test_several_exceptions_are_raised_as_a_group() -> None:
    errors = [KeyError("one"), ValueError("two")]
    with pytest.raises(ExceptionGroup, match="went wrong") as caught:
        raise_exceptions(iter(errors), "went wrong")
    assert list(caught.value.exceptions) == errors
