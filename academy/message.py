"""Messages between entities, and their one binary form.

A payload (arguments, result, exception) stays encoded until someone asks for it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias
from uuid import UUID, uuid4

from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    IncompatibleNetworkProtocolError,
    MailboxTerminatedError,
    PingCancelledError,
    RequestsNotServedError,
)
from academy.identifier import EntityId, entity_id
from academy.serialize import (
    PICKLE,
    Part,
    Payload,
    SerializationStrategy,
    encode,
    exception_payload,
    load_exception,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_FORMAT = 1
"""Version of the binary form below."""

_STRATEGIES: tuple[SerializationStrategy | None, ...] = (
    None,
    SerializationStrategy.PICKLE,
    SerializationStrategy.JSON,
)


class ActionRequest:
    """Asks an agent to run one of its actions."""

    __slots__ = (
        "action",
        "arguments",
        "exception_serialization",
        "result_serialization",
    )
    code: ClassVar[int] = 1
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(
        self,
        action: str,
        arguments: Payload,
        result_serialization: SerializationStrategy | None = None,
        exception_serialization: SerializationStrategy | None = None,
    ) -> None:
        self.action = action
        self.arguments = arguments
        self.result_serialization = result_serialization
        self.exception_serialization = exception_serialization

    @classmethod
    def of(
        cls,
        action: str,
        pargs: Sequence[Any] = (),
        kargs: dict[str, Any] | None = None,
        strategy: SerializationStrategy = PICKLE,
        **serializations: SerializationStrategy | None,
    ) -> ActionRequest:
        """Make a request from live arguments."""
        value = (tuple(pargs), kargs or {})
        return cls(action, Payload(strategy, value), **serializations)

    def get_args(self) -> tuple[Any, ...]:
        """Decode the positional arguments."""
        return tuple(self.arguments.load()[0])

    def get_kwargs(self) -> dict[str, Any]:
        """Decode the keyword arguments."""
        return dict(self.arguments.load()[1])

    @property
    def result_strategy(self) -> SerializationStrategy:
        """How the caller wants the result: as the arguments unless it said."""
        return self.result_serialization or self.arguments.strategy

    @property
    def exception_strategy(self) -> SerializationStrategy:
        """How the caller wants an exception: as the result unless it said."""
        return self.exception_serialization or self.result_strategy

    def _fields(self) -> list[Part]:
        name = self.action.encode()
        head = bytes(
            (
                _STRATEGIES.index(self.result_serialization),
                _STRATEGIES.index(self.exception_serialization),
                len(name),
            )
        )
        return [head, name, *self.arguments.parts()]

    @classmethod
    def _read(cls, data: memoryview) -> ActionRequest:
        end = 3 + data[2]
        return cls(
            str(data[3:end], "utf-8"),
            Payload.from_bytes(data[end:]),
            _STRATEGIES[data[0]],
            _STRATEGIES[data[1]],
        )


class CancelRequest:
    """Asks an agent to cancel the action that runs for a request."""

    __slots__ = ("target",)
    code: ClassVar[int] = 2
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(self, target: bytes) -> None:
        self.target = target

    @property
    def target_tag(self) -> UUID:
        """Tag of the request to cancel."""
        return UUID(bytes=self.target)

    def _fields(self) -> list[Part]:
        return [self.target]

    @classmethod
    def _read(cls, data: memoryview) -> CancelRequest:
        return cls(bytes(data[:16]))


class PingRequest:
    """Asks an entity whether it is there."""

    __slots__ = ()
    code: ClassVar[int] = 3
    kind: ClassVar[Literal["request"]] = "request"

    def _fields(self) -> list[Part]:
        return []

    @classmethod
    def _read(cls, _: memoryview) -> PingRequest:
        return cls()


class ShutdownRequest:
    """Asks an agent to shut down; `terminate` overrides its configuration."""

    __slots__ = ("terminate",)
    code: ClassVar[int] = 4
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(self, terminate: bool | None = None) -> None:
        self.terminate = terminate

    def _fields(self) -> list[Part]:
        return [bytes(((None, False, True).index(self.terminate),))]

    @classmethod
    def _read(cls, data: memoryview) -> ShutdownRequest:
        return cls((None, False, True)[data[0]])


class ActionResponse:
    """The result of an action."""

    __slots__ = ("result",)
    code: ClassVar[int] = 5
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(self, result: Payload) -> None:
        self.result = result

    def get_result(self) -> Any:
        """Decode the result."""
        return self.result.load()

    def _fields(self) -> list[Part]:
        return self.result.parts()

    @classmethod
    def _read(cls, data: memoryview) -> ActionResponse:
        return cls(Payload.from_bytes(data))


class SuccessResponse:
    """A request that has no result was served."""

    __slots__ = ()
    code: ClassVar[int] = 6
    kind: ClassVar[Literal["response"]] = "response"

    def get_result(self) -> None:
        """There is none."""

    def _fields(self) -> list[Part]:
        return []

    @classmethod
    def _read(cls, _: memoryview) -> SuccessResponse:
        return cls()


class AcademyErrorResponse:
    """The request failed for a reason of this package, named by a code."""

    __slots__ = ("error_code", "mailbox_id", "text")
    code: ClassVar[int] = 7
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(
        self, error_code: int, mailbox_id: EntityId | None = None, text: str = ""
    ) -> None:
        self.error_code = error_code
        self.mailbox_id = mailbox_id
        self.text = text

    @classmethod
    def of(cls, error: Exception) -> AcademyErrorResponse | None:
        """Translate an error that has a code; None for any other."""
        if isinstance(error, MailboxTerminatedError):
            return cls(0, error.uid)
        for code, kind in _ERROR_CODES.items():
            if type(error) is kind:
                first = error.args[0] if error.args else None
                return cls(code, text="" if first is None else str(first))
        return None

    def get_exception(self) -> Exception:
        """Return the error that the code stands for."""
        if self.error_code == 0 and self.mailbox_id is not None:
            return MailboxTerminatedError(self.mailbox_id)
        if self.error_code == 5:
            return IncompatibleNetworkProtocolError(self.text, MESSAGE_FORMAT)
        kind = _ERROR_CODES.get(self.error_code)
        if kind is None:
            return RequestsNotServedError(f"unknown error code {self.error_code}")
        return kind(self.text) if self.text else kind()

    def _fields(self) -> list[Part]:
        box = self.mailbox_id
        head = bytes((self.error_code, 0 if box is None else 1 + (box.role == "agent")))
        return [head, b"" if box is None else box.uid.bytes, self.text.encode()]

    @classmethod
    def _read(cls, data: memoryview) -> AcademyErrorResponse:
        if not data[1]:
            return cls(data[0], None, str(data[2:], "utf-8"))
        box = entity_id(data[1] == 2, bytes(data[2:18]))
        return cls(data[0], box, str(data[18:], "utf-8"))


_ERROR_CODES: dict[int, type[Exception]] = {
    1: PingCancelledError,
    2: ActionInvalidStateError,
    3: ActionCancelledError,
    4: RequestsNotServedError,
    6: ActionInterruptedError,
}


class UserErrorResponse:
    """The action raised an exception of its own."""

    __slots__ = ("exception",)
    code: ClassVar[int] = 8
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(self, exception: Payload) -> None:
        self.exception = exception

    def get_exception(self) -> BaseException:
        """Decode the exception."""
        return load_exception(self.exception)

    def _fields(self) -> list[Part]:
        payload = self.exception
        if payload._data is not None:
            return [payload._data]
        return exception_payload(payload._value, payload.strategy)

    @classmethod
    def _read(cls, data: memoryview) -> UserErrorResponse:
        return cls(Payload.from_bytes(data))


Request: TypeAlias = ActionRequest | CancelRequest | PingRequest | ShutdownRequest
Response: TypeAlias = (
    ActionResponse | SuccessResponse | AcademyErrorResponse | UserErrorResponse
)
Body: TypeAlias = Request | Response

_BODIES: dict[int, Any] = {
    body.code: body
    for body in (
        ActionRequest,
        CancelRequest,
        PingRequest,
        ShutdownRequest,
        ActionResponse,
        SuccessResponse,
        AcademyErrorResponse,
        UserErrorResponse,
    )
}


class Header(NamedTuple):
    """What a message says about itself."""

    src: EntityId
    dest: EntityId
    tag: UUID
    label: UUID | None
    kind: Literal["request", "response"]


class Message:
    """A request or a response on its way from one entity to another.

    `lease` is the number under which the exchange delivered a request; its response
    carries it back. `redelivered` says that an earlier incarnation may have run it.
    """

    __slots__ = (
        "_body",
        "_data",
        "dest",
        "label",
        "lease",
        "redelivered",
        "src",
        "tag",
    )

    def __init__(
        self,
        src: EntityId,
        dest: EntityId,
        tag: bytes,
        body: Body | None = None,
        data: memoryview | None = None,
        label: UUID | None = None,
        lease: int = 0,
        redelivered: bool = False,
    ) -> None:
        self.src = src
        self.dest = dest
        self.tag = tag
        self.label = label
        self.lease = lease
        self.redelivered = redelivered
        self._body = body
        self._data = data

    @classmethod
    def create(
        cls,
        src: EntityId,
        dest: EntityId,
        body: Body,
        *,
        label: UUID | None = None,
        tag: bytes | None = None,
    ) -> Message:
        """Make a message with a tag of its own (16 random bytes unless given)."""
        return cls(src, dest, tag or uuid4().bytes, body, label=label)

    def create_response(self, body: Response) -> Message:
        """Make the answer to this request.

        Raises:
            ValueError: this message is a response itself.
        """
        if self.is_response():
            raise ValueError("a response has no response")
        return Message(
            self.dest, self.src, self.tag, body, label=self.label, lease=self.lease
        )

    @property
    def header(self) -> Header:
        """The header, for people and logs; hot paths read the attributes."""
        return Header(
            self.src,
            self.dest,
            UUID(bytes=self.tag),
            self.label,
            "response" if self.is_response() else "request",
        )

    @property
    def body(self) -> Body:
        """The body (see `get_body`)."""
        return self.get_body()

    def get_body(self) -> Body:
        """Return the body; it is decoded once, its payload not at all.

        Raises:
            ValueError: the bytes are not those of a message.
        """
        body = self._body
        if body is None:
            assert self._data is not None
            self._body = body = decode_body(self._data, self)
            self._data = None
        return body

    def is_request(self) -> bool:
        """Whether this asks for something."""
        return self.get_body().kind == "request"

    def is_response(self) -> bool:
        """Whether this answers a request."""
        return self.get_body().kind == "response"

    def model_serialize(self) -> bytes:
        """Encode the whole message."""
        flags = (self.src.role == "agent") | (self.dest.role == "agent") << 1
        ids = self.dest.uid.bytes + self.src.uid.bytes + self.tag
        return b"".join((bytes((MESSAGE_FORMAT, flags)), ids, *encode_body(self)))

    @classmethod
    def model_deserialize(cls, data: Part) -> Message:
        """Decode what `model_serialize` has encoded.

        Raises:
            IncompatibleNetworkProtocolError: it is of another version.
            ValueError: it is not a message.
        """
        view = memoryview(data)
        if len(view) < 51:
            raise ValueError(f"{len(view)} bytes are too few for a message")
        if view[0] != MESSAGE_FORMAT:
            raise IncompatibleNetworkProtocolError(view[0], MESSAGE_FORMAT)
        message = cls(
            entity_id(bool(view[1] & 1), bytes(view[18:34])),
            entity_id(bool(view[1] & 2), bytes(view[2:18])),
            bytes(view[34:50]),
            data=view[50:],
        )
        message.get_body()
        return message

    def __repr__(self) -> str:
        kind = type(self.get_body()).__name__
        return f"Message({kind} {self.tag.hex()[-8:]} {self.src} -> {self.dest})"


def encode_body(message: Message) -> list[Part]:
    """Encode a message's body, preceded by what names its sender to people."""
    if message._data is not None:
        return [message._data]
    body = message.get_body()
    name = (message.src.name or "").encode()[:255] if body.kind == "request" else b""
    label = message.label
    head = bytes((body.code, label is not None, len(name))) + name
    if label is not None:
        head += label.bytes
    return [head, *body._fields()]


def decode_body(data: memoryview, message: Message | None = None) -> Body:
    """Decode a body; the sender's name and the label go into `message`.

    Raises:
        ValueError: the bytes are not those of a body.
    """
    try:
        kind = _BODIES[data[0]]
        at = 3 + data[2]
        label = None
        if data[1]:
            label = UUID(bytes=bytes(data[at : at + 16]))
        if message is not None:
            message.label = label
            if data[2]:
                message.src = entity_id(
                    message.src.role == "agent",
                    message.src.uid.bytes,
                    str(data[3:at], "utf-8"),
                )
        body: Body = kind._read(data[at + 16 if label else at :])
        return body
    except (KeyError, IndexError, struct.error) as error:
        raise ValueError("the bytes are not those of a message body") from error


__all__ = [
    "AcademyErrorResponse",
    "ActionRequest",
    "ActionResponse",
    "Body",
    "CancelRequest",
    "Header",
    "Message",
    "PingRequest",
    "Request",
    "Response",
    "ShutdownRequest",
    "SuccessResponse",
    "UserErrorResponse",
    "encode",
]
