"""A client's WebSocket, against servers that send frames as they like."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest
import uvloop
from picows import ws_connect

from academy.exception import ProtocolError
from academy.exchange.cloud.dialing import RefusedHandshakeError, dial
from academy.exchange.cloud.security.pinning import trust
from academy.exchange.cloud.websocket import WebSocket
from academy.exchange.cloud.writer import CHUNK_BYTES, Writer
from tests.support.websockets import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawConnection,
    raw_server,
)

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a program in one event loop and in the other."""
    runner: Run = request.param
    return runner


async def connect(url: str, heartbeat: float = 30) -> WebSocket:
    return await dial(url, {}, trust(None, verify=True), heartbeat=heartbeat)


async def nothing(_: RawConnection) -> None:
    """Hang up."""


# --- what comes


def test_a_message_in_several_frames_comes_whole(run: Run) -> None:
    """With control frames in between, which are answered at once."""

    async def serve(connection: RawConnection) -> None:
        await connection.send(BINARY, b"one ", fin=False)
        await connection.send(PING, b"?")
        assert await connection.read() == (PONG, b"?")
        await connection.send(CONTINUATION, b"", fin=False)
        await connection.send(CONTINUATION, b"message")
        await connection.send(BINARY, b"another")
        await connection.ended()

    async def main() -> None:
        came: asyncio.Queue[bytes] = asyncio.Queue()
        async with raw_server(serve) as url:
            websocket = await connect(url)
            websocket.start(came.put_nowait)
            assert [await came.get(), await came.get()] == [b"one message", b"another"]
            await websocket.close()

    run(main())


