"""Walltimes and amounts of memory, in the spellings that schedulers' users write."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from numbers import Real
from typing import Any

WALLTIMES = (
    '90 (minutes), "01:30:00", "1-12:00:00" (days first), "90m", "1h30m" or "2d"'
)
MEMORIES = '16 (GB), "16G", "64000M" or "1T"'

_CLOCK = re.compile(r"(?:(\d{1,9})-)?(\d{1,9}):(\d\d):(\d\d)")
_DAYS = re.compile(r"(\d{1,9})-(\d{1,9})(?::(\d\d))?")
_WORDS = re.compile(
    r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?:in)?)?(?:(\d{1,9})s)?"
)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt])i?b?")
_TWO_PARTS = re.compile(r"\d+:\d+")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")

_SECONDS = (86400, 3600, 60, 1)
_GB = {"k": 1024**-2, "m": 1024**-1, "g": 1, "t": 1024}


def parse_walltime(value: Any) -> str:
    """Return a walltime as "HH:MM:00", where hours may be more than 24.

    Seconds are rounded up to a whole minute, as Slurm and LSF count minutes, and Parsl
    would make "00:00:30" none at all, which is no limit.

    Args:
        value: Minutes as a number, a timedelta, or a string with units or colons.

    Raises:
        ValueError: Says what is accepted.
    """
    minutes = math.ceil(_seconds(value) / 60)
    if minutes <= 0:
        raise ValueError(f"must be longer than nothing, not {value!r}")
    return f"{minutes // 60:02}:{minutes % 60:02}:00"


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        return _seconds_of(value.strip().lower(), value)
    if is_number(value):
        # Or what is 1.1 * 60 to a computer would be a minute more.
        return round(float(value) * 60, 6)
    raise ValueError(f"must be like {WALLTIMES}, not {value!r}")


def _seconds_of(text: str, value: str) -> float:
    if found := _CLOCK.fullmatch(text) or _DAYS.fullmatch(text):
        parts = (*found.groups(default="0"), "0")[:4]
        if int(parts[2]) > 59 or int(parts[3]) > 59:
            raise ValueError(f"has minutes or seconds above 59: {value!r}")
    elif text and (found := _WORDS.fullmatch(text)):
        parts = found.groups(default="0")
    elif _TWO_PARTS.fullmatch(text):
        # Slurm and PBS read minutes and seconds, LSF reads hours and minutes.
        raise ValueError(
            f"may be hours and minutes or minutes and seconds: write {text + ':00'!r} "
            f"or {'00:' + text!r} instead of {value!r}"
        )
    elif _DIGITS.fullmatch(text):
        # Slurm reads minutes, PBS reads seconds.
        raise ValueError(
            f'has no unit: write "{text}m" or "{text}s" instead of {value!r}'
        )
    else:
        raise ValueError(f"must be like {WALLTIMES}, not {value!r}")
    return sum(int(n) * unit for n, unit in zip(parts, _SECONDS, strict=True))


def parse_memory(value: Any) -> float:
    """Return an amount of memory in GB, of 1024 MB as schedulers count them.

    Args:
        value: GB as a number, or a string with a unit.

    Raises:
        ValueError: Says what is accepted.
    """
    if is_number(value):
        memory = float(value)
    elif isinstance(value, str) and (found := _SIZE.fullmatch(value.strip().lower())):
        memory = float(found[1]) * _GB[found[2]]
    elif isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        raise ValueError(
            f'has no unit: write "{value.strip()}G" or "{value.strip()}M" instead of '
            f"{value!r}"
        )
    else:
        raise ValueError(f"must be like {MEMORIES}, not {value!r}")
    if memory <= 0:
        raise ValueError(f"must be more than nothing, not {value!r}")
    return memory


def megabytes(memory_gb: float) -> int:
    """Return GB in whole MB, never less than asked for."""
    return math.ceil(round(memory_gb * 1024, 6))


def is_number(value: Any) -> bool:
    """Tell whether it is a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
