"""A hosted exchange that counts its tasks for a test: SIGUSR1 writes how many."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

from academy.exchange.cloud.__main__ import main

TASKS = "TASKS_FILE"
"""Variable of the environment that says where to."""


def count(*_: object) -> None:
    tasks = [o for o in gc.get_objects() if isinstance(o, asyncio.Task)]
    path = Path(os.environ[TASKS])
    new = path.with_suffix(".new")
    new.write_text(str(sum(not task.done() for task in tasks)))
    new.rename(path)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, count)
    sys.exit(main())
