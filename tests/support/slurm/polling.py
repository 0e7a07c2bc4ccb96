"""Waiting for what nobody announces."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], what: str, timeout: float = 30.0) -> T:
    """Look until there is something to see, and return it.

    Schedulers tell their state to who asks, and call nobody. In a coroutine use
    `asyncio.to_thread`.

    Raises:
        TimeoutError: There was nothing in time; says what was waited for.
    """
    deadline = time.monotonic() + timeout
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}, and saw {seen!r}")
        time.sleep(0.02)
    return seen
