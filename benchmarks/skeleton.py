"""The floor under the hosted exchange: the same design without its guarantees.

One WebSocket per process, packed frames that leave together once per turn of the
event loop, an opaque relay with a routing table, every message in SQLite if asked
for (one transaction per WebSocket message), a future per call and a task per action.
There are no leases, confirmations, incarnations, tokens, limits or errors: what those
cost is the distance between this and the product.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.calls import Plan, Sample, measure

HEAD = struct.Struct("<I16s16s16sB")  # frame length, destination, source, tag, kind
HELLO, REQUEST, RESPONSE = range(3)
AGENT, CLIENT = b"A" * 16, b"C" * 16

_SCHEMA = """
pragma journal_mode=wal;
pragma synchronous=normal;
create table message(
    tag blob, kind int, dest blob, src blob, body blob, primary key(tag, kind)
) without rowid;
"""
_PUT = "insert or ignore into message values(?,?,?,?,?)"
_SETTLE = f"delete from message where tag=? and kind={REQUEST}"


class Frame(NamedTuple):
    dest: bytes
    src: bytes
    tag: bytes
    kind: int
    body: memoryview
    raw: memoryview


def frames(data: bytes) -> Iterator[Frame]:
    view, at = memoryview(data), 0
    while at < len(data):
        length, dest, src, tag, kind = HEAD.unpack_from(view, at)
        raw = view[at : at + length]
        yield Frame(dest, src, tag, kind, raw[HEAD.size :], raw)
        at += length


class Writer:
    """Sends everything put in one turn of the loop as one WebSocket message."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._parts: list[bytes] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def put(self, *parts: bytes) -> None:
        self._parts.extend(parts)
        self._wake.set()

    def frame(
        self, dest: bytes, src: bytes, tag: bytes, kind: int, body: bytes
    ) -> None:
        self.put(HEAD.pack(HEAD.size + len(body), dest, src, tag, kind), body)

    async def _run(self) -> NoReturn:
        while True:
            await self._wake.wait()
            self._wake.clear()
            data = b"".join(self._parts)
            self._parts.clear()
            await self._send(data)


class Relay:
    """Passes frames on to where they belong; keeps them in SQLite if it has one."""

    def __init__(self, database: str | None) -> None:
        self._writers: dict[bytes, Writer] = {}
        self._db: sqlite3.Connection | None = None
        if database is not None:
            self._db = sqlite3.connect(database, isolation_level=None)
            self._db.executescript(_SCHEMA)

    async def connect(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=0, compress=False)
        await ws.prepare(request)
        writer = Writer(ws.send_bytes)
        async for message in ws:
            self._pass_on(writer, message.data)
        return ws

    def _pass_on(self, writer: Writer, data: bytes) -> None:
        stored: list[tuple[bytes, int, bytes, bytes, bytes]] = []
        settled: list[tuple[bytes]] = []
        for dest, src, tag, kind, body, raw in frames(data):
            if kind == HELLO:
                self._writers[src] = writer
            elif self._db is not None:
                stored.append((tag, kind, dest, src, bytes(body)))
                if kind == RESPONSE:
                    settled.append((tag,))
            self._writers[dest].put(bytes(raw))
        if self._db is not None and stored:
            # The writers run after this, so that nothing leaves before it is stored.
            self._db.execute("begin")
            self._db.executemany(_PUT, stored)
            self._db.executemany(_SETTLE, settled)
            self._db.execute("commit")


def serve(ready: Connection, database: str | None) -> None:
    """Run the relay in this process; sends its URL when it is ready."""
    os.setsid()  # like the exchange's server: schedulers may share the CPU by sessions
    uvloop.run(_serve(ready, database))


async def _serve(ready: Connection, database: str | None) -> None:
    app = web.Application()
    app.router.add_get("/", Relay(database).connect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    ready.send(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    await asyncio.Event().wait()


class Link(NamedTuple):
    ws: aiohttp.ClientWebSocketResponse
    writer: Writer


@asynccontextmanager
async def connect(url: str, me: bytes) -> AsyncGenerator[Link, None]:
    """Connect to the relay; from then on it knows where `me` is."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0) as ws,
    ):
        writer = Writer(ws.send_bytes)
        writer.frame(me, me, me, HELLO, b"")
        await ws.receive()
        yield Link(ws, writer)


def act(ready: Connection, url: str) -> None:
    """Run the agent in this process."""
    uvloop.run(_act(ready, url))


async def _act(ready: Connection, url: str) -> None:
    async def noop(value: Any) -> Any:
        return value

    actions = {"noop": noop}

    async def run(src: bytes, tag: bytes, body: memoryview) -> None:
        name, args, kwargs = pickle.loads(body)
        result = await actions[name](*args, **kwargs)
        link.writer.frame(src, AGENT, tag, RESPONSE, pickle.dumps(result, 5))

    async with connect(url, AGENT) as link:
        ready.send(None)
        running = set()
        async for message in link.ws:
            for frame in frames(message.data):
                task = asyncio.create_task(run(frame.src, frame.tag, frame.body))
                running.add(task)
                task.add_done_callback(running.discard)


async def call_many(url: str, plan: Plan, pids: dict[str, int]) -> Sample:
    """Call the agent as the plan says, and return what was measured."""
    pending: dict[bytes, asyncio.Future[Any]] = {}
    count = 0

    async def read() -> None:
        async for message in link.ws:
            for frame in frames(message.data):
                pending.pop(frame.tag).set_result(pickle.loads(frame.body))

    async def call(value: Any) -> Any:
        nonlocal count
        count += 1
        tag = count.to_bytes(16, "big")
        pending[tag] = future = asyncio.get_running_loop().create_future()
        request = pickle.dumps(("noop", (value,), {}), 5)
        link.writer.frame(AGENT, CLIENT, tag, REQUEST, request)
        return await future

    async with connect(url, CLIENT) as link:
        reading = asyncio.create_task(read())
        sample = await measure(call, plan, pids)
        reading.cancel()
    return sample
