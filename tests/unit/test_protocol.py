"""Frames of the hosted exchange: what is packed comes out again, garbage does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st

from academy import exception
from academy.exception import (
    AcademyError,
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeError,
    ForbiddenError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageTooLargeError,
    ProtocolError,
    QuotaExceededError,
    SupersededError,
    UserTerminatedError,
)
from academy.exchange.cloud import protocol
from academy.exchange.errors import pack_error, unpack_error
from academy.identifier import AgentId, UserId
from academy.message import decode_body

KINDS = range(1, 15)
WITH_JSON = {
    protocol.WELCOME: 5,
    protocol.CALL: 9,
    protocol.REPLY: 9,
    protocol.REFUSE: 29,
    protocol.LOST: 21,
}

Test: TypeAlias = Callable[..., None]


def for_all(*strategies: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Run a test on some examples, however long that takes on a busy machine."""
    return lambda test: settings(deadline=None, max_examples=30)(
        given(*strategies)(test)
    )


uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
bytes16 = st.binary(min_size=16, max_size=16)
names = st.none() | st.text(max_size=20)
contents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
ids: st.SearchStrategy[Any] = st.builds(
    AgentId, uid=st.uuids(), name=names
) | st.builds(UserId, uid=st.uuids(), name=names)
errors = (
    st.builds(BadEntityIdError, ids)
    | st.builds(MailboxTerminatedError, ids)
    | st.builds(SupersededError, ids)
    | st.builds(MailboxFullError, ids, st.text())
    | st.builds(QuotaExceededError, st.text(), *(3 * [st.integers()]))
    | st.builds(MessageTooLargeError, st.integers(), st.integers())
    | st.builds(ForbiddenError, st.text())
)
messages = st.builds(
    lambda kind, flags, number, answers, dest, src, tag, payload: (
        protocol.message_head(
            kind, flags, number, answers, dest, src, tag, len(payload)
        )
        + payload
    ),
    st.sampled_from([protocol.SEND, protocol.DELIVER]),
    st.integers(0, 255),
    uint64,
    uint64,
    bytes16,
    bytes16,
    bytes16,
    st.binary(max_size=200),
)
packed = (
    messages
    | st.builds(protocol.welcome, st.dictionaries(st.text(), contents))
    | st.builds(
        protocol.numbered, st.sampled_from([protocol.CALL, protocol.REPLY]), uint32
    )
    | st.builds(
        protocol.numbered,
        st.sampled_from([protocol.CALL, protocol.REPLY]),
        uint32,
        contents,
    )
    | st.builds(protocol.numbered, st.just(protocol.RECEIPT), uint32)
    | st.builds(protocol.confirm, uint64)
    | st.builds(protocol.refuse, uint64, bytes16, errors)
    | st.builds(protocol.lost, bytes16, errors)
    | st.builds(protocol.taken, uint64, uint64)
    | st.builds(protocol.drop, uint64, errors)
)


def parse(data: bytes) -> list[tuple[int, bytes]]:
    return [(kind, bytes(record)) for kind, record in protocol.records(data)]


def only(data: bytes) -> memoryview:
    ((_, record),) = protocol.records(data)
    return record


def read(kind: int, record: memoryview) -> None:
    """Read a record as its receiver does."""
    if kind == protocol.WELCOME:
        protocol.read_json(record)
    elif kind in (protocol.CALL, protocol.REPLY):
        protocol.read_numbered(record)
    elif kind == protocol.RECEIPT:
        protocol.read_count(record)
    elif kind in (protocol.SEND, protocol.DELIVER):
        protocol.MESSAGE.unpack_from(record)
    elif kind == protocol.CONFIRM:
        protocol.read_confirm(record)
    elif kind == protocol.REFUSE:
        protocol.read_refuse(record)
    else:
        protocol.read_lost(record)


def same(error: Exception, other: Exception) -> bool:
    return (type(error), error.args) == (type(other), other.args)


# --- what is packed comes out again


@for_all(st.lists(packed, max_size=8))
def test_many_records_in_one_message_come_apart_as_they_were(all_: list[bytes]) -> None:
    assert [record for _, record in parse(b"".join(all_))] == all_


