"""Asking schedulers before anything is submitted, and not more often than needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any

from academy.executors.base import AgentExecutor
from academy.manager.losses import in_thread
from academy.manager.request import LaunchRequest

logger = logging.getLogger("academy.manager")

PATIENCE = 5.0
"""Seconds that a scheduler has to say whether it would take a job."""

GOOD_FOR = 60.0
"""Seconds for which its consent holds for further launches of the same kind."""


class Consents:
    """What schedulers would take, as they have said a short while ago."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}
        self._asking: dict[tuple[str, str], asyncio.Lock] = {}

    async def ask(self, requests: Iterable[LaunchRequest]) -> None:
        """Ask about launches, each kind of them once.

        A scheduler that does not answer soon has no objection: it will be asked again
        when the job is submitted.

        Raises:
            ValueError: one of them would be refused, or never start; in its words.
        """
        kinds = {_kind_of(one): one for one in requests if _can_ask(one.executor)}
        if kinds:
            await asyncio.gather(*map(self._ask_once, kinds, kinds.values()))

    async def _ask_once(self, kind: tuple[str, str], request: LaunchRequest) -> None:
        clock = asyncio.get_running_loop().time
        async with self._asking.setdefault(kind, asyncio.Lock()):
            if self._until.get(kind, 0.0) < clock():
                await self._ask(request)
                self._until[kind] = clock() + GOOD_FOR

    async def _ask(self, request: LaunchRequest) -> None:
        executor, submit_kwargs = request.executor, request.submit_kwargs
        assert isinstance(executor, AgentExecutor)
        try:
            async with asyncio.timeout(PATIENCE):
                start = await in_thread(lambda: executor.ask_scheduler(**submit_kwargs))
        except ValueError:
            raise
        except TimeoutError:
            logger.warning(
                'the scheduler of "%s" does not answer within %.0f s whether it would '
                "take the job",
                request.executor_name,
                PATIENCE,
            )
        except Exception as error:
            logger.warning(
                'the scheduler of "%s" cannot be asked: %s',
                request.executor_name,
                error,
            )
        else:
            if start is not None:
                logger.info(
                    'a job of "%s" would start at %s', request.executor_name, start
                )


def _can_ask(executor: Executor | None) -> bool:
    return (
        isinstance(executor, AgentExecutor)
        and type(executor).ask_scheduler is not AgentExecutor.ask_scheduler
    )


def _kind_of(request: LaunchRequest) -> tuple[str, str]:
    wanted: list[tuple[str, Any]] = sorted(request.submit_kwargs.items())
    return request.executor_name, repr(wanted)
