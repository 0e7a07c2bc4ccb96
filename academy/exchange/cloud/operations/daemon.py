"""A hosted exchange in the background: start it, find it again, stop it.

What is known of it lies in `exchange.json` under the Academy home (mode 0600).
"""

from __future__ import annotations

import select
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil

from academy.exception import ExchangeError
from academy.exchange.cloud.credentials import forget, known_exchanges, remember
from academy.home import get_academy_home, private_directory

START_TIMEOUT = 30.0
"""Seconds until the exchange has to listen."""

CLOSE_TIMEOUT = 15.0
"""Seconds beyond its `drain_seconds` until it has closed its store, or is killed."""


class DaemonError(ExchangeError):
    """An exchange cannot be started or stopped here."""


@dataclass(frozen=True)
class Daemon:
    """An exchange that was started in the background.

    Attributes:
        url: its address.
        pid: its process.
        node: the machine on which it was started.
        started: when, in seconds since 1970; tells it from others of the same pid.
        log: its log file.
        drain_seconds: that it may take to end in order.
        fingerprint: of its certificate, if clients pin that.
    """

    url: str
    pid: int
    node: str
    started: float
    log: str
    drain_seconds: float
    fingerprint: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine."""
        return self.node == gethostname()

    def process(self) -> psutil.Process | None:
        """Return its process, if it runs on this machine."""
        if not self.is_here:
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1
            alive = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


_FACTS = [field.name for field in fields(Daemon) if field.name != "url"]


def daemons() -> list[Daemon]:
    """Return the exchanges that were started and not stopped, on any machine.

    Those that have ended on this one without a word are forgotten.
    """
    found = []
    for url, facts in known_exchanges().items():
        if "pid" not in facts:
            continue  # it was not started by us
        daemon = _daemon(url, facts)
        if daemon.is_here and daemon.process() is None:
            forget(url)
        else:
            found.append(daemon)
    return found


def find(url: str | None = None) -> Daemon:
    """Return the exchange at an address, or the only one there is.

    Raises:
        DaemonError: there is none, or more than one.
    """
    known = daemons()
    urls = ", ".join(daemon.url for daemon in known)
    if url is not None:
        for daemon in known:
            if daemon.url == url.rstrip("/"):
                return daemon
        raise DaemonError(f"No exchange at {url} was started. Known: {urls or 'none'}.")
    if not known:
        raise DaemonError("No exchange is running. Start one: academy exchange start")
    if len(known) > 1:
        raise DaemonError(f"Several exchanges are running, so name one of: {urls}.")
    return known[0]


def start(config_file: Path | None, drain_seconds: float) -> Daemon:
    """Start an exchange that goes on when this program ends.

    Args:
        config_file: what is chosen; the environment of this program counts as well.
        drain_seconds: that it may take to end in order, by what is chosen.

    Raises:
        DaemonError: it did not start; says why, in its own words.
    """
    log = private_directory(get_academy_home()) / "exchange.log"
    command = [sys.executable, "-m", "academy.exchange.cloud"]
    if config_file is not None:
        command += ["--config", str(config_file)]
    with log.open("a") as output:
        begun = log.stat().st_size
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,  # Ctrl-C and logout are not meant for it
        )
    url = _announced(process)
    if url is None:
        with log.open() as written:
            written.seek(begun)
            lines = written.read().strip().splitlines()
        reason = lines[-1] if lines else "The exchange does not start."
        raise DaemonError(f"{reason} (log: {log})")
    started = psutil.Process(process.pid).create_time()
    facts = {
        "pid": process.pid,
        "node": gethostname(),
        "started": started,
        "log": str(log),
        "drain_seconds": drain_seconds,
    }
    remember(url, **facts)
    return _daemon(url, known_exchanges()[url])


def _daemon(url: str, facts: dict[str, Any]) -> Daemon:
    return Daemon(url, **{key: facts[key] for key in _FACTS if key in facts})


def _announced(process: subprocess.Popen[str]) -> str | None:
    """Return the address that the exchange prints when it listens."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT)
    url = process.stdout.readline().strip() if ready else ""
    process.stdout.close()
    if not url:
        process.kill()
        process.wait()
        return None
    process.returncode = 0  # it goes on, and is not waited for here
    return url


def stop(daemon: Daemon, close_timeout: float = CLOSE_TIMEOUT) -> None:
    """Stop an exchange; what its mailboxes hold stays in its store.

    It is killed if it takes longer than it may to end in order, and `close_timeout`
    seconds more.

    Raises:
        DaemonError: it runs on another machine.
    """
    if not daemon.is_here:
        raise DaemonError(
            f"The exchange at {daemon.url} runs on {daemon.node}: stop it there."
        )
    process = daemon.process()
    if process is not None:
        process.terminate()
        try:
            process.wait(daemon.drain_seconds + close_timeout)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()
    forget(daemon.url)
