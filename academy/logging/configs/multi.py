"""Several logging set-ups at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from academy.logging.configs.base import LogConfig
from academy.logging.helpers import log_context


class MultiLogging(LogConfig):
    """Log in several ways at once.

    Args:
        configs: The set-ups. One of them that is in use by itself already is shared.
    """

    def __init__(self, configs: Iterable[LogConfig]) -> None:
        self.configs = tuple(configs)

    def init_logging(self) -> Callable[[], None]:
        with ExitStack() as stack:
            for config in self.configs:
                stack.enter_context(log_context(config))
            return stack.pop_all().close
