"""What the two sides of a stream say: an action that yields, and who iterates.

Items and credits are one-way messages under the tag of the stream's request: nobody
answers them, and they settle nothing. The request is settled by its response, which
comes after the last item: `StreamEnd`, or the error that has ended it.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Literal

from academy.message.body import ActionRequest
from academy.serialize import Part, Payload

STREAM_ITEMS = 32
"""Items that an agent has on their way to a caller who wants nothing else."""
STREAM_BYTES = 4_000_000
"""Their bytes."""

_COUNT = struct.Struct("<Q")
_ROOM = struct.Struct("<IQ")


class StreamRequest(ActionRequest):
    """Asks an agent to run one of its actions that are async generators.

    Attributes:
        room_items: items that may be on their way to the caller and not taken yet.
        room_bytes: their bytes; the item that reaches it is sent as a whole.
    """

    __slots__ = ("room_bytes", "room_items")
    code: ClassVar[int] = 9

    def __init__(
        self,
        *fields: Any,
        room_items: int = STREAM_ITEMS,
        room_bytes: int = STREAM_BYTES,
    ) -> None:
        super().__init__(*fields)
        self.room_items = room_items
        self.room_bytes = room_bytes

    def _fields(self) -> list[Part]:
        return [_ROOM.pack(self.room_items, self.room_bytes), *super()._fields()]

    @classmethod
    def _read(cls, data: memoryview) -> StreamRequest:
        if len(data) < _ROOM.size:
            raise ValueError(f"{len(data)} bytes are too few for a stream's room")
        request = super()._read(data[_ROOM.size :])
        assert isinstance(request, cls)
        request.room_items, request.room_bytes = _ROOM.unpack_from(data)
        return request


class StreamItem:
    """One value that an action has yielded.

    Attributes:
        index: its place in the stream, from 0.
        value: the value.
        size: bytes of the encoded value; 0 as long as nobody has encoded it, as in
            exchanges that hand over by reference.
    """

    __slots__ = ("index", "size", "value")
    code: ClassVar[int] = 10
    kind: ClassVar[Literal["one-way"]] = "one-way"

    def __init__(self, index: int, value: Payload, size: int = 0) -> None:
        self.index = index
        self.value = value
        self.size = size

    def get_value(self) -> Any:
        """Decode the value."""
        return self.value.load()

    def _fields(self) -> list[Part]:
        parts = self.value.parts()
        self.size = sum(map(len, parts))
        return [_COUNT.pack(self.index), *parts]

    @classmethod
    def _read(cls, data: memoryview) -> StreamItem:
        (index,) = _unpack(data)
        value = data[_COUNT.size :]
        return cls(index, Payload.from_bytes(value), len(value))


class StreamCredit:
    """Says how many items, counted from the first, have been taken so far."""

    __slots__ = ("taken",)
    code: ClassVar[int] = 11
    kind: ClassVar[Literal["one-way"]] = "one-way"

    def __init__(self, taken: int) -> None:
        self.taken = taken

    def _fields(self) -> list[Part]:
        return [_COUNT.pack(self.taken)]

    @classmethod
    def _read(cls, data: memoryview) -> StreamCredit:
        return cls(*_unpack(data))


class StreamEnd:
    """The stream has ended by itself, after so many items."""

    __slots__ = ("count",)
    code: ClassVar[int] = 12
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(self, count: int) -> None:
        self.count = count

    def _fields(self) -> list[Part]:
        return [_COUNT.pack(self.count)]

    @classmethod
    def _read(cls, data: memoryview) -> StreamEnd:
        return cls(*_unpack(data))


def _unpack(data: memoryview) -> tuple[int]:
    if len(data) < _COUNT.size:
        raise ValueError(f"{len(data)} bytes are too few for a count")
    (count,) = _COUNT.unpack_from(data)
    return (count,)
