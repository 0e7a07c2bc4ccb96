"""How arguments, results and exceptions become bytes, and who may read them."""

from __future__ import annotations

import json
import pickle
import struct
import traceback
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, TypeAlias, cast

from academy.exception import (
    AcademyRemoteError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
)

Part: TypeAlias = bytes | bytearray | memoryview

OUT_OF_BAND_BYTES = 4096
"""Buffers (of arrays, for example) from this size on are not copied into the pickle."""

ALIGNMENT = 64
"""Buffers begin at multiples of it, counted from the end of an encoded value."""

_PICKLE, _JSON, _PICKLE_BUFFERS = 1, 2, 3
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")


class SerializationStrategy(StrEnum):
    """How a payload is encoded."""

    PICKLE = "pickle"
    JSON = "json"


PICKLE = SerializationStrategy.PICKLE
JSON = SerializationStrategy.JSON

default_serializer: ContextVar[SerializationStrategy] = ContextVar(
    "default_serializer", default=PICKLE
)
"""What a handle or an agent uses when nothing else is asked for."""

allowed_deserializers: ContextVar[frozenset[SerializationStrategy] | None] = ContextVar(
    "allowed_deserializers", default=None
)
"""What may be decoded in this context; None allows all."""


class NoPickleMixin:
    """For objects that hold connections: pickling one is an error that says so."""

    def __getstate__(self) -> Any:
        raise pickle.PicklingError(
            f"{type(self).__name__} holds a live connection and does not pickle. "
            "Pickle its factory() instead."
        )


class Payload:
    """A value on its way: live until it must become bytes, bytes until it is wanted.

    The local exchange hands `value` over by reference; others send `parts()`.
    """

    __slots__ = ("_data", "_value", "strategy")

    def __init__(
        self,
        strategy: SerializationStrategy,
        value: Any = None,
        data: memoryview | None = None,
    ) -> None:
        self.strategy = strategy
        self._value = value
        self._data = data

    def load(self) -> Any:
        """Return the value.

        Raises:
            DeserializationMethodProhibitedError: this context refuses the strategy.
        """
        # Of a live value too: a program is to behave alike on every exchange.
        allowed = allowed_deserializers.get()
        if allowed is not None and self.strategy not in allowed:
            raise DeserializationMethodProhibitedError(self.strategy.value)
        data = self._data
        return self._value if data is None else _decode(data)

    def parts(self) -> list[Part]:
        """Return the encoded value as buffers to be sent one after the other."""
        if self._data is not None:
            return [self._data]
        return encode(self._value, self.strategy)

    def exception_parts(self) -> list[Part]:
        """Return the buffers of an encoded exception that surely decodes again."""
        if self._data is not None:
            return [self._data]
        return exception_payload(self._value, self.strategy)

    def pieces(self) -> list[memoryview]:
        """Return one pickle or JSON text and, after it, its out-of-band buffers."""
        parts = self.parts()
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return _pieces(memoryview(data))

    @classmethod
    def from_plain(cls, strategy: SerializationStrategy, data: bytes) -> Payload:
        """Wrap what plain `pickle.dumps` or `json.dumps` has made."""
        encoding = _JSON if strategy is JSON else _PICKLE
        return cls(strategy, data=memoryview(bytes((encoding,)) + data))

    @classmethod
    def from_bytes(cls, data: memoryview) -> Payload:
        """Wrap an encoded value, to be decoded when someone asks for it."""
        if not data or data[0] not in (_PICKLE, _JSON, _PICKLE_BUFFERS):
            raise ValueError("the payload has no known encoding")
        return cls(JSON if data[0] == _JSON else PICKLE, data=data)


def encode(value: Any, strategy: SerializationStrategy) -> list[Part]:
    """Encode a value as buffers; large arrays are referred to, not copied.

    Raises:
        Exception: whatever the serializer raises for a value it cannot encode.
    """
    if strategy is JSON:
        return [b"\x02", json.dumps(value).encode()]
    data, buffers = _pickle(value)
    if not buffers:
        return [b"\x01", data]
    lengths = b"".join(_LENGTH.pack(len(part)) for part in (data, *buffers))
    parts: list[Part] = [b"\x03", _COUNT.pack(len(buffers) + 1), lengths, data]
    for buffer in buffers:
        parts += buffer, bytes(-len(buffer) % ALIGNMENT)
    return parts


def dumps(value: Any) -> bytes:
    """Pickle a value in one piece; what only this program can import goes by value."""
    try:
        data = pickle.dumps(value, 5)
        if b"__main__" not in data:
            return data
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    # Plain pickle refuses lambdas and local classes, and refers to the classes of
    # __main__ by a name that means something else in the receiver.
    import cloudpickle

    return bytes(cloudpickle.dumps(value, 5))


def _pickle(value: Any) -> tuple[bytes, list[memoryview]]:
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw().cast("B")
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw)
        return False

    try:
        data = pickle.dumps(value, 5, buffer_callback=keep_in_band)
        if b"__main__" not in data:
            return data, buffers
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    return dumps(value), []


def _decode(data: memoryview) -> Any:
    encoding = data[0]
    if encoding == _PICKLE:
        return pickle.loads(data[1:])
    if encoding == _JSON:
        return json.loads(bytes(data[1:]))
    pieces = _pieces(data)
    # Arrays are to be writable, as they are after plain pickle: views of a buffer that
    # is this value's own, or copies.
    buffers = (bytearray(p) if p.readonly else p for p in pieces[1:])
    return pickle.loads(pieces[0], buffers=buffers)


def _pieces(data: memoryview) -> list[memoryview]:
    if data[0] != _PICKLE_BUFFERS:
        return [data[1:]]
    (count,) = _COUNT.unpack_from(data, 1)
    at = 5 + 8 * count
    pieces = []
    for i in range(count):
        (length,) = _LENGTH.unpack_from(data, 5 + 8 * i)
        pieces.append(data[at : at + length])
        at += length
        if i:
            at += -length % ALIGNMENT
    return pieces


def exception_payload(
    error: BaseException, strategy: SerializationStrategy
) -> list[Part]:
    """Encode an exception so that the other side can surely decode it."""
    text = "".join(traceback.format_exception(error))
    if strategy is JSON:
        return encode({"__exception__": True, "exception_str": text}, JSON)
    try:
        parts = encode((error, text), strategy)
        _decode(memoryview(b"".join(parts)))
    except Exception:
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        return encode((ExceptionSerializationError(name, "pickle"), text), strategy)
    return parts


def load_exception(payload: Payload) -> BaseException:
    """Decode what `exception_payload` has encoded; the remote traceback is a note."""
    value = payload.load()
    if isinstance(value, BaseException):
        return value
    if isinstance(value, tuple):
        error, text = value
        error.add_note(f"Traceback in the agent:\n{text}")
        return cast("BaseException", error)
    return AcademyRemoteError(value["exception_str"])
