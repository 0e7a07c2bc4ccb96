"""A RabbitMQ of our own, on the loopback interface, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from pathlib import Path

import pika

from academy.socket import open_port
from tests.support.slurm.daemons import Daemons
from tests.support.slurm.polling import until

# Debian's command of this name changes to a user of its own.
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
disk_free_limit.absolute = 50MB
"""


def missing() -> str | None:
    """Say what keeps RabbitMQ from running here, if anything does."""
    if SERVER.exists() and shutil.which("erl"):
        return None
    return "no RabbitMQ here; on Debian, `make test` as root installs it"


class RabbitMQ:
    """A broker with a name server, a cookie and files of its own.

    Args:
        directory: for all its files; it is made.
        daemons: start it, and end it.

    Attributes:
        port: where it listens.
        url: where clients connect to.
    """

    def __init__(self, directory: Path, daemons: Daemons) -> None:
        self._directory = directory
        self._daemons = daemons
        self.port = open_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def begin(self) -> None:
        """Start it; `wait` until it is there."""
        self._directory.mkdir()
        (self._directory / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port))
        (self._directory / "enabled_plugins").write_text("[].")
        settings = (f"{k}={v}" for k, v in self._environment().items())
        self._daemons.start("rabbitmq", "env", *settings, SERVER)

    def wait(self) -> None:
        """Wait until it answers."""
        until(self._answers, "RabbitMQ", timeout=60)

    def _environment(self) -> dict[str, str]:
        here = self._directory
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(here),
            "RABBITMQ_HOME_DIR": str(here),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"rabbit{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(here / "mnesia"),
            "RABBITMQ_LOG_BASE": str(here / "log"),
            "RABBITMQ_PID_FILE": str(here / "rabbitmq.pid"),
            "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "enabled_plugins"),
            "RABBITMQ_DIST_PORT": str(open_port()),
            "ERL_EPMD_PORT": str(open_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # It has little to do, and is not to be busy with waiting.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +S 1:1",
        }

    def _answers(self) -> bool:
        self._daemons.check()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            with contextlib.suppress(pika.exceptions.AMQPError):
                pika.BlockingConnection(pika.URLParameters(self.url)).close()
                return True
        return False
