"""What the Globus Compute service accepts: sizes, and requests per second."""

from __future__ import annotations

import threading
import time
from collections import deque

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
    """Lets so many requests through in any window of time, and holds others up.

    The service allows 20 requests in 10 seconds; a few are left for the SDK's own.
    Source: https://globus-compute.readthedocs.io/en/latest/limits.html

    Args:
        requests: how many pass without waiting.
        window: seconds.
    """

    def __init__(self, requests: int = 15, window: float = 10.0) -> None:
        self._requests = requests
        self._window = window
        self._passed: deque[float] = deque()
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be made."""
        with self._lock:  # Whoever comes while another waits, waits behind it.
            if len(self._passed) == self._requests:
                oldest = self._passed.popleft()
                time.sleep(max(0.0, oldest + self._window - time.monotonic()))
            self._passed.append(time.monotonic())
