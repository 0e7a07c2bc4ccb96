"""Which agent or user a log record belongs to."""

from __future__ import annotations

import logging
from contextvars import ContextVar

current_entity: ContextVar[str | None] = ContextVar("current_entity", default=None)
"""The agent or user whose code runs in this context, as it is to appear in logs."""


class EntityFilter(logging.Filter):
    """Gives each record an `entity`; a handler's format can use `%(entity)s`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.__dict__.setdefault("entity", current_entity.get())
        return True
