"""Times and names of nodes as schedulers write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

_MONTHS = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)
# `ctime`, with or without the day of the week, the seconds, and the year.
_CTIME = re.compile(
    r"(?:[A-Z][a-z]{2} )?\s*(?P<month>[A-Z][a-z]{2})\s+(?P<day>\d+)\s+"
    r"(?P<hour>\d+):(?P<minute>\d+)(?::(?P<second>\d+))?(?:\s+(?P<year>\d{4}))?"
)


def iso_time(text: str) -> datetime | None:
    """Read YYYY-MM-DDTHH:MM:SS of this machine's time zone; None if it is none."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


def c_time(text: str) -> datetime | None:
    """Read a time such as "Fri Nov 20 17:57:05 2026", in any locale.

    Without a year it is the last one, or at most a month from now.
    """
    match = _CTIME.match(text.strip())
    if match is None or match["month"] not in _MONTHS:
        return None
    now = datetime.now()
    year = int(match["year"] or now.year)
    month = 1 + _MONTHS.index(match["month"])
    day, hour, minute, second = (
        int(match[part] or 0) for part in ("day", "hour", "minute", "second")
    )
    try:
        time = datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None
    if not match["year"] and time > now + timedelta(days=31):
        time = time.replace(year=year - 1)
    return time.astimezone()


def seconds(duration: str) -> float | None:
    """Read [[D-]HH:]MM:SS, minutes if it is a number; None if there is no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", duration.strip())
    if match is None:
        return None
    parts = [float(part) for part in match[2].split(":")]
    if match[1] is not None:  # D-HH, D-HH:MM or D-HH:MM:SS.
        hours, minutes, rest = [*parts, 0.0, 0.0][:3]
    elif len(parts) == 1:
        hours, minutes, rest = 0.0, parts[0], 0.0
    else:
        hours, minutes, rest = [0.0, *parts][-3:]
    days = float(match[1] or 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def expand(hosts: str) -> tuple[str, ...]:
    """Write a list such as `n[01-03,7],login` out: n01, n02, n03, n7, login."""
    items = re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", hosts)
    return tuple(name for item in items for name in _expanded(item))


def _expanded(item: str) -> Iterator[str]:
    start, bracket, rest = item.partition("[")
    if not bracket:
        yield item
        return
    ranges, _, end = rest.partition("]")
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        for tail in _expanded(end):
            for number in numbers:
                yield f"{start}{number:0{len(first)}}{tail}"
