"""One launched agent: its runs, its end, and its last failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import (
    BrokenExecutor,
    CancelledError as FutureCancelledError,
    Executor,
    Future,
)
from typing import TYPE_CHECKING, Any

from academy.exception import (
    BadEntityIdError,
    ExchangeError,
    MailboxTerminatedError,
    SupersededError,
)
from academy.executors.futures import end_of, is_standard_pool, submit, withdraw
from academy.failure import AgentLostError, NeverStartedError
from academy.launch import AgentSpec, run_agent, run_agent_here
from academy.launch.ending import portable_error
from academy.manager import losses
from academy.manager.request import LaunchRequest, RetryPolicy, spec_of_run
from academy.manager.watching import Run, Watching
from academy.scheduler.job import JobInfo

if TYPE_CHECKING:
    from academy.exchange.client import ExchangeClient
    from academy.exchange.transport import AgentRegistration
    from academy.identifier import AgentId

logger = logging.getLogger("academy.manager")


class LaunchedAgent:
    """An agent on an executor, from its first submission to its last end.

    `task` ends when the agent does for good, with its last failure if it failed.
    """

    __slots__ = (
        "_client",
        "_future",
        "_packed",
        "_pause",
        "_request",
        "_retry",
        "_run_now",
        "_stopping",
        "_terminate",
        "_watching",
        "registration",
        "reported",
        "task",
    )

    def __init__(
        self,
        client: ExchangeClient,
        retry: RetryPolicy,
        request: LaunchRequest,
        registration: AgentRegistration[Any],
        packed: bytes | None,
        watching: Watching,
        future: Future[Any] | None = None,
    ) -> None:
        """Submit the first run, unless its future is given.

        Raises:
            Exception: whatever the executor raises at once.
        """
        self._client = client
        self._retry = retry
        self._request = request
        self._packed = packed
        self._pause: asyncio.Future[None] | None = None
        self._watching = watching
        self._run_now: Run | None = None
        self._stopping = False
        self._terminate: bool | None = None
        self.registration = registration
        self.reported = False
        self._future = self._submit(1) if future is None else future
        self.task = asyncio.create_task(self._watch())
        self.task.add_done_callback(_retrieve)

    @property
    def agent_id(self) -> AgentId[Any]:
        """Whose runs these are."""
        return self.registration.agent_id

    @property
    def executor_name(self) -> str:
        """Where it runs."""
        return self._request.executor_name

    def failure(self) -> BaseException | None:
        """Return what the agent failed of, if it has ended and failed."""
        if not self.task.done() or self.task.cancelled():
            return None
        return self.task.exception()

    async def job(self) -> JobInfo | None:
        """Describe the job that it is in or waits for; None if there is none."""
        if self._run_now is not None:
            return await self._run_now.job()
        return await losses.job_of(None, self._request.executor, self._future)

    async def stop(self, terminate: bool | None) -> None:
        """Ask the agent to shut down, or see to it that it does not start (again).

        Raises:
            ExchangeError: the request could not be sent.
        """
        from academy.message import ShutdownRequest

        if self.task.done():
            return
        self._stopping = True
        self._terminate = terminate
        if self._pause is not None:
            self._pause.cancel()
        elif not withdraw(self._request.executor, self._future):
            request = ShutdownRequest(terminate)
            # A mailbox that is gone belongs to an agent that is ending already.
            with contextlib.suppress(MailboxTerminatedError):
                await self._client.send(
                    self._client.new_message(self.agent_id, request)
                )

    # --- runs

    async def _watch(self) -> None:
        try:
            run = 1
            while (error := await self._run(run)) and self._may_run_again(error, run):
                await self._wait_to_retry(error, run)
                if self._stopping:
                    break
                run += 1
            if error is not None:
                logger.warning("%s failed: %r", self.agent_id, error)
                if not self._is_about_us(
                    error, SupersededError
                ):  # else it has an owner
                    terminate = self._request.config.terminate_on_error
                    await self._end_mailbox(terminate, _reason(error))
                raise error
        finally:
            self._watching.sightings.leave(self.agent_id)
            # What the agent was made of can be large, and is not needed any more.
            self._packed = None

    async def _run(self, run: int) -> Exception | None:
        """Run the agent once; return what it failed of."""
        try:
            self._future = self._future or self._submit(run)
            executor = self._request.executor
            if self._future is None or executor is None:
                await run_agent_here(self._spec(run))
            elif is_standard_pool(executor):  # which tells at once, and has no jobs
                await end_of(self._future)
                self._future.result()
            else:
                await self._watched_run(executor, self._future)
        except (Exception, SystemExit) as error:
            if isinstance(error, FutureCancelledError) and self._future is not None:
                return await self._never_ran()
            # An agent's sys.exit() is not to end the program that launched it.
            return error if isinstance(error, Exception) else portable_error(error)
        finally:
            self._future = None
        return None

    async def _watched_run(self, executor: Executor, future: Future[None]) -> None:
        self._run_now = Run(
            self.agent_id,
            self.executor_name,
            executor,
            future,
            self._watching,
            lambda: self._stopping,
        )
        try:
            await self._run_now.end()
        finally:
            self._run_now = None

    async def _never_ran(self) -> Exception | None:
        if not self._stopping:
            return FutureCancelledError(
                f'Executor "{self.executor_name}" cancelled {self.agent_id} before it '
                "started."
            )
        await self._end_mailbox(self._request.config.terminate_on_success)
        return None

    def _spec(self, run: int) -> AgentSpec:
        return spec_of_run(
            run,
            self._client,
            self._retry,
            self._request,
            self.registration,
            self._packed,
        )

    def _submit(self, run: int) -> Future[None] | None:
        executor = self._request.executor
        if executor is None:
            return None
        spec = self._spec(run)
        argument = spec if self._packed is None else spec.pack()
        try:
            future = submit(
                executor, run_agent, argument, **self._request.submit_kwargs
            )
        except BrokenExecutor as error:
            raise self._explain(error) from error
        logger.info("submitted %s to %s", self.agent_id, self.executor_name)
        return future

    def _explain(self, error: BrokenExecutor) -> BrokenExecutor:
        return type(error)(
            f'Executor "{self.executor_name}" is broken: one of its workers died '
            "(killed, out of memory, os._exit), and a "
            f"{type(self._request.executor).__name__} starts no new ones, so it "
            "accepts nothing more. Give the manager a new one with add_executor(). "
            f"({error})"
        )

    def _may_run_again(self, error: Exception, runs: int) -> bool:
        if self._stopping or runs > self._retry.max_retries:
            return False
        # What its scheduler refuses to start, it would refuse again.
        if isinstance(error, NeverStartedError):
            return False
        # Whose mailbox is gone, or belongs to another incarnation, has no way back.
        if self._is_about_us(error, BadEntityIdError, MailboxTerminatedError):
            return False
        if self._is_about_us(error, SupersededError):
            return False
        return not _is_broken_for_good(self._request.executor, error)

    def _is_about_us(self, error: BaseException, *kinds: type[Exception]) -> bool:
        if isinstance(error, BaseExceptionGroup):
            return any(self._is_about_us(one, *kinds) for one in error.exceptions)
        return isinstance(error, kinds) and getattr(error, "uid", None) == self.agent_id

    async def _wait_to_retry(self, error: Exception, failures: int) -> None:
        delay = self._retry.delay(failures)
        logger.warning(
            "%s failed; run %d of %d follows in %.1f s: %r",
            self.agent_id,
            failures + 1,
            self._retry.max_retries + 1,
            delay,
            error,
        )
        loop = asyncio.get_running_loop()
        self._pause = loop.create_future()
        timer = loop.call_later(delay, self._pause.cancel)
        try:
            await asyncio.wait((self._pause,))
        finally:
            timer.cancel()
            self._pause = None

    async def _end_mailbox(self, terminate: bool, reason: str = "") -> None:
        if self._terminate is not None:
            terminate = self._terminate
        if not terminate:
            return
        try:
            await self._client.terminate(self.agent_id, reason)
        except ExchangeError as error:
            logger.error("the mailbox of %s stays: %s", self.agent_id, error)


def _reason(error: Exception) -> str:
    """Say for callers what an agent failed of."""
    return str(error) if isinstance(error, AgentLostError) else repr(error)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Tell asyncio that somebody looks after the task's exception."""
    if not task.cancelled():
        task.exception()


def _is_broken_for_good(executor: Executor | None, error: Exception) -> bool:
    return isinstance(error, BrokenExecutor) and is_standard_pool(executor)
