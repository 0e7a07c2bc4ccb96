"""Several exchange servers over one Redis, behind a real HAProxy or nginx."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from academy.exchange.cloud.ownership import Peer
from academy.exchange.cloud.security.certificate import Certificate
from academy.exchange.store.redis_leases import RedisLeases
from academy.exchange.store.redis_server import RedisServer
from tests.support.redis import START_TIMEOUT, Redis, start_with_us
from tests.support.server import ExchangeServer, free_port

CONFIGS = Path(__file__).parents[2] / "configs" / "several-servers"


def exchange_servers(
    folder: Path,
    redis: Redis,
    count: int = 3,
    heartbeat_interval: float = 10,
    tls: bool = False,
    config: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    **backend: Any,
) -> list[ExchangeServer]:
    """Make exchange servers over one Redis, with one key and one certificate.

    Args:
        folder: of their files.
        redis: where they keep what they share.
        count: how many of them.
        heartbeat_interval: of the servers.
        tls: whether they speak https.
        config: more sections of the configuration.
        backend: options of the configuration's section of this name.
    """
    key_file = folder / "key"
    backend = {"kind": "redis", "url": redis.url, "lease_seconds": 1, **backend}
    servers = [
        ExchangeServer(
            folder / str(number),
            tls=tls,
            heartbeat_interval=heartbeat_interval,
            backend=backend,
            **config | {"auth": {"key_file": str(key_file), **config.get("auth", {})}},
        )
        for number in range(count)
    ]
    certificate = Certificate.made_here(folder / "exchange.pem")
    for server in servers:
        server.key_file = key_file
        server.home.mkdir(mode=0o700)
        shutil.copy(certificate.certfile, server.home)
    _ = servers[0].authority  # makes the key that all of them read
    return servers


@contextmanager
def relay_and_owner(
    folder: Path, redis: Redis, *namespaces: str, **options: Any
) -> Iterator[tuple[ExchangeServer, ExchangeServer]]:
    """Run a server that relays all of these namespaces to another one."""
    relay, owner = exchange_servers(folder, redis, 2, **options)

    async def open_namespaces() -> None:
        for namespace in namespaces:
            token = owner.authority.user_token("tester", namespace)
            async with await owner.factory(token=token).create_user_client():
                pass

    with owner, ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, open_namespaces()).result()
        with relay:
            yield relay, owner
            for namespace in namespaces:
                opened = f"namespace {namespace} is open"
                assert opened in owner.log.read_text()
                assert opened not in relay.log.read_text()


class ExchangeServers:
    """Exchange servers over one Redis, while they run; see `exchange_servers`."""

    def __init__(
        self, folder: Path, redis: Redis, *arguments: Any, **options: Any
    ) -> None:
        self.all = exchange_servers(folder, redis, *arguments, **options)
        self._server = RedisServer(redis.url)
        self._leases = RedisLeases(self._server, "the test", 1)

    def __getitem__(self, number: int) -> ExchangeServer:
        return self.all[number]

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(asyncio.to_thread(one.start) for one in self.all))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for one in self.all:
            one.__exit__()
        await self._server.close()

    async def owner(self, namespace: str = "default") -> ExchangeServer | None:
        """Return the server that has a namespace, if any has it."""
        owner = await self._leases.owner_of(namespace)
        if owner is None:
            return None
        url = Peer.unpacked(owner).url
        return next(one for one in self.all if one.url == url)

    async def owner_but(self, other: ExchangeServer) -> ExchangeServer:
        """Wait until a namespace has another owner."""
        async with asyncio.timeout(30):
            while (owner := await self.owner()) in (None, other):
                await asyncio.sleep(0.02)
        assert owner is not None
        return owner


class Balancer:
    """HAProxy or nginx with the configuration that comes with us, on a port here.

    Args:
        kind: "haproxy" or "nginx".
        folder: of its files.
        servers: what is behind it.
    """

    def __init__(self, kind: str, folder: Path, servers: list[ExchangeServer]) -> None:
        folder.mkdir(parents=True)
        self.port = free_port()
        [config] = CONFIGS.glob(f"{kind}.c*")
        text = config.read_text()
        for number, server in enumerate(servers, 1):
            text = text.replace(f"exchange{number}:8700", f"127.0.0.1:{server.port}")
        text = re.sub(r"\b(bind|listen) :?8700", rf"\1 127.0.0.1:{self.port}", text)
        if servers[0].scheme == "https":
            text = text.replace("/etc/academy", str(servers[0].home))
        else:
            text = re.sub(" check-ssl verify none| ssl(?=;)|ssl_cert.*;", "", text)
            text = text.replace("https:", "http:")
        file = folder / config.name
        file.write_text(text)
        self.check, self._command = (
            (["haproxy", "-c", "-f", str(file)], ["haproxy", "-db", "-f", str(file)])
            if kind == "haproxy"
            else _nginx(folder, file)
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Balancer:
        self._process = start_with_us(self._command)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listens():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


def _nginx(folder: Path, file: Path) -> tuple[list[str], list[str]]:
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder}/{name}; " for name in names)
    file.write_text(file.read_text().replace("http {", f"http {{ {paths}", 1))
    options = f"daemon off; pid {folder}/pid; error_log {folder}/log;"
    command = ["nginx", "-c", str(file), "-e", f"{folder}/log", "-g", options]
    return [*command, "-t"], command
