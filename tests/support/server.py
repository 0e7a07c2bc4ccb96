"""A hosted exchange as a process that a test stops, kills and starts again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from academy.exchange import ExchangeClientConfig, HttpExchangeFactory
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.credentials import known_exchanges
from academy.exchange.cloud.security.auth import TokenAuthority
from academy.exchange.cloud.security.auth_store import FileAuthStore
from academy.exchange.cloud.security.keys import KeySet, with_new_key
from academy.exchange.cloud.security.revocations import Revocations
from academy.home import write_private

START_TIMEOUT = 60.0


def free_port() -> int:
    """Find a port that nobody has, nor is given by chance for a connection outward.

    One of the range that the kernel gives away might be in use when the server that
    listened on it starts again.
    """
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class ExchangeServer:
    """`python -m academy.exchange.cloud --config ...` on a port that it keeps.

    Args:
        folder: for its configuration, database and log.
        tls: speak https; proxies that look at what passes can make nothing of it.
        config: keys, and sections such as `limits={"max_message_bytes": 9}`; None is
            for what is not to be set.

    Attributes:
        environment: what it gets in addition to the environment of the test.
        module: what is run.
    """

    def __init__(self, folder: Path, *, tls: bool = False, **config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.database = folder / "exchange.db"
        self.config_file = folder / "exchange.toml"
        self.log = folder / "exchange.log"
        self.key_file = folder / "key"
        self.home = folder / "home"
        self.scheme = "https" if tls else "http"
        config = {
            "port": self.port,
            "tls": tls,
            "backend": {"path": str(self.database)},
            **config,
            "auth": {"key_file": str(self.key_file), **config.get("auth", {})},
        }
        sections = {k: v for k, v in config.items() if isinstance(v, dict)}
        keys = {k: v for k, v in config.items() if k not in sections}
        lines = []
        for name, section in {"": keys, **sections}.items():
            lines += [f"[{name}]"] if name else []
            lines += [
                f"{key} = {json.dumps(value, default=str)}"
                for key, value in section.items()
                if value is not None
            ]
        self.module = "academy.exchange.cloud"
        self.environment = {"ACADEMY_HOME": str(self.home)}
        self.config_file.write_text("\n".join(lines))
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint that it has left for clients; none without TLS."""
        facts = known_exchanges(self.home).get(self.url, {})
        return str(facts.get("fingerprint", ""))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def revocations(self) -> Revocations:
        return Revocations(FileAuthStore(self.key_file))

    @property
    def keys(self) -> KeySet:
        """Its keys as they are now; made if it was not started yet."""
        if not self.key_file.exists():
            write_private(self.key_file, with_new_key())
        keys = KeySet(FileAuthStore(self.key_file))
        keys.load(self.key_file.read_text())
        return keys

    @property
    def authority(self) -> TokenAuthority:
        return TokenAuthority(self.keys, self.revocations)

    def academy(self, *arguments: str, stdin: str = "", fails: bool = False) -> str:
        """Run `academy exchange` with its configuration; return what it says."""
        command = [str(Path(sys.executable).with_name("academy")), "exchange"]
        done = subprocess.run(
            [*command, *arguments, "--config", str(self.config_file)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | self.environment | {"COLUMNS": "200", "NO_COLOR": "1"},
        )
        assert (done.returncode != 0) == fails, done.stderr
        return (done.stderr if fails else done.stdout).strip()

    async def revoke(
        self,
        kind: Literal["user", "mailbox", "token"],
        name: str,
        namespace: str | None = None,
    ) -> None:
        """Make tokens void, as `academy exchange revoke` does."""
        authority = ExchangeServingConfig.from_toml(self.config_file).authority()
        assert isinstance(authority, TokenAuthority)
        try:
            await authority.revocations.add(kind, name, namespace)
        finally:
            await authority.close()

    def factory(self, port: int | None = None, **options: Any) -> HttpExchangeFactory:
        """Make a factory, at the port of a proxy if one is given."""
        url = f"{self.scheme}://127.0.0.1:{port or self.port}"
        options.setdefault("fingerprint", self.fingerprint)
        options.setdefault("token", self.authority.user_token("tester"))
        if heartbeat := options.pop("heartbeat", None):
            options["config"] = ExchangeClientConfig(heartbeat_interval=heartbeat)
        return HttpExchangeFactory(url, **options)

    def start(self, *arguments: str) -> None:
        """Start it and wait until it listens."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", self.module),
                    *("--config", str(self.config_file), *arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | self.environment,
            )
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_TIMEOUT, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        assert line.strip() == self.url, self.log.read_text()

    def shoot(self) -> None:
        """Send SIGKILL at once; `kill` or `restart` is to follow."""
        os.kill(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; return its exit code."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended by itself; return its exit code."""
        return self._end(None)

    def _end(self, number: signal.Signals | None) -> int:
        process, self.process = self.process, None
        assert process is not None
        if number is not None:
            process.send_signal(number)
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return code

    async def restart(self) -> None:
        """Kill it and start it again on what it has stored."""
        await asyncio.to_thread(self.kill)
        await asyncio.to_thread(self.start)

    @contextmanager
    def running(self) -> Iterator[None]:
        """End what was started before."""
        try:
            yield
        finally:
            self.__exit__()

    def __enter__(self) -> ExchangeServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None:
            self.kill()
