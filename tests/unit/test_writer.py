"""The writer of a WebSocket: what leaves together, and what can wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from academy.exchange.cloud.writer import CHUNK_BYTES, Writer


class Wire:
    """What was sent, one item per WebSocket message."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.late = b""
        self.writer = Writer(self._send, self._take_late)

    def _send(self, data: bytes) -> None:
        self.sent.append(data)

    def _take_late(self) -> bytes:
        late, self.late = self.late, b""
        return late


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    yield wire
    await wire.writer.close()


async def test_what_is_put_in_one_turn_leaves_together(wire: Wire) -> None:
    wire.writer.put(b"one ")
    wire.writer.put_parts(4, b"t", b"wo ")
    await wire.writer.flushed()
    wire.writer.put(b"three")
    await wire.writer.flushed()
    assert wire.sent == [b"one two ", b"three"]


async def test_the_parts_of_records_leave_when_they_are_flushed(wire: Wire) -> None:
    wire.writer.put_parts(4, b"o", b"ne ")
    await asyncio.sleep(0)
    assert wire.sent == []
    wire.writer.put_parts(3, b"t", b"wo")
    wire.writer.flush()
    assert wire.sent == [b"one two"]


async def test_a_large_record_closes_its_message(wire: Wire) -> None:
    large = bytes(CHUNK_BYTES)
    for record in (b"one", large, b"two"):
        wire.writer.put(record)
    await wire.writer.flushed()
    assert wire.sent == [b"one" + large, b"two"]


async def test_what_can_wait_leaves_behind_the_next_record(wire: Wire) -> None:
    wire.late = b" late"
    wire.writer.later()
    wire.writer.put(b"one")
    await wire.writer.flushed()
    assert wire.sent == [b"one late"]


async def test_what_can_wait_leaves_by_itself_when_nothing_else_does() -> None:
    sent: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    records = [b"late"]
    writer = Writer(sent.set_result, lambda: records.pop() if records else b"")
    writer.later()
    writer.later()
    assert await sent == b"late"
    await writer.close()


async def test_nothing_is_sent_when_there_is_nothing_late_any_more(wire: Wire) -> None:
    wire.late = b"late"
    wire.writer.later()
    wire.writer.put(b"one ")
    await wire.writer.flushed()
    wire.late = b"later"
    wire.writer.later()
    wire.writer.put(b"two ")
    await wire.writer.flushed()
    assert wire.sent == [b"one late", b"two later"]


async def test_what_is_expected_leaves_behind_what_it_leads_to(wire: Wire) -> None:
    """A turn of the loop earlier than what nobody has expected."""
    loop = asyncio.get_running_loop()
    loop.call_soon(wire.writer.put, b"one ")
    wire.writer.expect()
    loop.call_soon(wire.writer.put, b"two")
    await asyncio.sleep(0)
    assert wire.sent == [b"one "]
    await asyncio.sleep(0)
    assert wire.sent == [b"one ", b"two"]


class Narrow:
    """A WebSocket that has room for the next message when it is told so."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writer = Writer(self._send, bytes)

    def _send(self, data: bytes) -> asyncio.Future[None] | None:
        self.sent.append(data)
        return None if self.room.done() else self.room


async def test_what_comes_while_there_is_no_room_leaves_together_and_in_order() -> None:
    wire = Narrow()
    wire.writer.put(b"one")
    await asyncio.sleep(0)
    for record in (b"two", b"three", bytes(CHUNK_BYTES), b"four"):
        wire.writer.put(record)
        await asyncio.sleep(0)
    assert wire.sent == [b"one"]
    wire.room.set_result(None)
    await wire.writer.flushed()
    assert wire.sent == [b"one", b"twothree" + bytes(CHUNK_BYTES), b"four"]
    await wire.writer.close()


async def test_what_waits_for_its_turn_leaves_between_two_messages_of_others() -> None:
    """Though there is always more to send."""
    wire = Narrow()
    wire.writer.put(bytes(CHUNK_BYTES))
    wire.writer.put(b"two")
    wire.writer.flush()
    turn = asyncio.create_task(wire.writer.turn())
    await asyncio.sleep(0)
    full, wire.room = wire.room, asyncio.get_running_loop().create_future()
    full.set_result(None)
    await turn
    wire.writer.put(b"three")
    wire.writer.put_first(b"a ", b"part")
    wire.room.set_result(None)
    await wire.writer.flushed()
    assert wire.sent == [bytes(CHUNK_BYTES), b"two", b"a part", b"three"]
    await wire.writer.close()


@pytest.mark.parametrize(
    "lose", [lambda room: room.cancel(), lambda room: room.set_exception(OSError())]
)
async def test_a_lost_connection_ends_the_writer_without_an_error(
    lose: Callable[[asyncio.Future[None]], object],
) -> None:
    wire = Narrow()
    wire.writer.put(b"one")
    await asyncio.sleep(0)
    lose(wire.room)
    await wire.writer.flushed()
    wire.writer.put(b"two")
    await wire.writer.flushed()
    assert wire.sent == [b"one"]
    await wire.writer.close()


async def test_a_writer_that_is_closed_waits_for_room_no_more() -> None:
    wire = Narrow()
    wire.writer.put(b"one")
    await asyncio.sleep(0)
    wire.writer.put(b"two")
    await wire.writer.close()
    assert wire.room.cancelled()
    assert wire.sent == [b"one"]
