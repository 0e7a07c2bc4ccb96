"""Peers that others know: the same calls through redis-server, and through NATS.

Broker, agent and client are each a process, as with the hosted exchange; neither keeps
anything on disk, answers twice-sent messages once, or knows who may talk to whom. What
is not installed is not measured.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from academy.socket import open_port, wait_connection
from benchmarks.calls import Plan, Sample, measure
from benchmarks.loops import LOOPS
from benchmarks.processes import background, run

_STARTS = 10.0
_MOST = 16
"""Connections of one client to Redis; each carries a command at a time."""


def missing(program: str, module: str) -> str | None:
    """Say what keeps a peer from being measured; None if nothing does."""
    if _program(program) is None:
        return f"there is no {program} on this machine"
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def _server(program: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """Run a server on a free port; yield its pid and the port."""
    path, port = _program(program), open_port()
    assert path is not None
    command = [path, *arguments, str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_connection("127.0.0.1", port, _STARTS)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


Role = Callable[[Connection, int], None]
Caller = Callable[[int, Plan, dict[str, int]], Awaitable[Sample]]


def _contest(
    server: int, port: int, act: Role, call: Caller, plan: Plan, loop: str
) -> Sample:
    plan = replace(plan, payloads=())  # neither broker takes the large ones as it comes
    with background(act, port) as (agent, _):
        return run(_call, call, port, plan, {"server": server, "agent": agent}, loop)


def _call(
    call: Caller, port: int, plan: Plan, pids: dict[str, int], loop: str
) -> Sample:
    sample: Sample = LOOPS[loop](call(port, plan, pids))
    return sample


# --- Redis: a list of requests, and one of responses for each client


def redis_lists(plan: Plan, loop: str) -> Sample:
    arguments = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--port")
    with _server("redis-server", *arguments) as (server, port):
        return _contest(server, port, _act_redis, _call_redis, plan, loop)


def _act_redis(ready: Connection, port: int) -> None:
    uvloop.run(_serve_redis(ready, port))


async def _serve_redis(ready: Connection, port: int) -> None:
    running: set[asyncio.Task[None]] = set()

    async def act(data: bytes) -> None:
        tag, reply_to, value = pickle.loads(data)
        await redis.rpush(reply_to, pickle.dumps((tag, value), 5))

    async with _redis(port) as redis:
        await redis.ping()
        ready.send(None)
        while True:
            task = asyncio.create_task(act(await _pop(redis, "requests")))
            running.add(task)
            task.add_done_callback(running.discard)


def _redis(port: int) -> Any:
    from redis.asyncio import BlockingConnectionPool, Redis

    pool = BlockingConnectionPool(_MOST, None, port=port, socket_timeout=None)
    return Redis.from_pool(pool)


async def _pop(redis: Any, key: str) -> bytes:
    _, data = await redis.blpop([key])
    assert isinstance(data, bytes)
    return data


async def _call_redis(port: int, plan: Plan, pids: dict[str, int]) -> Sample:
    pending: dict[int, asyncio.Future[Any]] = {}
    count = 0

    async def read() -> None:
        while True:
            tag, value = pickle.loads(await _pop(redis, "responses"))
            pending.pop(tag).set_result(value)

    async def call(value: Any) -> Any:
        nonlocal count
        count += 1
        future = pending[count] = asyncio.get_running_loop().create_future()
        request = pickle.dumps((count, "responses", value), 5)
        await redis.rpush("requests", request)
        return await future

    async with _redis(port) as redis:
        reading = asyncio.create_task(read())
        sample = await measure(call, plan, pids)
        reading.cancel()
        await asyncio.wait([reading])
    return sample


# --- NATS: its own requests and responses


def nats(plan: Plan, loop: str) -> Sample:
    with _server("nats-server", "-a", "127.0.0.1", "-p") as (server, port):
        return _contest(server, port, _act_nats, _call_nats, plan, loop)


def _act_nats(ready: Connection, port: int) -> None:
    uvloop.run(_serve_nats(ready, port))


async def _serve_nats(ready: Connection, port: int) -> None:
    import nats

    async def act(message: Any) -> None:
        await message.respond(pickle.dumps(pickle.loads(message.data), 5))

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    await client.subscribe("requests", cb=act)
    await client.flush()
    ready.send(None)
    await asyncio.Event().wait()


async def _call_nats(port: int, plan: Plan, pids: dict[str, int]) -> Sample:
    import nats

    async def call(value: Any) -> Any:
        request = pickle.dumps(value, 5)
        response = await client.request("requests", request, timeout=30)
        return pickle.loads(response.data)

    client = await nats.connect(f"nats://127.0.0.1:{port}")
    try:
        return await measure(call, plan, pids)
    finally:
        await client.close()
