"""Many agents in the event loop of one worker of any other executor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from datetime import datetime
from typing import Any

from academy.executors import base
from academy.executors.event_loop.hosts import HostGroup, Hosting
from academy.launch import AgentSpec, run_agent
from academy.scheduler.job import JobInfo

logger = logging.getLogger(__name__)


class EventLoopExecutor(base.AgentExecutor):
    """Runs many agents in each worker of another executor, in its event loop.

    Agents that mostly wait share a core, and one connection to the exchange. Those
    that compute for long without `await` hold their neighbours up.

    On a worker runs a host, itself an agent, which is launched when no host of the
    same exchange and `submit_kwargs` has a free place. When a host dies, exactly the
    futures of its agents fail.

    Args:
        inner: where hosts run; this executor owns it from now on.
        agents_per_worker: how many agents share a worker.
        idle_timeout: seconds that a host without agents waits for another one.
    """

    def __init__(
        self,
        inner: Executor,
        agents_per_worker: int = 100,
        *,
        idle_timeout: float = 10.0,
    ) -> None:
        if agents_per_worker < 1:
            raise ValueError(
                f"agents_per_worker is at least 1; it was {agents_per_worker}."
            )
        self._hosting = Hosting(inner, agents_per_worker, idle_timeout)
        self._lock = threading.Lock()
        self._closed = False
        self._relays: _Relays | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r}, {self.agents_per_worker})"

    @property
    def inner(self) -> Executor:
        """Where the hosts run."""
        return self._hosting.inner

    @property
    def agents_per_worker(self) -> int:
        """How many agents share a worker."""
        return self._hosting.agents_per_worker

    @property
    def max_workers(self) -> int | None:
        workers = base.max_workers(self.inner)
        return None if workers is None else workers * self.agents_per_worker

    def validate(self, **submit_kwargs: Any) -> None:
        base.validate(self.inner, submit_kwargs)

    def preview(self, **submit_kwargs: Any) -> str:
        return (
            base.preview(self.inner, submit_kwargs).rstrip("\n")
            + f"\nUp to {self.agents_per_worker} agents run in each worker.\n"
        )

    def ask_scheduler(self, **submit_kwargs: Any) -> datetime | None:
        if not isinstance(self.inner, base.AgentExecutor):
            return None
        return self.inner.ask_scheduler(**submit_kwargs)

    def job(self, future: Future[Any]) -> JobInfo | None:
        host = self._hosting.on_hosts.get(future)
        if host is None or not isinstance(self.inner, base.AgentExecutor):
            return None
        return self.inner.job(host)

    def submit(self, fn: Any, /, *args: Any, **submit_kwargs: Any) -> Future[Any]:
        if fn is not run_agent or len(args) != 1 or not isinstance(args[0], bytes):
            raise TypeError(
                f"EventLoopExecutor runs the agents of a Manager only, not {fn!r}: "
                "submit that to the executor inside of it."
            )
        self.validate(**submit_kwargs)
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"Cannot submit: {self!r} has been shut down.")
            if self._relays is None:
                self._begin()
            assert self._relays is not None
            self._relays.add(future, args[0], submit_kwargs)
        return future

    def _begin(self) -> None:
        ready = threading.Event()
        # A program that forgets to shut down may end nevertheless.
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="academy-event-loop", daemon=True
        )
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._relays = relays = _Relays(self, runner.get_loop())
            ready.set()
            runner.run(relays.run())
        try:
            self.inner.shutdown(wait=True, cancel_futures=relays.hurry)
        except Exception as error:
            self._failure = error
            logger.error("%r did not shut down", self.inner, exc_info=error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            relays = self._relays
        if relays is None:
            self.inner.shutdown(wait=wait, cancel_futures=cancel_futures)
            return
        relays.stop(cancel_futures)
        if wait and self._thread is not None:
            self._thread.join()
            if self._failure is not None:
                raise self._failure


class _Relays:
    """What goes on in the event loop of the executor's own thread."""

    def __init__(
        self, executor: EventLoopExecutor, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.hurry = False
        self._executor = executor
        self._loop = loop
        self._stopped = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._groups: dict[tuple[bytes, bytes], HostGroup] = {}

    # --- from other threads

    def add(
        self, future: Future[Any], packed: bytes, submit_kwargs: Mapping[str, Any]
    ) -> None:
        """Have an agent run; its end becomes the end of the future."""
        self._loop.call_soon_threadsafe(self._add, future, packed, submit_kwargs)

    def stop(self, hurry: bool) -> None:
        """Let `run` end when all agents have, or in a hurry now."""
        with contextlib.suppress(RuntimeError):  # it has ended, and its loop too
            self._loop.call_soon_threadsafe(self._stop, hurry)

    # --- in the loop

    async def run(self) -> None:
        """Relay until told to stop, then end all hosts."""
        await self._stopped.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(group.close() for group in self._groups.values()))

    def _stop(self, hurry: bool) -> None:
        self._stopped.set()
        if hurry:
            self.hurry = True
            for task in self._tasks:
                task.cancel()

    def _add(
        self, future: Future[Any], packed: bytes, submit_kwargs: Mapping[str, Any]
    ) -> None:
        task = self._loop.create_task(self._relay(future, packed, submit_kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def cancelled(future: Future[Any]) -> None:
            if future.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(task.cancel)

        future.add_done_callback(cancelled)

    async def _relay(
        self, future: Future[Any], packed: bytes, submit_kwargs: Mapping[str, Any]
    ) -> None:
        failure: BaseException | None
        try:
            group = self._group(AgentSpec.unpack(packed), submit_kwargs)
            failure = await group.run(future, packed)
        except asyncio.CancelledError:
            failure = BrokenExecutor(
                f"The agent was cut off: {self._executor!r} was shut down without "
                "waiting for it."
            )
        except Exception as error:
            failure = error
        if not future.running() and not future.set_running_or_notify_cancel():
            return
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)

    def _group(self, spec: AgentSpec, submit_kwargs: Mapping[str, Any]) -> HostGroup:
        factory = spec.exchange_factory
        key = pickle.dumps(factory), pickle.dumps(sorted(submit_kwargs.items()))
        if key not in self._groups:
            self._groups[key] = HostGroup(
                self._executor._hosting,
                factory.on_behalf_of(spec.registration),
                submit_kwargs,
            )
        return self._groups[key]
