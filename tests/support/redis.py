"""A real redis-server that a test stops, kills and starts again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from academy.exchange.store.redis import RedisStore
from academy.exchange.store.redis_leases import RedisLeases
from academy.exchange.store.redis_server import RedisServer
from tests.support.server import free_port

START_TIMEOUT = 30.0


def start_with_us(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does, however that ends."""
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


class Redis:
    """`redis-server` on a port that it keeps; it ends with this process.

    Args:
        folder: for its data and log.
        options: of redis-server, for example `maxmemory="4mb"`.
    """

    def __init__(self, folder: Path, **options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.options = {"appendonly": "yes", "appendfsync": "always", **options}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "redis.log").read_text()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "logfile": "redis.log",
            "save": "",
            "repl-diskless-sync-delay": "0",
            "daemonize": "no",
            **self.options,
        }
        command = ["redis-server"]
        for name, value in options.items():
            command += [f"--{name}", value]
        self.process = start_with_us(command)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._ask().startswith((b"+PONG", b"-NOAUTH")):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def _ask(self) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).strip()
        except OSError:
            return b""

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def __enter__(self) -> Redis:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None:
            self.kill()


@asynccontextmanager
async def redis_server(url: str, **options: Any) -> AsyncIterator[RedisServer]:
    """Connect to a Redis."""
    server = RedisServer(url, **options)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def redis_store(url: str, namespace: str = "test") -> AsyncIterator[RedisStore]:
    """Open the store of a namespace that is free."""
    async with redis_server(url) as server:
        store = await take(server, namespace)
        await store.open()
        yield store
        await store.close()


async def take(
    server: RedisServer,
    namespace: str = "test",
    owner: str = "test",
    seconds: float = 60,
) -> RedisStore:
    """Take a namespace, as an exchange server does; return its store."""
    token, holder = await RedisLeases(server, owner, seconds).take(namespace)
    assert token, f"{holder} has {namespace}"
    return RedisStore(server, namespace, token)
