"""What runs on a worker that hosts many agents in one event loop."""

from __future__ import annotations

import asyncio
import traceback
from socket import gethostname
from typing import Any

from academy.agent import Agent, action, loop
from academy.launch import AgentInterruptedError, AgentSpec
from academy.launch.ending import portable_error
from academy.logging.helpers import log_context
from academy.runtime import Runtime


class EventLoopHost(Agent):
    """Runs agents in the event loop of its own worker.

    Args:
        patience: seconds without an agent after which it ends by itself, should
            whoever launched it be gone.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._hosted: set[Runtime[Any]] = set()
        self._ending = asyncio.Event()
        self._last_use = 0.0

    @action
    async def run(self, packed: bytes) -> Exception | None:
        """Run an agent to its end, and return what it failed of."""
        if self._ending.is_set():
            return _interrupted()
        try:
            spec = AgentSpec.unpack(packed)
            with log_context(spec.log_config):
                await self._serve(spec.runtime())
        except (Exception, SystemExit) as error:
            text = "".join(traceback.format_exception(error))
            failure = portable_error(error)
            failure.add_note(f"Traceback in the worker:\n{text}")
            return failure
        finally:
            self._last_use = asyncio.get_running_loop().time()
        return _interrupted() if self._ending.is_set() else None

    async def _serve(self, runtime: Runtime[Any]) -> None:
        self._hosted.add(runtime)
        try:
            await runtime.run_until_complete()
        finally:
            self._hosted.discard(runtime)

    @loop
    async def end_when_forgotten(self, shutdown: asyncio.Event) -> None:
        """Shut down when there has been nothing to do for long."""
        now = asyncio.get_running_loop().time
        self._last_use = now()
        while not shutdown.is_set():
            left = self._last_use + self.patience - now()
            if not self._hosted and left <= 0:
                self.agent_shutdown()
                return
            try:
                async with asyncio.timeout(max(left, self.patience / 10)):
                    await shutdown.wait()
            except TimeoutError:
                continue

    async def agent_on_shutdown(self) -> None:
        """Shut the agents down; the runtime then waits for their `run`."""
        self._ending.set()
        for runtime in self._hosted:
            runtime.signal_shutdown(expected=False)


def _interrupted() -> AgentInterruptedError:
    return AgentInterruptedError("the end of the host that it ran in", gethostname())
