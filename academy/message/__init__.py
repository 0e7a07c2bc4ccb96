"""Messages between entities, and their one binary form."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID, uuid4

from academy.exception import IncompatibleNetworkProtocolError
from academy.identifier import EntityId, entity_id
from academy.message.body import (
    MESSAGE_FORMAT,
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy.message.stream import (
    STREAM_BYTES,
    STREAM_ITEMS,
    StreamCredit,
    StreamEnd,
    StreamItem,
    StreamRequest,
)
from academy.serialize import Part

__all__ = [
    "STREAM_BYTES",
    "STREAM_ITEMS",
    "AcademyErrorResponse",
    "ActionRequest",
    "ActionResponse",
    "Body",
    "CancelRequest",
    "Header",
    "Message",
    "OneWay",
    "PingRequest",
    "Request",
    "Response",
    "ShutdownRequest",
    "StreamCredit",
    "StreamEnd",
    "StreamItem",
    "StreamRequest",
    "SuccessResponse",
    "UserErrorResponse",
    "decode_body",
    "encode_body",
]

Request: TypeAlias = ActionRequest | CancelRequest | PingRequest | ShutdownRequest
Response: TypeAlias = (
    ActionResponse
    | SuccessResponse
    | AcademyErrorResponse
    | UserErrorResponse
    | StreamEnd
)
OneWay: TypeAlias = StreamItem | StreamCredit
Body: TypeAlias = Request | Response | OneWay

BODIES: dict[int, Any] = {
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
        StreamRequest,
        StreamItem,
        StreamCredit,
        StreamEnd,
    )
}


class Header(NamedTuple):
    """What a message says about itself."""

    src: EntityId
    dest: EntityId
    tag: UUID
    label: UUID | None
    kind: Literal["request", "response", "one-way"]


class Message:
    """A request, a response or a one-way message, from one entity to another.

    `lease` is the number under which the exchange delivered a request; its response
    carries it back. `redelivered` says that an earlier incarnation may have run it.
    `lifetime` is the milliseconds that a request may wait until it is delivered, and 0
    for ever.
    """

    __slots__ = (
        "_body",
        "_data",
        "dest",
        "label",
        "lease",
        "lifetime",
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
        self.lifetime = 0
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

    def create_response(self, body: Response | OneWay) -> Message:
        """Make the answer to this request, or what is said on the way to it.

        Raises:
            ValueError: this message is no request.
        """
        if not self.is_request():
            raise ValueError("a response or one-way message has no response")
        return Message(
            self.dest, self.src, self.tag, body, label=self.label, lease=self.lease
        )

    def fill(self, data: memoryview) -> None:
        """Say where the bytes of the body are, or will be."""
        self._data = data

    @property
    def header(self) -> Header:
        """The header, for people and logs; hot paths read the attributes."""
        return Header(
            self.src,
            self.dest,
            UUID(bytes=self.tag),
            self.label,
            self.get_body().kind,
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
        return (self._body or self.get_body()).kind == "response"

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
    name = message.src.name if body.kind == "request" else None
    label = message.label
    head = _head(body.code, label is not None, name or "")
    if label is not None:
        head += label.bytes
    return [head, *body._fields()]


@lru_cache(maxsize=1024)
def _head(code: int, labelled: bool, text: str) -> bytes:
    name = text.encode()
    if len(name) > 255:
        name = name[:255].decode(errors="ignore").encode()
    return bytes((code, labelled, len(name))) + name


def decode_body(data: memoryview, message: Message | None = None) -> Body:
    """Decode a body; the sender's name and the label go into `message`.

    Raises:
        ValueError: the bytes are not those of a body.
    """
    try:
        kind = BODIES[data[0]]
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
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError("the bytes are not those of a message body") from error
