"""A hosted exchange for as long as a `with` block runs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from academy.exception import ExchangeConnectionError
from academy.exchange.cloud.client import HttpExchangeFactory
from academy.exchange.cloud.credentials import known_exchanges
from academy.exchange.cloud.operations.settings import PREFIX
from academy.home import private_directory, write_private


@contextmanager
def spawn_http_exchange(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    level: int | str = logging.WARNING,
    timeout: float = 30,
    database: str | Path | None = None,
    insecure: bool = False,
    tls: bool = True,
) -> Generator[HttpExchangeFactory, None, None]:
    """Run an exchange in a process of its own; yield a factory of its clients.

    The process ends with the block, and with this process however that ends.

    Args:
        host: address to listen on; "0.0.0.0" for all.
        port: port to listen on; 0 for any free one.
        level: what the exchange logs, to standard error.
        timeout: seconds that it may take to start.
        database: SQLite file to keep mailboxes in. Default: in memory.
        insecure: ask clients for no token, and serve http.
        tls: serve https; the factory pins the certificate.

    Raises:
        ExchangeConnectionError: it did not start; the reason is what it printed.
    """
    with tempfile.TemporaryDirectory(prefix="academy-exchange-") as folder:
        home = private_directory(Path(folder) / "home")
        backend = {"kind": "memory"} if database is None else {"path": str(database)}
        lines = [f"host = {json.dumps(host)}", f"port = {port}"]
        lines += [f"insecure = {json.dumps(insecure)}"]
        lines += [f"tls = {json.dumps(tls)}"]
        lines += ["[logger]", f"level = {json.dumps(level)}", "[backend]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in backend.items()]
        config = write_private(Path(folder) / "exchange.toml", "\n".join(lines))
        command = [sys.executable, "-m", "academy.exchange.cloud"]
        process = subprocess.Popen(
            # It tidies up by itself if we cannot: its key must not stay.
            [
                *(*command, "--config", str(config)),
                *("--until-parent-ends", "--remove", folder),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
            env=_environment(home),
        )
        try:
            url = _first_line(process, timeout)
            if not url:
                address = f"{host}:{port}"
                raise ExchangeConnectionError(address, "its process did not start")
            # A token and a fingerprint, unless they are not needed.
            yield HttpExchangeFactory(url, **known_exchanges(home).get(url, {}))
        finally:
            _end(process)


def _environment(home: Path) -> dict[str, str]:
    """Return ours without what is meant for an exchange that an operator runs."""
    ours = {k: v for k, v in os.environ.items() if not k.upper().startswith(PREFIX)}
    return {**ours, "ACADEMY_HOME": str(home)}


def _first_line(process: subprocess.Popen[str], timeout: float) -> str:
    assert process.stdout is not None
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline().strip()
    finally:
        watchdog.cancel()
        watchdog.join()


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
