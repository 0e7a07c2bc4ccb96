"""Messages of protocol v1 and ours: translated without being opened."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from academy.exception import (
    ActionInterruptedError,
    AgentTerminatedError,
    IncompatibleNetworkProtocolError,
    ProtocolError,
)
from academy.exchange.cloud.v1.messages import (
    read_entity,
    read_message,
    write_entity,
    write_message,
)
from academy.exchange.cloud.v1.requests import Events
from academy.identifier import AgentId, UserId
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Body,
    CancelRequest,
    Message,
    PingRequest,
    Response,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
    encode_body,
)
from academy.serialize import JSON, PICKLE, Payload

AGENT: AgentId[Any] = AgentId.new("agent")
USER = UserId.new("user")


def relayed(message: Message) -> Message:
    """What a server has of a message: bytes, until somebody asks."""
    data = memoryview(b"".join(encode_body(message)))
    again = Message(message.src, message.dest, message.tag, data=data)
    again.get_body()
    return again


def written(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(write_message(message))["body"]
    return body


def through_v1(message: Message) -> Message:
    return relayed(read_message(write_message(relayed(message))))


def request(*pargs: Any, **kargs: Any) -> Message:
    return Message.create(USER, AGENT, ActionRequest.of("act", pargs, kargs))


def unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1, "two", None), {}),
    ((), {"key": [1]}),
    (({},), {}),
    ((b"x" * 70_000,), {}),
    (("long" * 50_000,), {"other": "long" * 50_000}),
    ((np.arange(5_000),), {}),
    ((1,), {"array": np.ones(5_000), "more": np.zeros((100, 100))}),
]


@pytest.mark.parametrize(("pargs", "kargs"), ARGUMENTS)
@pytest.mark.parametrize("form", ["live", "relayed"])
def test_plain_pickle_reads_our_arguments(
    pargs: tuple[Any, ...], kargs: dict[str, Any], form: str
) -> None:
    message = request(*pargs, **kargs)
    body = written(relayed(message) if form == "relayed" else message)

    np.testing.assert_equal(unpickled(body["pargs"]), pargs)
    np.testing.assert_equal(unpickled(body["kargs"]), kargs)


@pytest.mark.parametrize(("pargs", "kargs"), ARGUMENTS)
def test_arguments_come_back_from_v1(
    pargs: tuple[Any, ...], kargs: dict[str, Any]
) -> None:
    body = through_v1(request(*pargs, **kargs)).get_body()

    assert isinstance(body, ActionRequest)
    np.testing.assert_equal(body.arguments.load(), (pargs, kargs))


def test_what_v1_programs_say_to_each_other_stays_as_it_was() -> None:
    for content in (request(1, [2], k=3), request(np.arange(9))):
        first = write_message(content)
        assert written(relayed(read_message(first))) == json.loads(first)["body"]


def test_without_keywords_arguments_are_written_once() -> None:
    alone = write_message(relayed(request(bytes(30_000))))
    keyword = write_message(relayed(request(key=bytes(30_000))))

    assert len(alone) < 41_500
    assert 80_000 < len(keyword) < 82_000


def test_json_stays_json() -> None:
    body = ActionRequest.of("act", ([1, 2],), {"k": "ü"}, strategy=JSON)
    message = Message.create(USER, AGENT, body)
    for form in (message, relayed(message)):
        content = written(form)
        assert content["serialization"] == "json"
        assert json.loads(content["pargs"]) == [[1, 2]]
        assert json.loads(content["kargs"]) == {"k": "ü"}
    again = through_v1(message).get_body()
    assert isinstance(again, ActionRequest)
    assert (again.get_args(), again.get_kwargs()) == (([1, 2],), {"k": "ü"})


def test_arrays_are_writable_at_the_other_side() -> None:
    answer = request().create_response(
        ActionResponse(Payload(PICKLE, np.zeros(10_000)))
    )
    mark, text = written(relayed(answer))["result"]
    array = unpickled(text)
    array[0] = 1

    assert mark == "__serialized__"
    assert array.sum() == 1


def test_an_exception_is_plain_in_v1_and_keeps_its_type() -> None:
    answer = request().create_response(
        UserErrorResponse(Payload(PICKLE, AgentTerminatedError(AGENT)))
    )
    for form in (answer, relayed(answer)):
        error = unpickled(written(form)["exception"])
        assert type(error) is AgentTerminatedError
        assert error.uid == AGENT
    body = through_v1(answer).get_body()
    assert isinstance(body, UserErrorResponse)
    assert isinstance(body.get_exception(), AgentTerminatedError)
    assert written(through_v1(answer)) == written(relayed(answer))


def test_an_exception_in_json_has_its_text() -> None:
    answer = request().create_response(
        UserErrorResponse(Payload(JSON, ValueError("no")))
    )
    content = json.loads(written(relayed(answer))["exception"])

    assert content["__exception__"] is True
    assert "ValueError: no" in content["exception_str"]


RESPONSES: list[Response] = [
    SuccessResponse(),
    AcademyErrorResponse(0, AgentId.new()),
    AcademyErrorResponse(3),
]
REQUESTS: list[Body] = [
    PingRequest(),
    CancelRequest(uuid4().bytes),
    ShutdownRequest(None),
    ShutdownRequest(True),
    ShutdownRequest(False),
]


@pytest.mark.parametrize("body", [*REQUESTS, *RESPONSES])
def test_every_other_body_crosses(body: Body) -> None:
    label = uuid4()
    message = Message.create(USER, AGENT, body, label=label)

    again = through_v1(message)

    assert (again.src, again.dest, again.tag) == (USER, AGENT, message.tag)
    assert again.label == label
    assert type(again.get_body()) is type(body)
    assert written(again) == written(message)


def test_codes_that_v1_does_not_know_become_a_cancelled_action() -> None:
    body = AcademyErrorResponse.of(ActionInterruptedError("act"))
    assert body is not None
    assert written(request().create_response(body))["error_code"] == 3


@pytest.mark.parametrize("version", ["1.0", "1.7", "1"])
def test_the_same_major_version_is_understood(version: str) -> None:
    content = json.loads(write_message(request()))
    content["header"]["protocol_version"] = version
    assert isinstance(read_message(json.dumps(content)).get_body(), ActionRequest)


def test_another_major_version_is_not() -> None:
    content = json.loads(write_message(request()))
    content["header"]["protocol_version"] = "2.0"
    with pytest.raises(IncompatibleNetworkProtocolError, match=r"2\.0"):
        read_message(json.dumps(content))


def test_entities_come_as_objects_and_as_text() -> None:
    for entity in (AGENT, USER):
        assert read_entity(write_entity(entity)) == entity
        assert read_entity(json.dumps(write_entity(entity))).name == entity.name


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_unpickled_on_the_way() -> None:
    bomb = base64.b64encode(pickle.dumps(Bomb())).decode()
    header = json.loads(write_message(request()))["header"]
    for kind, body in (
        (
            "request",
            {"kind": "action-request", "action": "a", "pargs": bomb, "kargs": bomb},
        ),
        ("response", {"kind": "action-response", "result": ["__serialized__", bomb]}),
        ("response", {"kind": "user-error-response", "exception": bomb}),
    ):
        content = {
            "header": {**header, "kind": kind},
            "body": {**body, "serialization": "pickle"},
        }
        stored = relayed(read_message(json.dumps(content)))
        assert written(stored).items() >= content["body"].items()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["header", "body", "kind", "tag", "src", "dest", "uid"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = [
    ("header", name)
    for name in ("src", "dest", "tag", "label", "kind", "protocol_version")
] + [
    ("body", name)
    for name in (
        *("kind", "action", "serialization", "result_serialization"),
        *("pargs", "kargs", "result", "exception", "terminate", "target_tag"),
        *("error_code", "mailbox_id"),
    )
]


@given(
    json_values,
    st.sampled_from(FIELDS),
    st.sampled_from([request(1), request().create_response(SuccessResponse())]),
)
@example("\ud800", ("body", "action"), request(1))
@example(
    {"uid": str(uuid4()), "role": "user", "name": "\ud800"},
    ("header", "src"),
    request(1),
)
def test_nonsense_is_a_protocol_error_and_the_rest_can_be_stored(
    value: Any, field: tuple[str, str], message: Message
) -> None:
    content = json.loads(write_message(message))
    content[field[0]][field[1]] = value
    for text in (json.dumps(content), json.dumps(value)):
        try:
            relayed(read_message(text))
        except (ProtocolError, IncompatibleNetworkProtocolError):
            continue


def test_a_long_name_is_cut_between_characters() -> None:
    source = UserId.new("é" * 200)
    again = relayed(Message.create(source, AGENT, PingRequest()))
    assert again.src.name == "é" * 127


# --- server-sent events


@given(st.lists(st.integers(1, 9), max_size=12))
def test_events_are_read_however_they_are_cut(cuts: list[int]) -> None:
    stream = (
        b": hello\n\nretry: 250\n\ndata: one\n\ndata:\n\n"
        b"data: two\r\ndata:  three\r\n\r\n"
        b"event: x\nid: 7\ndata: four\n\ndata: cut off"
    )
    events = Events()
    found: list[bytes] = []
    for cut in cuts:
        found += events.feed(stream[:cut])
        stream = stream[cut:]
    found += events.feed(stream)

    assert found == [b"one", b"two\n three", b"four"]
    assert events.retry == 0.25
