"""How fast the clients of a namespace may send."""

from __future__ import annotations

import logging
import math
import time

from academy.exception import RateExceededError
from academy.exchange.mailbox import Limits

logger = logging.getLogger(__name__)


class Rate:
    """What the clients of a namespace may send in a second, all together.

    There is a bucket for messages and one for bytes, which hold what may come in
    `burst_seconds`. They may be overdrawn, since what has come is taken: its sender
    then has to wait until that is paid for, behind those who have sent before.

    Invariants: `_messages` and `_bytes` are the times at which everything will be paid
    for, no earlier than when the bucket was full last. `_exceeded` says that somebody
    has had to wait since a bucket was half full.

    Args:
        limits: say how fast.
        name: of the namespace.

    Attributes:
        episodes: how often the namespace has begun to send too fast.
        waited: seconds that connections were not read because of it.
    """

    def __init__(self, limits: Limits, name: str) -> None:
        self.episodes = 0
        self.waited = 0.0
        self._limits = limits
        self._name = name
        self._per_message = _inverse(limits.messages_per_second)
        self._per_byte = _inverse(limits.bytes_per_second)
        self._burst = limits.burst_seconds
        self._messages = self._bytes = time.monotonic() - self._burst
        self._exceeded = False

    def take(self, messages: int, size: int) -> float:
        """Count what has come; return how many seconds its sender has to wait."""
        now = time.monotonic()
        full = now - self._burst
        self._messages = max(self._messages, full) + messages * self._per_message
        self._bytes = max(self._bytes, full) + size * self._per_byte
        debt = max(self._messages, self._bytes) - now
        if debt > 0:
            self._begin(debt)
        elif debt < -self._burst / 2:
            self._exceeded = False
        return debt

    def check(self) -> None:
        """Refuse what can be sent again.

        Raises:
            RateExceededError: what has come before is not paid for.
        """
        now = time.monotonic()
        for key, paid in (
            ("messages_per_second", self._messages),
            ("bytes_per_second", self._bytes),
        ):
            if paid > now:
                wait = math.ceil(paid - now)
                raise RateExceededError(key, getattr(self._limits, key), wait)

    def _begin(self, debt: float) -> None:
        if not self._exceeded:
            self._exceeded = True
            self.episodes += 1
            logger.warning(
                "namespace %s sends faster than it may: its clients wait, now for "
                "%.1f s",
                self._name,
                debt,
            )


def rate_of(limits: Limits, name: str) -> Rate | None:
    """Return the rate of a namespace, if it has one."""
    has_rate = limits.messages_per_second or limits.bytes_per_second
    return Rate(limits, name) if has_rate else None


def _inverse(per_second: float) -> float:
    return 1 / per_second if per_second else 0.0
