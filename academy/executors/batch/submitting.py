"""Threads that submit jobs, as long as there are some to submit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Submitters:
    """Runs functions in a few threads, which end when there is nothing left to run.

    A program waits for them at its end, so what was accepted is still submitted.

    Args:
        limit: how many threads at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._queue: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()

    def add(self, function: Callable[[], None]) -> None:
        """Run a function, which raises nothing, in one of the threads."""
        with self._lock:
            self._queue.append(function)
            if len(self._threads) < self._limit:
                thread = threading.Thread(target=self._work, name="academy-submit")
                self._threads.add(thread)
                thread.start()

    def join(self) -> None:
        """Wait until there is nothing left to run."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads.discard(threading.current_thread())
                    return
                function = self._queue.popleft()
            function()
