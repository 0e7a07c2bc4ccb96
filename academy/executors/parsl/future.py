"""Futures of tasks that may wait for an allocation for hours."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from threading import RLock
from typing import Any

logger = logging.getLogger(__name__)


class TaskFuture(Future[Any]):
    """A future that can be cancelled until there is a worker to begin its task.

    Parsl does not give tasks back. But as long as its executor waits for a first
    block, nobody can have begun one, and whoever gives up need not wait for the block.
    Should it come after all, its workers run tasks that nobody waits for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handing_over = RLock()
        # The Parsl executor that has the task, and its own future for it.
        self.engine: Any = None
        self.answer: Future[Any] | None = None

    def given_to(self, engine: Any) -> bool:
        """Note who has the task from now on; return whether anybody still wants it."""
        with self._handing_over:
            if self.cancelled():
                self.set_running_or_notify_cancel()
                return False
            self.engine = engine
            return True

    def cancel(self) -> bool:
        with self._handing_over:
            if self.engine is None or self.done():
                return super().cancel()
            if _has_workers(self.engine) or not super().cancel():
                return False
            self.set_running_or_notify_cancel()
            return True


def _has_workers(engine: Any) -> bool:
    """Tell whether workers are connected, as far as it can be told."""
    if not hasattr(engine, "connected_managers"):
        return True
    try:
        return bool(engine.connected_managers())
    except Exception as error:
        logger.debug("Parsl executor %s does not tell: %r", engine.label, error)
        return True
