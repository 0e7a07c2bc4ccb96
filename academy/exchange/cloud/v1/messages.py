"""Messages as protocol v1 writes them (JSON), and ours: nothing is unpickled between.

Three things differ in what payloads carry, and each is put right by a pickle that,
where it is read at last, reads another pickle:

- v1 encodes positional and keyword arguments apart, we encode them together.
- We pickle an exception with its traceback's text, v1 without.
- Our large arrays lie beside the pickle; `pickle.loads` alone does not find them.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

from academy.exception import (
    IncompatibleNetworkProtocolError,
    ProtocolError,
    StreamsUnsupportedError,
)
from academy.identifier import AgentId, EntityId, UserId
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Body,
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
)
from academy.serialize import (
    JSON,
    PICKLE,
    Payload,
    SerializationStrategy,
    dumps,
)

PROTOCOL_VERSION = "1.1"
"""Version of messages; those of the same major version understand each other."""

_SENSELESS = (LookupError, TypeError, ValueError, AttributeError, RecursionError)
_SERIALIZED = "__serialized__"
_CANCELLED, _LAST_CODE = 3, 5


# --- entities


def read_entity(content: Any) -> EntityId:
    """Read an entity: an object, or the JSON text of one.

    Raises:
        ProtocolError: it is neither.
    """
    try:
        if isinstance(content, str):
            content = json.loads(content)
        uid, name = content["uid"], content.get("name")
        (name or "").encode()  # it is text, and such as can be stored
        if content["role"] == "agent":
            return AgentId(uid=uid, name=name)
        return UserId(uid=uid, name=name, role=content["role"])
    except _SENSELESS as error:
        raise ProtocolError(f"not an entity: {str(content)[:80]!r}") from error


def write_entity(entity: EntityId) -> dict[str, Any]:
    """Write an entity as an object of JSON."""
    return {"uid": str(entity.uid), "name": entity.name, "role": entity.role}


# --- messages


def read_message(text: str | bytes) -> Message:
    """Read a message.

    Raises:
        IncompatibleNetworkProtocolError: it is of another major version.
        ProtocolError: it is not a message.
    """
    try:
        content = json.loads(text)
        header = content["header"]
        version = str(header.get("protocol_version", PROTOCOL_VERSION))
        if version.partition(".")[0] != PROTOCOL_VERSION.partition(".")[0]:
            raise IncompatibleNetworkProtocolError(version, PROTOCOL_VERSION)
        body = _READERS[content["body"]["kind"]](content["body"])
        if header["kind"] != body.kind:
            raise ValueError(f"a {header['kind']} with the body of a {body.kind}")
        label = header.get("label")
        return Message(
            read_entity(header["src"]),
            read_entity(header["dest"]),
            UUID(header["tag"]).bytes,
            body,
            label=None if label is None else UUID(label),
        )
    except _SENSELESS as error:
        raise ProtocolError(f"not a message of protocol v1: {error!r}") from error


def write_message(message: Message) -> str:
    """Write a message.

    Raises:
        ValueError: its bytes are not those of a message.
        StreamsUnsupportedError: it is part of a stream.
        Exception: its body is live and does not serialize.
    """
    body = message.get_body()
    if isinstance(body, StreamRequest | StreamItem | StreamCredit | StreamEnd):
        raise StreamsUnsupportedError(message.dest)
    # No `academy_version`: it would be that of another implementation.
    header = {
        "src": write_entity(message.src),
        "dest": write_entity(message.dest),
        "tag": str(UUID(bytes=message.tag)),
        "label": None if message.label is None else str(message.label),
        "kind": body.kind,
        "protocol_version": PROTOCOL_VERSION,
    }
    return json.dumps({"header": header, "body": _write_body(body)})


def _write_body(body: Body) -> dict[str, Any]:
    if isinstance(body, ActionRequest):
        pargs, kargs = _write_arguments(body.arguments)
        return {
            "kind": "action-request",
            "action": body.action,
            "serialization": body.arguments.strategy.value,
            "result_serialization": body.result_serialization,
            "exception_serialization": body.exception_serialization,
            "pargs": pargs,
            "kargs": kargs,
        }
    if isinstance(body, ActionResponse):
        return {
            "kind": "action-response",
            "serialization": body.result.strategy.value,
            "result": [_SERIALIZED, _write_payload(body.result)],
        }
    if isinstance(body, UserErrorResponse):
        return {
            "kind": "user-error-response",
            "serialization": body.exception.strategy.value,
            "exception": _write_exception(body.exception),
        }
    if isinstance(body, AcademyErrorResponse):
        # Whoever knows our other codes would not speak v1.
        code = body.error_code if body.error_code <= _LAST_CODE else _CANCELLED
        box = body.mailbox_id
        return {
            "kind": "academy-error-response",
            "error_code": code,
            "mailbox_id": None if box is None else write_entity(box),
        }
    if isinstance(body, CancelRequest):
        return {"kind": "cancel-request", "target_tag": str(body.target_tag)}
    if isinstance(body, ShutdownRequest):
        return {"kind": "shutdown-request", "terminate": body.terminate}
    if isinstance(body, PingRequest):
        return {"kind": "ping-request"}
    return {"kind": "success-response"}


def _read_action(body: dict[str, Any]) -> ActionRequest:
    strategy = SerializationStrategy(body["serialization"])
    pargs = _plain(strategy, body["pargs"], list)
    kargs = _plain(strategy, body["kargs"], dict)
    action = body["action"]
    if not 0 < len(action.encode()) < 256:
        raise ValueError(f"an action's name has 1 to 255 bytes, not {len(action)}")
    return ActionRequest(
        action,
        _join(strategy, pargs, kargs),
        _optional(body.get("result_serialization")),
        _optional(body.get("exception_serialization")),
    )


def _read_shutdown(body: dict[str, Any]) -> ShutdownRequest:
    terminate = body.get("terminate")
    if terminate not in (None, False, True):
        raise ValueError(f"terminate={terminate!r}")
    return ShutdownRequest(terminate)


def _read_result(body: dict[str, Any]) -> ActionResponse:
    mark, text = body["result"]
    if mark != _SERIALIZED:
        raise ValueError("a result that is not serialized")
    strategy = SerializationStrategy(body["serialization"])
    return ActionResponse(Payload.from_plain(strategy, _plain(strategy, text)))


def _read_exception(body: dict[str, Any]) -> UserErrorResponse:
    strategy = SerializationStrategy(body["serialization"])
    data = _plain(strategy, body["exception"])
    if strategy is PICKLE:
        # So that it can be told from ours, which has the traceback's text beside it.
        data = _PROTO + _load(data) + _STOP
    return UserErrorResponse(Payload.from_plain(strategy, data))


def _read_error(body: dict[str, Any]) -> AcademyErrorResponse:
    code, box = body["error_code"], body.get("mailbox_id")
    if code not in range(_LAST_CODE + 1):
        raise ValueError(f"error code {code!r}")
    return AcademyErrorResponse(code, None if box is None else read_entity(box))


_READERS: dict[str, Callable[[dict[str, Any]], Body]] = {
    "action-request": _read_action,
    "cancel-request": lambda body: CancelRequest(UUID(body["target_tag"]).bytes),
    "ping-request": lambda _: PingRequest(),
    "shutdown-request": _read_shutdown,
    "action-response": _read_result,
    "success-response": lambda _: SuccessResponse(),
    "user-error-response": _read_exception,
    "academy-error-response": _read_error,
}


# --- payloads


def _optional(name: str | None) -> SerializationStrategy | None:
    return None if name is None else SerializationStrategy(name)


def _plain(
    strategy: SerializationStrategy, text: str, kind: type[Any] = object
) -> bytes:
    if strategy is JSON:
        if not isinstance(json.loads(text), kind):
            raise ValueError(f"not a {kind.__name__}: {text[:80]}")
        return text.encode()
    return base64.b64decode(text, validate=True)


def _text(strategy: SerializationStrategy, data: bytes | memoryview) -> str:
    if strategy is JSON:
        return str(data, "utf-8")
    return base64.b64encode(data).decode()


def _join(strategy: SerializationStrategy, pargs: bytes, kargs: bytes) -> Payload:
    """Make one payload of positional and keyword arguments."""
    if strategy is JSON:
        return Payload.from_plain(JSON, b"[%b,%b]" % (pargs, kargs))
    data = _PROTO + _load(pargs) + _load(kargs) + _PAIR
    return Payload.from_plain(PICKLE, data)


def _write_arguments(payload: Payload) -> tuple[str, str]:
    strategy = payload.strategy
    if payload._data is None:  # live: nobody has put them together yet
        args, kwargs = payload._value
        if strategy is JSON:
            return json.dumps(args), json.dumps(kwargs)
        return _text(PICKLE, dumps(args)), _text(PICKLE, dumps(kwargs))
    if strategy is JSON:
        pargs, kargs = json.loads(bytes(payload.pieces()[0]))
        return json.dumps(pargs), json.dumps(kargs)
    pieces = payload.pieces()
    if (apart := _loaded(pieces[0], 2, _PAIR)) is not None:
        return _text(PICKLE, apart[0]), _text(PICKLE, apart[1])
    first = _text(PICKLE, _PROTO + _item(pieces, 0) + _STOP)
    if bytes(pieces[0][-len(_NO_KEYWORDS) :]) == _NO_KEYWORDS:
        return first, _text(PICKLE, _EMPTY_DICT)
    return first, _text(PICKLE, _PROTO + _item(pieces, 1) + _STOP)


def _write_payload(payload: Payload) -> str:
    if payload._data is None and payload.strategy is PICKLE:
        return _text(PICKLE, dumps(payload._value))
    pieces = payload.pieces()
    if len(pieces) == 1:
        return _text(payload.strategy, pieces[0])
    return _text(PICKLE, _PROTO + _load(*pieces) + _STOP)


def _write_exception(payload: Payload) -> str:
    data = memoryview(b"".join(payload.exception_parts()))
    pieces = Payload.from_bytes(data).pieces()
    if payload.strategy is JSON:
        return _text(JSON, pieces[0])
    if (alone := _loaded(pieces[0], 1, _STOP)) is not None:
        return _text(PICKLE, alone[0])
    return _text(PICKLE, _PROTO + _item(pieces, 0) + _STOP)


# --- pickles that read pickles
#
# Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py

_PROTO = b"\x80\x05"
_STOP = b"."
_LOADS = b"cpickle\nloads\n"
_GETITEM = b"coperator\ngetitem\n"
_CALL_ONE, _CALL_TWO = b"\x85R", b"\x86R"
_PAIR = b"\x86" + _STOP
_BYTES, _BYTEARRAY = b"\x8e", b"\x96"
_LENGTH = struct.Struct("<Q")
_EMPTY_DICT = _PROTO + b"}" + _STOP
_NO_KEYWORDS = b"}\x94\x86\x94" + _STOP
"""How a pickled pair ends whose second half is an empty dictionary: after any other
dictionary comes an opcode that fills it."""


def _blob(opcode: bytes, data: bytes | memoryview) -> bytes:
    return b"".join((opcode, _LENGTH.pack(len(data)), data))


def _load(data: bytes | memoryview, *buffers: memoryview) -> bytes:
    """Push `pickle.loads(data)`, or `partial(pickle.loads, buffers=...)(data)`."""
    if not buffers:
        return _LOADS + _blob(_BYTES, data) + _CALL_ONE
    # Only what makes an instance of a class takes keyword arguments. Arrays are to be
    # writable, as they are after plain pickle.
    arrays = b"".join(_blob(_BYTEARRAY, buffer) for buffer in buffers)
    keywords = b"}\x8c\x07buffers](" + arrays + b"es"
    function = b"cfunctools\npartial\n" + _LOADS + b"\x85" + keywords + b"\x92"
    return function + _blob(_BYTES, data) + _CALL_ONE


def _item(pieces: list[memoryview], index: int) -> bytes:
    """Push one item of what a pickle and its buffers hold."""
    return _GETITEM + _load(*pieces) + b"K%c" % index + _CALL_TWO


def _loaded(data: memoryview, count: int, ending: bytes) -> list[memoryview] | None:
    """Take the pickles out of one that only loads them; None of any other."""
    found = []
    at, opening = len(_PROTO), _LOADS + _BYTES
    for _ in range(count):
        start = at + len(opening) + _LENGTH.size
        if bytes(data[at : at + len(opening)]) != opening or len(data) < start:
            return None
        (length,) = _LENGTH.unpack_from(data, at + len(opening))
        found.append(data[start : start + length])
        at = start + length + len(_CALL_ONE)
        if bytes(data[start + length : at]) != _CALL_ONE:
            return None
    return found if bytes(data[at:]) == ending else None
