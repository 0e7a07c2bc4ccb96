"""The wire of the hosted exchange: binary records, many to a WebSocket message.

A record begins with its length (4 bytes, all numbers little-endian, the length
counts itself) and its kind (1 byte). The records that carry messages have a fixed
header on which the server routes; the payload that follows is nobody's business.

=======  =========  =========================================================
kind     from       content
=======  =========  =========================================================
WELCOME  server     JSON: protocol, software, last sequence number, limits
CALL     client     number (4), JSON: method and arguments
REPLY    server     number (4), JSON: result or error
SEND     client     flags (1), sequence (8), answers (8), dest, src, tag, payload
DELIVER  server     flags (1), number (8), 0 (8), dest, src, tag, payload
CONFIRM  server     sequence (8): everything up to it is stored or was refused
CONFIRM  client     sequence (8): every refusal up to it was heard
REFUSE   server     sequence (8), tag (16), JSON: error
RECEIPT  client     count (4): so many more deliveries were received
LOST     server     mailbox (16), JSON: error
NEWS     server     JSON: where owners of watched mailboxes are, by uid
TOKENS   server     JSON: what to show when coming back, by uid; "" for the connection
PART     both       transfer (8), offset (8), bytes of a large message
TAKEN    both       transfer (8), offset (8): what is before it has been taken
DROP     server     transfer (8), JSON: error; it will not be completed
=======  =========  =========================================================

A message above `spill_bytes` of WELCOME is a transfer. To the exchange: the client asks
with the call `offer` whether there is room, and is told how much is there already; it
sends the rest in PARTs, and when they are TAKEN a SEND with the flag LARGE, whose
payload is the number of the transfer. From the exchange: a DELIVER with that flag,
whose payload is the key and the size of the body; the client asks with TAKEN for what
it does not have yet, and has received the message when it has TAKEN all of it. Nobody
sends more than `WINDOW` bytes beyond what was TAKEN, and other records go in between.

CONFIRM and RECEIPT leave with other records, or alone a few milliseconds later: for
themselves, they would wake the far side as often again as messages do.

`answers` is, of a response, the number of the request that it settles, and of a
request, how many milliseconds it may wait until it is delivered (0: for ever).

Sequence numbers count the messages of one session (a process's connection and the
connections that replace it), so that what is sent again is recognised.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from academy.exception import AcademyError, ProtocolError
from academy.exchange.errors import pack_error, unpack_error
from academy.exchange.presence import Presence

PROTOCOL = 2
"""Version of this wire; 1 is the REST protocol of other exchanges."""
PATH = "/v2"
"""Where a server takes WebSocket connections."""
LOGIN_PATH = "/v2/login"
"""Where it exchanges access tokens of Globus Auth for tokens of its own."""
SESSION_HEADER = "Academy-Session"
PROTOCOL_HEADER = "Academy-Protocol"
NAMESPACE_HEADER = "Academy-Namespace"
"""Whose mailboxes a guest is after."""

WELCOME, CALL, REPLY, SEND, DELIVER, CONFIRM, REFUSE, RECEIPT, LOST = range(1, 10)
NEWS, TOKENS, PART, TAKEN, DROP = range(10, 15)

UPLOADS = 1 << 63
"""Numbers of transfers to the exchange are above it; from there, messages' numbers."""
PART_BYTES = 262_144
"""Bytes in one PART: what other records may have to wait for."""
WINDOW = 4_194_304
"""Bytes of one transfer that are on their way and not TAKEN."""
REDELIVERED = 128
"""Flag of a delivery that an earlier incarnation may have worked on."""
AWAITED = 64
"""Flag of a message whose sender waits until it is confirmed."""

MAILBOXES_AT_ONCE = 1_000
"""Mailboxes that one CALL names at most."""
HELD_AT_ONCE = 20_000
"""Requests that it names: a mailbox with more is attached in steps, `more` of which
follow, and let go of likewise."""
CALL_BYTES = 2_000_000
"""Bytes of a CALL at most."""

BURST = 64
"""Records of one WebSocket message that are worked off before others get their turn.

Otherwise a burst goes through client, server and agent as a whole, and two of them
are idle while the third works.
"""

HEAD = struct.Struct("<IB")
_HEAD_BYTES = HEAD.size
MESSAGE = struct.Struct("<IBBQQ16s16s16s")
_NUMBERED = struct.Struct("<IBI")
_CONFIRM = struct.Struct("<IBQ")
_REFUSE = struct.Struct("<IBQ16s")
_LOST = struct.Struct("<IB16s")
_PART = struct.Struct("<IBQQ")
_DROP = struct.Struct("<IBQ")
TRANSFER = struct.Struct("<Q")
"""Payload of a SEND of a large message."""

_SMALLEST = {
    WELCOME: HEAD.size,
    CALL: _NUMBERED.size,
    REPLY: _NUMBERED.size,
    SEND: MESSAGE.size,
    DELIVER: MESSAGE.size,
    CONFIRM: _CONFIRM.size,
    REFUSE: _REFUSE.size,
    RECEIPT: _NUMBERED.size,
    LOST: _LOST.size,
    NEWS: HEAD.size,
    TOKENS: HEAD.size,
    PART: _PART.size,
    TAKEN: _PART.size,
    DROP: _DROP.size,
}


