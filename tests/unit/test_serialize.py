"""Payloads: what goes in comes out, and only where it may."""

from __future__ import annotations

import contextvars
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from academy.exception import (
    AcademyRemoteError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
    UserTerminatedError,
)
from academy.identifier import UserId
from academy.serialize import (
    JSON,
    OUT_OF_BAND_BYTES,
    PICKLE,
    NoPickleMixin,
    Payload,
    SerializationStrategy,
    allowed_deserializers,
    default_serializer,
    dumps,
    encode,
    exception_payload,
    load_exception,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def through_bytes(value: Any, strategy: SerializationStrategy) -> Any:
    data = b"".join(encode(value, strategy))
    return Payload.from_bytes(memoryview(data)).load()


def exception_through_bytes(
    error: BaseException, strategy: SerializationStrategy = PICKLE
) -> BaseException:
    data = b"".join(exception_payload(error, strategy))
    return load_exception(Payload.from_bytes(memoryview(data)))


@pytest.fixture
def only_json() -> Any:
    token = allowed_deserializers.set(frozenset({JSON}))
    yield
    allowed_deserializers.reset(token)


@given(json_values)
def test_json_values_survive_both_strategies(value: Any) -> None:
    assert through_bytes(value, JSON) == value
    assert through_bytes(value, PICKLE) == value


@given(st.lists(st.integers(0, 3 * OUT_OF_BAND_BYTES), max_size=4))
def test_arrays_survive_whatever_their_sizes(sizes: list[int]) -> None:
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    copies = through_bytes({"arrays": arrays}, PICKLE)["arrays"]
    assert [copy.tolist() for copy in copies] == [array.tolist() for array in arrays]


def test_a_large_array_is_sent_from_where_it_is() -> None:
    array = np.zeros(OUT_OF_BAND_BYTES, dtype=np.uint8)
    parts = encode([array], PICKLE)
    assert any(isinstance(p, memoryview) and p.obj is array for p in parts)


def test_an_array_can_be_written_to_where_it_arrives() -> None:
    copy = through_bytes(np.zeros(OUT_OF_BAND_BYTES), PICKLE)
    copy[0] = 1
    assert copy[0] == 1


def test_an_array_that_is_not_contiguous_survives() -> None:
    array = np.arange(4 * OUT_OF_BAND_BYTES).reshape(4, -1)[:, ::2]
    assert (through_bytes(array, PICKLE) == array).all()


def test_a_lambda_and_a_local_class_go_by_value() -> None:
    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    function, instance = through_bytes((lambda x: x + 1, Local(2)), PICKLE)
    assert (function(1), instance.value) == (2, 2)


def test_a_lambda_beside_a_large_array_survives() -> None:
    array = np.arange(OUT_OF_BAND_BYTES)
    function, copy = through_bytes((lambda x: x + 1, array), PICKLE)
    assert function(1) == 2
    assert (copy == array).all()


def test_what_cannot_be_pickled_is_an_error() -> None:
    with pytest.raises(TypeError, match="lock"):
        encode(threading.Lock(), PICKLE)
    with pytest.raises(TypeError, match="lock"):
        dumps(threading.Lock())


def test_what_json_does_not_know_is_an_error() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        encode({1, 2}, JSON)


def test_a_payload_hands_over_a_live_value_itself() -> None:
    value = [threading.Lock()]
    assert Payload(PICKLE, value).load() is value


def test_an_encoded_payload_is_passed_on_as_it_is() -> None:
    data = memoryview(b"".join(encode([1, 2], JSON)))
    payload = Payload.from_bytes(data)
    assert payload.strategy is JSON
    assert payload.parts() == [data]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x09rest"])
def test_bytes_of_no_known_encoding_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no known encoding"):
        Payload.from_bytes(memoryview(data))


@pytest.mark.usefixtures("only_json")
def test_a_strategy_that_is_not_allowed_is_not_decoded() -> None:
    assert through_bytes([1], JSON) == [1]
    with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
        through_bytes([1], PICKLE)
    with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
        Payload(PICKLE, [1]).load()


@pytest.mark.usefixtures("only_json")
def test_pickled_buffers_are_a_pickle_too() -> None:
    with pytest.raises(DeserializationMethodProhibitedError, match="pickle"):
        through_bytes(np.zeros(OUT_OF_BAND_BYTES), PICKLE)


def test_pickle_is_the_default_and_everything_is_allowed() -> None:
    context = contextvars.Context()
    assert context.run(default_serializer.get) is PICKLE
    assert context.run(allowed_deserializers.get) is None


# --- exceptions


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_survives_with_the_traceback_as_a_note() -> None:
    copy = exception_through_bytes(raised(KeyError("missing")))
    assert isinstance(copy, KeyError)
    assert copy.args == ("missing",)
    (note,) = copy.__notes__
    assert "Traceback in the agent" in note
    assert "in raised" in note


def test_an_exception_keeps_its_attributes() -> None:
    copy = exception_through_bytes(UserTerminatedError(UserId.new("bob")))
    assert isinstance(copy, UserTerminatedError)
    assert copy.uid.name == "bob"


def test_an_exception_of_a_local_class_survives() -> None:
    class LocalError(Exception):
        pass

    copy = exception_through_bytes(LocalError("x"))
    assert type(copy).__name__ == "LocalError"


class NeedsTwoError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class HoldsLockError(Exception):
    def __init__(self) -> None:
        super().__init__("lock")
        self.lock = threading.Lock()


@pytest.mark.parametrize("error", [NeedsTwoError("a", "b"), HoldsLockError()])
def test_an_exception_that_does_not_survive_is_named(error: Exception) -> None:
    copy = exception_through_bytes(raised(error))
    assert isinstance(copy, ExceptionSerializationError)
    assert type(error).__qualname__ in str(copy)
    assert str(error) in copy.__notes__[0]


def test_an_exception_crosses_as_text_in_json() -> None:
    copy = exception_through_bytes(raised(KeyError("missing")), JSON)
    assert isinstance(copy, AcademyRemoteError)
    assert "KeyError: 'missing'" in str(copy)


def test_a_live_exception_is_handed_over_itself() -> None:
    error = KeyError("x")
    assert load_exception(Payload(PICKLE, error)) is error


# --- what must not be pickled


class Connection(NoPickleMixin):
    pass


def test_an_object_with_a_connection_says_so_when_pickled() -> None:
    with pytest.raises(pickle.PicklingError, match="Connection holds a live"):
        pickle.dumps(Connection())
    with pytest.raises(pickle.PicklingError, match=r"factory\(\)"):
        dumps(Connection())
