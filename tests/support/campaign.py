"""A program that launches an agent, waits, and is interrupted by its test.

Arguments: the exchange's address, the path of a diary, and where the agent is to run.
Prints `ready` once it does.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from academy.exchange.cloud import HttpExchangeFactory
from academy.executors.event_loop import EventLoopExecutor
from academy.manager import Manager
from tests.support.launchables import Diary


def executor(kind: str) -> Executor | None:
    if kind == "event-loop":
        return None
    pool = ProcessPoolExecutor(1)
    return EventLoopExecutor(pool) if kind == "hosted" else pool


async def campaign(factory: HttpExchangeFactory, path: Path, kind: str) -> None:
    async with await Manager.from_exchange_factory(
        factory, {"chosen": executor(kind)}, default_executor="chosen"
    ) as manager:
        diary = await manager.launch(Diary, args=(path,))
        print("ready", await diary.pid(), flush=True)
        await manager.wait([diary])


if __name__ == "__main__":
    # What is started in the background of a shell ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        url, path, kind = sys.argv[1:]
        asyncio.run(campaign(HttpExchangeFactory(url), Path(path), kind))
    except KeyboardInterrupt:
        sys.exit("interrupted")