def records(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Cut a WebSocket message into (kind, record).

    Raises:
        ProtocolError: a record is cut short, too short for its kind, or unknown.
    """
    view = memoryview(data)
    smallest, unpack = _SMALLEST, HEAD.unpack_from
    at, end = 0, len(view)
    while at < end:
        if end - at < _HEAD_BYTES:
            raise ProtocolError(f"{end - at} bytes are left over at the end")
        length, kind = unpack(data, at)
        stop = at + length
        if kind not in smallest:
            raise ProtocolError(f"records of kind {kind} are unknown")
        if length < smallest[kind]:
            raise ProtocolError(f"a record of kind {kind} has only {length} bytes")
        if stop > end:
            raise ProtocolError(f"a record of {length} bytes is cut at {end - at}")
        yield kind, view[at:stop]
        at = stop


def message_head(
    kind: int,
    flags: int,
    number: int,
    answers: int,
    dest: bytes,
    src: bytes,
    tag: bytes,
    size: int,
) -> bytes:
    """Pack the header of a record that carries `size` bytes of payload."""
    return MESSAGE.pack(
        MESSAGE.size + size, kind, flags, number, answers, dest, src, tag
    )


def welcome(content: dict[str, Any]) -> bytes:
    """Pack a WELCOME record."""
    body = json.dumps(content).encode()
    return HEAD.pack(HEAD.size + len(body), WELCOME) + body


def numbered(kind: int, number: int, content: Any = None) -> bytes:
    """Pack a CALL, REPLY or RECEIPT record."""
    body = b"" if content is None else json.dumps(content).encode()
    return _NUMBERED.pack(_NUMBERED.size + len(body), kind, number) + body


def confirm(sequence: int) -> bytes:
    """Pack a CONFIRM record."""
    return _CONFIRM.pack(_CONFIRM.size, CONFIRM, sequence)


def refuse(sequence: int, tag: bytes, error: AcademyError) -> bytes:
    """Pack a REFUSE record."""
    body = json.dumps(pack_error(error)).encode()
    return _REFUSE.pack(_REFUSE.size + len(body), REFUSE, sequence, tag) + body


def lost(uid: bytes, error: AcademyError) -> bytes:
    """Pack a LOST record."""
    body = json.dumps(pack_error(error)).encode()
    return _LOST.pack(_LOST.size + len(body), LOST, uid) + body


def news(changes: Mapping[bytes, Presence]) -> bytes:
    """Pack a NEWS record."""
    content = {uid.hex(): presence.packed() for uid, presence in changes.items()}
    body = json.dumps(content).encode()
    return HEAD.pack(HEAD.size + len(body), NEWS) + body


def tokens(issued: Mapping[bytes, str]) -> bytes:
    """Pack a TOKENS record."""
    content = {uid.hex(): token for uid, token in issued.items()}
    body = json.dumps(content).encode()
    return HEAD.pack(HEAD.size + len(body), TOKENS) + body


def read_tokens(record: memoryview) -> dict[bytes, str]:
    """Unpack a TOKENS record.

    Raises:
        ProtocolError: it is none.
    """
    try:
        content = read_json(record)
        return {bytes.fromhex(uid): str(token) for uid, token in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ProtocolError(f"no tokens: {error}") from error


def read_news(record: memoryview) -> dict[bytes, Presence]:
    """Unpack a NEWS record.

    Raises:
        ProtocolError: it is none.
    """
    content = read_json(record)
    try:
        return {
            bytes.fromhex(uid): Presence.unpacked(packed)
            for uid, packed in content.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ProtocolError(f"no news: {error}") from error


def read_json(record: memoryview, start: int = HEAD.size) -> Any:
    """Decode the JSON at the end of a record.

    Raises:
        ProtocolError: it is not JSON.
    """
    try:
        return json.loads(bytes(record[start:]))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(
            f"not JSON: {bytes(record[start : start + 40])!r}"
        ) from error


def read_numbered(record: memoryview) -> tuple[int, Any]:
    """Unpack a CALL or REPLY record."""
    return read_count(record), read_json(record, _NUMBERED.size)


def read_count(record: memoryview) -> int:
    """Unpack the number of a CALL, REPLY or RECEIPT record."""
    number: int = _NUMBERED.unpack_from(record)[2]
    return number


def read_confirm(record: memoryview) -> int:
    """Unpack a CONFIRM record."""
    sequence: int = _CONFIRM.unpack_from(record)[2]
    return sequence


def read_refuse(record: memoryview) -> tuple[int, Exception]:
    """Unpack a REFUSE record."""
    sequence = _REFUSE.unpack_from(record)[2]
    return sequence, unpack_error(read_json(record, _REFUSE.size))


def read_lost(record: memoryview) -> tuple[bytes, Exception]:
    """Unpack a LOST record."""
    uid = _LOST.unpack_from(record)[2]
    return uid, unpack_error(read_json(record, _LOST.size))


def part_head(transfer: int, offset: int, size: int) -> bytes:
    """Pack the header of a PART record that carries `size` bytes."""
    return _PART.pack(_PART.size + size, PART, transfer, offset)


def read_part(record: memoryview) -> tuple[int, int, memoryview]:
    """Unpack a PART record: transfer, offset, bytes."""
    _, _, transfer, offset = _PART.unpack_from(record)
    return transfer, offset, record[_PART.size :]


def taken(transfer: int, offset: int) -> bytes:
    """Pack a TAKEN record."""
    return _PART.pack(_PART.size, TAKEN, transfer, offset)


def read_taken(record: memoryview) -> tuple[int, int]:
    """Unpack a TAKEN record: transfer, offset."""
    _, _, transfer, offset = _PART.unpack_from(record)
    return transfer, offset


def drop(transfer: int, error: AcademyError) -> bytes:
    """Pack a DROP record."""
    body = json.dumps(pack_error(error)).encode()
    return _DROP.pack(_DROP.size + len(body), DROP, transfer) + body


def read_drop(record: memoryview) -> tuple[int, Exception]:
    """Unpack a DROP record: transfer, error."""
    transfer = _DROP.unpack_from(record)[2]
    return transfer, unpack_error(read_json(record, _DROP.size))
