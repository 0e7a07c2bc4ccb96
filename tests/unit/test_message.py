"""Messages: what was sent is what arrives, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    AgentTerminatedError,
    IncompatibleNetworkProtocolError,
    MailboxTerminatedError,
    MessageExpiredError,
    PingCancelledError,
    RequestsNotServedError,
    UserTerminatedError,
)
from academy.identifier import AgentId, EntityId, UserId
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Message,
    PingRequest,
    ShutdownRequest,
    StreamCredit,
    StreamEnd,
    StreamItem,
    StreamRequest,
    SuccessResponse,
    UserErrorResponse,
    decode_body,
    encode_body,
)
from academy.serialize import JSON, PICKLE, Payload

AGENT: AgentId[Any] = AgentId(uid=UUID(int=1), name="alice")
USER = UserId(uid=UUID(int=2), name="bob")

names = st.none() | st.text(max_size=40)
entities = st.one_of(
    st.builds(AgentId, uid=st.uuids(), name=names),
    st.builds(UserId, uid=st.uuids(), name=names),
)
strategies = st.sampled_from([PICKLE, JSON])
values = st.none() | st.integers() | st.text() | st.lists(st.booleans())
payloads = st.builds(Payload, strategies, values)
arguments = st.builds(
    Payload, strategies, st.tuples(st.lists(values), st.dictionaries(st.text(), values))
)
coded_errors = st.one_of(
    st.builds(MailboxTerminatedError, entities),
    st.builds(MessageExpiredError, entities),
    st.builds(ActionCancelledError, st.text(min_size=1)),
    st.builds(ActionInterruptedError, st.text(min_size=1)),
    st.builds(ActionInvalidStateError, st.text(min_size=1)),
    st.builds(PingCancelledError, st.text(min_size=1)),
    st.builds(RequestsNotServedError, st.text(min_size=1)),
)
counts = st.integers(0, 2**64 - 1)
rooms = st.integers(0, 2**32 - 1)
action_fields = (
    st.text(max_size=60),
    arguments,
    st.none() | strategies,
    st.none() | strategies,
)
bodies = st.one_of(
    st.builds(StreamItem, counts, payloads),
    st.builds(StreamCredit, counts),
    st.builds(StreamEnd, counts),
    st.builds(ActionRequest, *action_fields),
    st.builds(StreamRequest, *action_fields, room_items=rooms, room_bytes=rooms),
    st.builds(CancelRequest, st.binary(min_size=16, max_size=16)),
    st.builds(PingRequest),
    st.builds(ShutdownRequest, st.sampled_from([None, True, False])),
    st.builds(ActionResponse, payloads),
    st.builds(SuccessResponse),
    st.builds(AcademyErrorResponse.of, coded_errors),
    st.builds(
        UserErrorResponse, st.builds(Payload, strategies, st.builds(KeyError, values))
    ),
)
messages = st.builds(
    Message,
    entities,
    entities,
    st.binary(min_size=16, max_size=16),
    bodies,
    label=st.none() | st.uuids(),
)


def fields(body: Any) -> dict[str, Any]:
    """What a body says, payloads decoded."""
    found = {}
    names = [n for kind in type(body).__mro__ for n in getattr(kind, "__slots__", ())]
    for name in names:
        value = getattr(body, name)
        if isinstance(body, UserErrorResponse):
            error = body.get_exception()
            value = None if value.strategy is JSON else (type(error), error.args)
        elif isinstance(value, Payload):
            value = (value.strategy, freeze(value.load()))
        found[name] = value
    return found


def freeze(value: Any) -> Any:
    return [freeze(v) for v in value] if isinstance(value, list | tuple) else value


def header(message: Message) -> tuple[EntityId, EntityId, bytes, UUID | None]:
    return message.src, message.dest, message.tag, message.label


@given(messages)
def test_a_message_survives_its_binary_form(message: Message) -> None:
    copy = Message.model_deserialize(message.model_serialize())
    assert header(copy) == header(message)
    assert type(copy.body) is type(message.body)
    assert fields(copy.body) == fields(message.body)


@given(messages)
def test_a_copy_is_passed_on_byte_for_byte(message: Message) -> None:
    data = message.model_serialize()
    copy = Message.model_deserialize(data)
    once = b"".join(encode_body(copy))
    assert data.endswith(once[3 + once[2] :])


@given(messages)
def test_the_senders_name_travels_with_a_request(message: Message) -> None:
    copy = Message.model_deserialize(message.model_serialize())
    name = message.src.name or None
    assert copy.src.name == (name if message.is_request() else None)


@given(messages, st.data())
def test_a_truncated_message_is_an_error_or_a_shorter_payload(
    message: Message, data: st.DataObject
) -> None:
    whole = message.model_serialize()
    cut = data.draw(st.integers(0, len(whole) - 1))
    try:
        copy = Message.model_deserialize(whole[:cut])
    except ValueError:
        return
    assert type(copy.body) is type(message.body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    try:
        Message.model_deserialize(data)
    except (ValueError, IncompatibleNetworkProtocolError):
        return
    assert data[0] == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_value_error(data: bytes) -> None:
    try:
        decode_body(memoryview(data))
    except ValueError:
        return
    assert 1 <= data[0] <= 8


def test_another_version_is_named() -> None:
    data = bytearray(Message.create(USER, AGENT, PingRequest()).model_serialize())
    data[0] = 9
    with pytest.raises(IncompatibleNetworkProtocolError, match="protocol 9"):
        Message.model_deserialize(data)


def test_messages_have_tags_of_their_own() -> None:
    made = [Message.create(USER, AGENT, PingRequest()) for _ in range(100)]
    assert len({message.tag for message in made}) == 100


def test_a_response_goes_back_with_tag_label_and_lease() -> None:
    label = UUID(int=3)
    request = Message.create(USER, AGENT, PingRequest(), label=label)
    request.lease = 7
    response = request.create_response(SuccessResponse())
    assert (response.src, response.dest) == (AGENT, USER)
    assert (response.tag, response.label, response.lease) == (request.tag, label, 7)
    assert (request.is_request(), response.is_response()) == (True, True)


def test_a_response_has_no_response() -> None:
    request = Message.create(USER, AGENT, PingRequest())
    response = request.create_response(SuccessResponse())
    with pytest.raises(ValueError, match="no response"):
        response.create_response(SuccessResponse())


def test_the_header_is_for_people() -> None:
    message = Message.create(USER, AGENT, PingRequest(), tag=UUID(int=5).bytes)
    assert message.header == (USER, AGENT, UUID(int=5), None, "request")
    assert "PingRequest" in repr(message)
    assert "UserId<bob> -> AgentId<alice>" in repr(message)


def test_a_request_carries_positional_and_keyword_arguments() -> None:
    request = ActionRequest.of("add", (1, 2), {"times": 3})
    copy = decode_body(
        memoryview(b"".join(encode_body(Message.create(USER, AGENT, request))))
    )
    assert isinstance(copy, ActionRequest)
    assert (copy.action, copy.get_args(), copy.get_kwargs()) == (
        "add",
        (1, 2),
        {"times": 3},
    )


def test_a_result_is_wanted_as_the_arguments_came_unless_said() -> None:
    plain = ActionRequest.of("f", strategy=JSON)
    assert (plain.result_strategy, plain.exception_strategy) == (JSON, JSON)
    asked = ActionRequest.of("f", strategy=JSON, result_serialization=PICKLE)
    assert (asked.result_strategy, asked.exception_strategy) == (PICKLE, PICKLE)
    both = ActionRequest.of(
        "f", result_serialization=PICKLE, exception_serialization=JSON
    )
    assert (both.result_strategy, both.exception_strategy) == (PICKLE, JSON)


def test_the_target_of_a_cancel_request_is_a_tag() -> None:
    assert CancelRequest(UUID(int=9).bytes).target_tag == UUID(int=9)


@pytest.mark.parametrize(
    ("owner", "kind"), [(AGENT, AgentTerminatedError), (USER, UserTerminatedError)]
)
def test_a_terminated_mailbox_is_told_by_code(owner: Any, kind: type) -> None:
    response = AcademyErrorResponse.of(MailboxTerminatedError(owner))
    assert response is not None
    error = response.get_exception()
    assert isinstance(error, kind)
    assert error.args == (owner,)


@pytest.mark.parametrize(
    "error",
    [
        PingCancelledError("why"),
        ActionInvalidStateError(),
        ActionCancelledError("add"),
        ActionCancelledError(),
        ActionInterruptedError("add"),
        RequestsNotServedError("why"),
    ],
)
def test_an_error_with_a_code_survives_it(error: Exception) -> None:
    response = AcademyErrorResponse.of(error)
    assert response is not None
    copy = response.get_exception()
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_an_error_without_a_code_has_no_such_response() -> None:
    assert AcademyErrorResponse.of(KeyError("x")) is None


def test_an_unknown_code_is_an_error_that_names_it() -> None:
    assert "99" in str(AcademyErrorResponse(99).get_exception())
