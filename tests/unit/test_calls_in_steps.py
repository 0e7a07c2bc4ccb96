"""Calls that would be too large are made in steps, none of which is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from academy.exception import SupersededError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.attachments import Attachments
from academy.exchange.cloud.calls import Calls
from academy.exchange.cloud.writer import Writer
from academy.exchange.errors import pack_error
from academy.exchange.inbox import Inbox
from academy.identifier import AgentId
from academy.message import Message, PingRequest, SuccessResponse

TOKEN = "t" * 600


class Box:
    def __init__(self) -> None:
        self.mailbox_id = AgentId[Any].new("agent")
        self.inbox = Inbox()
        self.incarnation = bytes(16)
        self.token = TOKEN


def tag(number: int) -> bytes:
    return number.to_bytes(16, "big")


def response(box: Box, number: int) -> Message:
    other = AgentId[Any].new()
    request = Message(other, box.mailbox_id, tag(number), PingRequest())
    return request.create_response(SuccessResponse())


@pytest.fixture
async def sent() -> list[bytes]:
    return []


@pytest.fixture
async def writer(sent: list[bytes]) -> Any:
    def send(message: bytes) -> None:
        sent.append(message)

    writer = Writer(send, bytes)
    yield writer
    await writer.close()


def calls_in(messages: list[bytes]) -> Iterator[tuple[int, int, Any]]:
    for message in messages:
        for kind, record in protocol.records(message):
            assert kind == protocol.CALL
            number, content = protocol.read_numbered(record)
            yield number, len(record), content


async def test_a_link_that_comes_back_names_all_it_holds_in_calls_of_a_bounded_size(
    sent: list[bytes], writer: Writer
) -> None:
    attachments, calls = Attachments(), Calls()
    boxes = [Box() for _ in range(2 * protocol.MAILBOXES_AT_ONCE + 1)]
    for box in boxes:
        attachments.add(box)
    busy = {boxes[7]: 2 * protocol.HELD_AT_ONCE + 5, boxes[8]: 11, boxes[-1]: 3}
    posted = [response(box, n) for box, count in busy.items() for n in range(count)]
    attachments.again(calls, writer, 0, {}, posted)
    writer.flush()

    held: Counter[str] = Counter()
    ended: list[str] = []
    for number, size, content in calls_in(sent):
        assert size <= protocol.CALL_BYTES
        assert len(content["mailboxes"]) <= protocol.MAILBOXES_AT_ONCE
        tags = 0
        problems = []
        for item in content["mailboxes"]:
            assert item["token"] == TOKEN
            tags += len(item["held"])
            held[item["uid"]] += len(set(item["held"]))
            if not item["more"]:
                ended.append(item["uid"])
            lost = item["uid"] == boxes[-1].mailbox_id.uid.hex
            error = pack_error(SupersededError(boxes[-1].mailbox_id))
            problems.append(error if lost else None)
        assert tags <= protocol.HELD_AT_ONCE
        calls.replied(
            memoryview(protocol.numbered(protocol.REPLY, number, {"result": problems}))
        )
    assert ended == [box.mailbox_id.uid.hex for box in boxes]
    assert {uid: n for uid, n in held.items() if n} == {
        box.mailbox_id.uid.hex: count for box, count in busy.items()
    }
    await asyncio.sleep(0)
    assert attachments.get(boxes[-1].mailbox_id.uid.bytes) is None
    assert attachments.get(boxes[0].mailbox_id.uid.bytes) is boxes[0]
