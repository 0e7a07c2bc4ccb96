"""How long a call may take."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

R = TypeVar("R")


def check_timeout(seconds: float | None) -> float | None:
    """Return a timeout unless it is none."""
    if seconds is not None and not seconds > 0:
        raise ValueError(f"A timeout is a positive number of seconds, not {seconds!r}.")
    return seconds


def chosen(seconds: float | None, default: float | None) -> float | None:
    """Return what was chosen, or the default; None is for ever."""
    if seconds is None:
        seconds = default
    return None if seconds == math.inf else seconds


async def timed(
    waiting: Awaitable[R], seconds: float | None, agent: object, action: str
) -> R:
    """Wait so long for something of an action.

    Raises:
        TimeoutError: it did not come in time.
    """
    if seconds is None:
        return await waiting
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await waiting
    except TimeoutError:
        if not limit.expired():  # the action has raised one of its own
            raise
        raise TimeoutError(
            f'{agent} did not answer the call of "{action}" within {seconds:g} s.'
        ) from None
