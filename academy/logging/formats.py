"""How records look: a line for people, or a JSON object for programs."""

from __future__ import annotations

import json
import logging
import socket
from datetime import UTC, datetime
from typing import Any

# What every record has; the rest came with `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "entity",
    "message",
    "taskName",
}
_RESET = "\x1b[0m"
_COLORS = (
    (logging.ERROR, "\x1b[31m"),
    (logging.WARNING, "\x1b[33m"),
    (logging.INFO, "\x1b[32m"),
)
_FAINT = "\x1b[2m"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


class TextFormatter(logging.Formatter):
    """`[time] LEVEL (logger) entity > message`, with more on request.

    Args:
        color: Colour the level with ANSI sequences.
        extra: Append process, thread, source line and the `extra=` of the call.
    """

    def __init__(self, *, color: bool = False, extra: bool = False) -> None:
        super().__init__()
        self.color = color
        self.extra = extra

    def usesTime(self) -> bool:  # noqa: N802 (named by logging)
        return True

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        level = f"{record.levelname:<8}"
        if self.color:
            of_level = (c for least, c in _COLORS if record.levelno >= least)
            level = f"{next(of_level, _FAINT)}{level}{_RESET}"
        entity = getattr(record, "entity", None)
        line = (
            f"[{record.asctime}] {level} ({record.name}) "
            f"{f'{entity} > ' if entity else ''}{record.message}"
        )
        if self.extra:
            fields = {
                "pid": record.process,
                "thread": record.threadName,
                "source": f"{record.pathname}:{record.lineno}",
                **_extra(record),
            }
            line += "".join(f" {key}={value}" for key, value in fields.items())
        return line


class JSONFormatter(logging.Formatter):
    """One JSON object in one line per record, with all that is known about it.

    Args:
        attributes: of each record, beside those that every record has.
    """

    def __init__(self, *attributes: str) -> None:
        super().__init__()
        self.attributes = attributes
        self.host = socket.gethostname()

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "entity": getattr(record, "entity", None),
            "host": self.host,
            "pid": record.process,
            "thread": record.threadName,
            "source": f"{record.pathname}:{record.lineno}",
        }
        known = vars(record)
        fields |= {name: known.get(name) for name in self.attributes}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        extra = {k: v for k, v in _extra(record).items() if k not in self.attributes}
        if extra:
            fields["extra"] = {k: _plain(v) for k, v in extra.items()}
        return json.dumps(fields)


def _plain(value: Any) -> Any:
    """Return the value if JSON can say it, or else its repr."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value