def test_what_comes_before_anybody_takes_it_waits(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        await connection.send(BINARY, b"early")
        await connection.send(CLOSE, struct.pack("!H", 1012) + b"later")
        await connection.ended()

    async def main() -> None:
        came: list[bytes] = []
        async with raw_server(serve) as url:
            websocket = await connect(url)
            assert await websocket.ended == "closed with code 1012: later"
            websocket.start(came.append)
            await websocket.close()
        assert (came, websocket.code) == ([b"early"], 1012)

    run(main())


@pytest.mark.parametrize("says_so", [True, False])
def test_that_the_far_side_is_gone_is_told_at_once(run: Run, says_so: bool) -> None:
    """Or more would be sent to who is gone, before whoever waits is woken."""

    async def serve(connection: RawConnection) -> None:
        await connection.read()
        await connection.send(BINARY, b"last words")
        if says_so:
            await connection.send(CLOSE, struct.pack("!H", 1000))

    async def main() -> None:
        order: list[object] = []
        async with raw_server(serve) as url:
            websocket = await connect(url)
            websocket.ended.add_done_callback(lambda _: order.append("woken"))
            websocket.start(order.append, lambda: order.append("left"))
            websocket.send(b"go")
            await websocket.ended
            await websocket.close()
        assert order[:2] == [b"last words", "left"]
        assert "woken" in order

    run(main())


@pytest.mark.parametrize(
    "frames",
    [
        [(CONTINUATION, True)],
        [(BINARY, False), (BINARY, True)],
        [(TEXT, True)],
        [(BINARY, False), (TEXT, True)],
    ],
    ids=["no beginning", "no end", "text", "text within"],
)
def test_frames_that_make_no_message_end_it(
    run: Run, frames: list[tuple[int, bool]]
) -> None:
    async def serve(connection: RawConnection) -> None:
        for opcode, fin in [*frames, (BINARY, True)]:
            await connection.send(opcode, b"x", fin=fin)
        await connection.ended()

    async def main() -> None:
        came: list[bytes] = []
        async with raw_server(serve) as url:
            websocket = await connect(url)
            websocket.start(came.append)
            with pytest.raises(ProtocolError):
                await websocket.ended
            await websocket.close()
        assert came == []

    run(main())


def test_an_error_that_nobody_waits_for_is_nobodys_complaint(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(connection: RawConnection) -> None:
        await connection.send(TEXT)
        await connection.ended()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            await asyncio.wait([websocket.ended])
            await websocket.close()

    run(main())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_fragments_are_limited_together(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        await connection.read()
        await connection.send(BINARY, bytes(6), fin=False)
        await connection.send(CONTINUATION, bytes(6))
        await connection.ended()

    async def main() -> None:
        async with raw_server(serve) as url:
            address = url.replace("http", "ws")
            _, websocket = await ws_connect(lambda *_: WebSocket(10), address)
            assert isinstance(websocket, WebSocket)
            websocket.start(print)
            websocket.send(b"go")
            with pytest.raises(ProtocolError, match="above 10 bytes"):
                await websocket.ended
            await websocket.close()

    run(main())


# --- how it ends


def test_a_goodbye_is_answered(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        await connection.send(CLOSE, struct.pack("!H", 1001))
        assert await connection.read() == (CLOSE, struct.pack("!H", 1001))

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            assert await websocket.ended == "closed with code 1001"
            await websocket.close()

    run(main())


def test_closing_says_why_and_does_not_wait_for_who_is_silent(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        code, reason = struct.pack("!H", 1002), ("é" * 60).encode()
        assert await connection.read() == (CLOSE, code + reason)
        with pytest.raises(asyncio.IncompleteReadError):
            await connection.read()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            await websocket.close(1002, "é" * 70)
            assert await websocket.ended == "it was closed here"

    run(main())


def test_what_comes_after_closing_is_nobodys(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        assert (await connection.read())[0] == CLOSE
        await connection.send(BINARY, b"late")
        await connection.send(CLOSE, struct.pack("!H", 1000))

    async def main() -> None:
        came: list[bytes] = []
        async with raw_server(serve) as url:
            websocket = await connect(url)
            websocket.start(came.append)
            await websocket.close()
        assert (came, websocket.code) == ([], 1000)

    run(main())


def test_a_connection_that_breaks_ends_it(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        connection.reset()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            assert await websocket.ended == "the connection is broken"
            assert websocket.code is None
            websocket.send(b"too late")
            await websocket.close()

    run(main())


def test_who_answers_no_ping_is_given_up(run: Run) -> None:
    async def serve(connection: RawConnection) -> None:
        assert (await connection.read())[0] == PING
        await connection.ended()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url, heartbeat=0.1)
            assert await websocket.ended == "no answer in time"
            await websocket.close()

    run(main())


def test_whatever_comes_is_a_sign_of_life(run: Run) -> None:
    """The answer to a ping may be behind more than passes in time."""

    async def serve(connection: RawConnection) -> None:
        for _ in range(2):
            assert (await connection.read())[0] == PING
            await connection.send(BINARY, b"busy")
        await connection.send(CLOSE, struct.pack("!H", 1000))
        await connection.ended()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url, heartbeat=1)
            assert await websocket.ended == "closed with code 1000"
            await websocket.close()

    run(main())


# --- what leaves


def test_a_writer_waits_for_a_far_side_that_does_not_read(run: Run) -> None:
    proceed = asyncio.Event()
    messages = [bytes([number]) * CHUNK_BYTES for number in range(40)]

    async def serve(connection: RawConnection) -> None:
        await proceed.wait()
        for message in messages:
            assert await connection.read() == (BINARY, message)
        await connection.ended()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            writer = Writer(websocket.send, bytes)
            for message in messages:
                writer.put(message)
            writer.flush()
            # The kernel has taken some, and its buffers are full.
            assert CHUNK_BYTES <= writer.sent < len(messages) * CHUNK_BYTES / 2
            proceed.set()
            await writer.flushed()
            assert writer.sent == len(messages) * CHUNK_BYTES
            await writer.close()
            await websocket.close()

    run(main())


def test_who_waits_for_room_learns_that_the_far_side_is_gone(run: Run) -> None:
    proceed = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        await proceed.wait()
        connection.reset()

    async def main() -> None:
        async with raw_server(serve) as url:
            websocket = await connect(url)
            while (room := websocket.send(bytes(CHUNK_BYTES))) is None:
                pass
            proceed.set()
            await asyncio.wait([room])
            assert room.cancelled()
            await websocket.close()

    run(main())


# --- handshakes


@pytest.mark.parametrize("status", [401, 404, 499, 503])
def test_an_answer_that_is_no_websocket_tells_its_status(run: Run, status: int) -> None:
    answer = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode()

    async def main() -> None:
        async with raw_server(nothing, answer=answer) as url:
            with pytest.raises(RefusedHandshakeError) as refused:
                await connect(url)
        assert refused.value.status == status

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"SSH",
    ],
    ids=["unproven", "ssh", "cut short"],
)
def test_what_speaks_no_http_is_no_websocket(run: Run, answer: bytes) -> None:
    async def main() -> None:
        async with raw_server(nothing, answer=answer) as url:
            with pytest.raises(ConnectionError):
                await connect(url)

    run(main())


def test_a_handshake_that_is_given_up_leaves_no_connection(run: Run) -> None:
    asked = asyncio.Event()

    async def serve(connection: RawConnection) -> None:
        asked.set()
        await connection.ended()

    async def main() -> None:
        # Half an answer, so that only giving up ends it.
        async with raw_server(serve, answer=b"HTTP/1.1 101") as url:
            connecting = asyncio.create_task(connect(url))
            await asked.wait()
            connecting.cancel()
            await asyncio.wait([connecting])
            assert connecting.cancelled()

    run(main())