@for_all(
    st.sampled_from([protocol.SEND, protocol.DELIVER]),
    st.integers(0, 255),
    uint64,
    uint64,
    st.tuples(bytes16, bytes16, bytes16),
    st.binary(),
)
def test_a_message_keeps_its_addresses_and_its_payload(
    kind: int,
    flags: int,
    number: int,
    answers: int,
    addresses: tuple[bytes, bytes, bytes],
    payload: bytes,
) -> None:
    head = protocol.message_head(kind, flags, number, answers, *addresses, len(payload))
    ((found, record),) = protocol.records(head + payload)

    length, *fields = protocol.MESSAGE.unpack_from(record)
    assert (found, length) == (kind, len(head) + len(payload))
    assert tuple(fields) == (kind, flags, number, answers, *addresses)
    assert record[protocol.MESSAGE.size :] == payload


@for_all(st.sampled_from([protocol.CALL, protocol.REPLY]), uint32, contents)
def test_a_call_and_its_reply_keep_number_and_content(
    kind: int, number: int, content: Any
) -> None:
    data = protocol.numbered(kind, number, {"result": content})

    assert protocol.read_numbered(only(data)) == (number, {"result": content})


@for_all(uint64)
def test_a_confirmation_keeps_its_sequence(sequence: int) -> None:
    assert protocol.read_confirm(only(protocol.confirm(sequence))) == sequence


@for_all(uint32)
def test_a_receipt_keeps_its_count(count: int) -> None:
    assert protocol.read_count(only(protocol.numbered(8, count))) == count


@for_all(uint64, uint64, st.binary())
def test_a_part_keeps_its_transfer_its_place_and_its_bytes(
    transfer: int, offset: int, data: bytes
) -> None:
    record = only(protocol.part_head(transfer, offset, len(data)) + data)
    assert protocol.read_part(record) == (transfer, offset, data)
    record = only(protocol.taken(transfer, offset))
    assert protocol.read_taken(record) == (transfer, offset)


@for_all(uint64, errors)
def test_a_dropped_transfer_keeps_its_error(transfer: int, error: AcademyError) -> None:
    found, again = protocol.read_drop(only(protocol.drop(transfer, error)))
    assert found == transfer
    assert same(again, error)


@for_all(st.dictionaries(st.text(), contents))
def test_a_welcome_keeps_its_content(content: dict[str, Any]) -> None:
    assert protocol.read_json(only(protocol.welcome(content))) == content


@for_all(uint64, bytes16, errors)
def test_a_refusal_names_the_message_and_the_error(
    sequence: int, tag: bytes, error: AcademyError
) -> None:
    found, again = protocol.read_refuse(only(protocol.refuse(sequence, tag, error)))

    assert found == sequence
    assert same(again, error)


@for_all(bytes16, errors)
def test_a_loss_names_the_mailbox_and_the_error(
    uid: bytes, error: AcademyError
) -> None:
    found, again = protocol.read_lost(only(protocol.lost(uid, error)))

    assert found == uid
    assert same(again, error)


# --- errors


@for_all(errors)
def test_errors_cross_with_type_arguments_and_words(error: AcademyError) -> None:
    again = unpack_error(json.loads(json.dumps(pack_error(error))))

    assert same(again, error)
    assert str(again) == str(error)


def test_the_role_of_who_is_gone_decides_the_type_of_the_error() -> None:
    agent: AgentId[Any] = AgentId.new("a")
    user = UserId.new("u")
    errors = [MailboxTerminatedError(agent), MailboxTerminatedError(user)]
    again = [unpack_error(pack_error(error)) for error in errors]

    assert [type(e) for e in again] == [AgentTerminatedError, UserTerminatedError]


def test_an_error_that_this_side_does_not_know_keeps_its_words() -> None:
    found = unpack_error({"error": "QuotaError", "arguments": ["full", 3]})

    assert type(found) is ExchangeError
    assert str(found) == "QuotaError: full, 3"


@pytest.mark.parametrize("name", ["Iterable", "annotations", "raise_exceptions", "Any"])
def test_only_errors_are_made_from_what_an_exchange_sends(name: str) -> None:
    assert hasattr(exception, name)
    found = unpack_error({"error": name, "arguments": [[]]})

    assert type(found) is ExchangeError


