"""What an exchange logs: who it was about, as text or JSON, and never without end."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

from academy.logging.formats import JSONFormatter

if TYPE_CHECKING:
    from academy.exchange.cloud.config import LoggerConfig
    from academy.exchange.cloud.security.auth import Credentials

current_client: ContextVar[Credentials | None] = ContextVar(
    "current_client", default=None
)
"""Whose connection or request this context works for."""

OF_ALL = ("academy.exchange.turns", "academy.exchange.store")
"""Loggers of what works for all clients of a namespace."""
BURST = 100
"""Records of one kind, from WARNING on, that may come at once."""
PER_SECOND = 1.0
"""How many of them may follow."""


class ClientFilter(logging.Filter):
    """Gives each record the `namespace` and the `client` that it is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        by = current_client.get()
        # A turn of the broker is begun by one client and works for all.
        of_all = record.name.startswith(OF_ALL)
        record.namespace = None if by is None else by.namespace
        record.client = None if by is None or of_all else by.subject
        return True


class Throttle(logging.Filter):
    """Lets so many warnings of a kind through, so that no client can fill a disk.

    What was left out is counted in the next one of its kind. A kind is a line of
    source, so that there are only as many as the program has.
    """

    def __init__(self) -> None:
        super().__init__()
        # Per kind: what may come now, when that was reckoned, and what was left out.
        self._kinds: dict[tuple[str, int], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.pathname, record.lineno)
        room, since, left_out = self._kinds.get(kind, (BURST, record.created, 0))
        room = min(BURST, room + (record.created - since) * PER_SECOND)
        if room < 1:
            self._kinds[kind] = room, record.created, left_out + 1
            return False
        self._kinds[kind] = room - 1, record.created, 0
        if left_out:
            record.msg = f"{record.getMessage()} (and {left_out} like it, left out)"
            record.args = ()
        return True


def set_up_logging(config: LoggerConfig) -> None:
    """Log to standard error as configured, for as long as this process lives."""
    handler = logging.StreamHandler()
    handler.addFilter(ClientFilter())
    handler.addFilter(Throttle())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    json = JSONFormatter("namespace", "client")
    handler.setFormatter(json if config.format == "json" else text)
    logging.basicConfig(level=config.level, handlers=[handler])
