"""What the Globus Compute service accepts: sizes, and requests per second."""

from __future__ import annotations

import math
import threading
import time

from academy.exception import AcademyError

MAX_REQUEST_BYTES = 10_000_000
"""Of one submission, however many tasks it has.

Source: https://globus-compute.readthedocs.io/en/latest/limits.html
"""

MAX_REQUEST_TASKS = 128
"""Of one submission; what the SDK puts into one."""

MAX_RESULT_BYTES = 10 * 1024 * 1024
"""Of what one task returns.

Source: https://globus-compute.readthedocs.io/en/latest/limits.html
"""

# Data goes as Base64 in lines of 76 characters, each with an end that JSON writes as
# two; around them come names of functions and versions.
_LINE_BYTES = 57
_ENCODED_LINE_BYTES = 78
_AROUND_TASK = 512
AROUND_REQUEST = 4096
"""Bytes of a request besides its tasks and configuration."""


class PayloadTooLargeError(AcademyError, ValueError):
    """An agent and its arguments are more than one submission may be.

    Attributes:
        size: bytes of the submission.
        limit: bytes that it may have.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"The agent with its arguments would be a submission of {self.size:,} "
            f"bytes to Globus Compute, which takes {self.limit:,} (encoding adds more "
            "than a third). Launch it without its data, and send them in an action or "
            "let it read them from a file."
        )


def encoded_size(packed: bytes) -> int:
    """Return how many bytes of a request a packed call becomes."""
    lines = -(-len(packed) // _LINE_BYTES)
    return lines * _ENCODED_LINE_BYTES + _AROUND_TASK


class Pace:
    """Lets some requests through at once, and further ones at a steady rate.

    The service allows 20 requests in any 10 seconds, and the SDK has a few of its own.
    Source: https://globus-compute.readthedocs.io/en/latest/limits.html

    Args:
        burst: how many pass at once, when there were none for long.
        period: seconds in which one more may pass.
    """

    def __init__(self, burst: int = 8, period: float = 1.0) -> None:
        self._burst = burst
        self._period = period
        self._lock = threading.Lock()
        # When the last request had its turn, or will have it.
        self._turn = -math.inf

    def wait(self) -> None:
        """Return when the next request may be made."""
        with self._lock:
            now = time.monotonic()
            earliest = now - self._burst * self._period
            self._turn = max(self._turn, earliest) + self._period
            pause = self._turn - now
        if pause > 0:
            time.sleep(pause)