@for_all(contents)
def test_anything_else_becomes_an_error_that_shows_it(content: Any) -> None:
    assert isinstance(unpack_error(content), ExchangeError)


@for_all(
    st.sampled_from([n for n in dir(exception) if n.endswith("Error")]),
    st.lists(contents | st.fixed_dictionaries({"role": contents, "uid": contents})),
)
def test_errors_with_the_wrong_arguments_are_errors_still(
    name: str, arguments: list[Any]
) -> None:
    found = unpack_error({"error": name, "arguments": arguments})

    assert isinstance(found, AcademyError)
    assert isinstance(str(found), str)


# --- garbage


@for_all(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_harmless(data: bytes) -> None:
    with suppress(ProtocolError):
        for kind, record in protocol.records(data):
            read(kind, record)


@for_all(st.lists(packed, min_size=1, max_size=3), st.data())
def test_a_message_that_is_cut_short_is_a_protocol_error(
    all_: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(all_)
    ends = {sum(map(len, all_[:n])) for n in range(len(all_) + 1)}
    cut = data.draw(st.integers(0, len(whole)))
    if cut in ends:
        parse(whole[:cut])
        return
    with pytest.raises(ProtocolError):
        parse(whole[:cut])


@for_all(packed, st.data())
def test_a_damaged_record_is_a_protocol_error_or_harmless(
    record: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(record) - 1))
    damaged = bytearray(record)
    damaged[at] ^= data.draw(st.integers(1, 255))
    with suppress(ProtocolError):
        for kind, found in protocol.records(bytes(damaged)):
            read(kind, found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x05\0\0", "3 bytes are left over at the end"),
        (b"\x05\0\0\0\x63", "records of kind 99 are unknown"),
        (b"\x05\0\0\0\0", "records of kind 0 are unknown"),
        (b"\x05\0\0\0\x06", "a record of kind 6 has only 5 bytes"),
        (b"\x00\0\0\0\x01", "a record of kind 1 has only 0 bytes"),
        (b"\xff\xff\xff\xff\x01", "a record of 4294967295 bytes is cut at 5"),
        (b"\x09\0\0\0\x08\0\0\0\0\x01", "1 bytes are left over at the end"),
    ],
)
def test_a_protocol_error_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        parse(data)


def test_records_before_a_broken_one_are_read() -> None:
    found = protocol.records(protocol.confirm(7) + b"\x05\0\0\0\x63")

    kind, record = next(found)
    assert (kind, protocol.read_confirm(record)) == (protocol.CONFIRM, 7)
    with pytest.raises(ProtocolError):
        next(found)


@pytest.mark.parametrize("kind", sorted(WITH_JSON))
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"' + b"x" * 100, b"1" * 10_000],
    ids=["empty", "cut", "not utf-8", "deep", "long", "huge number"],
)
def test_what_is_not_json_is_a_protocol_error(kind: int, content: bytes) -> None:
    size = WITH_JSON[kind]
    record = protocol.HEAD.pack(size + len(content), kind) + bytes(size - 5) + content
    with pytest.raises(ProtocolError, match="not JSON"):
        read(kind, only(record))


@for_all(st.binary(max_size=200))
def test_a_body_that_is_garbage_is_a_value_error_or_harmless(data: bytes) -> None:
    """The exchange never looks at one, so whoever receives it must not stumble."""
    with suppress(ValueError):
        decode_body(memoryview(data))


@for_all(st.integers(1, 8), st.binary(max_size=60))
def test_a_body_of_a_known_kind_that_is_garbage_is_a_value_error_or_harmless(
    kind: int, data: bytes
) -> None:
    with suppress(ValueError):
        decode_body(memoryview(bytes((kind, 0, 0)) + data))


def test_ids_of_a_uuid_in_another_form_are_the_same() -> None:
    uid = UUID(int=5)
    packed = {
        "error": "SupersededError",
        "arguments": [{"role": "user", "uid": str(uid)}],
    }

    assert same(unpack_error(packed), SupersededError(UserId(uid=uid)))
