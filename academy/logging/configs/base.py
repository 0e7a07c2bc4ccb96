"""What a logging set-up is."""

from __future__ import annotations

import difflib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self
from uuid import UUID, uuid4


class LogConfig(ABC):
    """A logging set-up that pickles, so that workers can log as the launcher asks.

    Use one with `academy.logging.helpers.log_context`, or give it to a Manager. To
    make your own kind, override `init_logging` and keep open files and handlers out
    of the attributes: they are made in the process that logs.

    Attributes:
        uuid: Names this set-up in every process. A pickled copy keeps it, so that a
            worker that receives it with each of its agents sets it up only once.
    """

    uuid: UUID

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        config = super().__new__(cls)
        # Here rather than in __init__, which subclasses forget to call, and past
        # __setattr__, which a frozen dataclass forbids.
        object.__setattr__(config, "uuid", uuid4())
        return config

    @abstractmethod
    def init_logging(self) -> Callable[[], None]:
        """Set logging up in this process, and return what undoes exactly that.

        Raises:
            OSError: A file cannot be written.
        """


def level_number(level: int | str) -> int:
    """Return the number of a log level given by number or name.

    Raises:
        ValueError: There is no such level; names the nearest one.
    """
    if isinstance(level, int):
        if level < 0:
            raise ValueError(f"A log level is not negative: {level}")
        return level
    known = logging.getLevelNamesMapping()
    number = known.get(level.strip().upper())
    if number is None:
        near = difflib.get_close_matches(level.strip().upper(), known, n=1, cutoff=0.5)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise ValueError(
            f'Unknown log level "{level}".{hint} Known levels: {", ".join(known)}.'
        )
    return number
