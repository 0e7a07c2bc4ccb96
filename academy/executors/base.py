"""What is asked of an executor, and how to ask it of one that is not ours."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import datetime
from typing import Any

from academy.scheduler.job import JobInfo


class AgentExecutor(Executor, ABC):
    """An executor that knows what it asks of its engine for each task.

    It keeps the contract of `concurrent.futures.Executor`, so any other executor works
    in its place. What the contract leaves open:

    `submit(fn, /, *args, **submit_kwargs)` returns at once, without waiting for a
    scheduler, so it may be called in an event loop. The keyword arguments are for the
    engine and never reach the function, which is importable where it will run (or goes
    by value, if the engine can do that). They are validated before anything else
    happens. After `shutdown()` it raises RuntimeError.

    The future gets the function's result or exception, and if the worker that ran it is
    lost, an exception that says so: nobody waits for ever. `cancel()` succeeds only
    as long as no worker can have begun the task, for engines do not give tasks back.

    `shutdown(wait=True)` lets everything end that has been submitted, then gives up all
    that the executor holds: processes, threads, blocks of nodes. With `wait=False` it
    does so in the background. With `cancel_futures=True` it does so now: futures which
    are not running are cancelled, and if the engine cannot tell, the others fail with
    `BrokenExecutor`. Either way all futures are done in the end. Calling it again is
    fine.

    When its process is killed, what the executor has started ends by itself, soon,
    unless it says otherwise.
    """

    @abstractmethod
    def validate(self, **submit_kwargs: Any) -> None:
        """Check what `submit` would be given, without side effects.

        Raises:
            ValueError: Says which key or value is wrong, and what would be right.
        """

    @abstractmethod
    def preview(self, **submit_kwargs: Any) -> str:
        """Return what would be submitted: the job script or the request itself.

        Raises:
            ValueError: As from `validate`.
        """

    def ask_scheduler(self, **submit_kwargs: Any) -> datetime | None:
        """Have the scheduler check what `validate` has accepted; takes a while.

        Returns:
            When a job of this kind would start, as far as the scheduler tells.

        Raises:
            ValueError: The scheduler would refuse it, or never start it; in its words.
        """
        self.validate(**submit_kwargs)
        return None

    @property
    @abstractmethod
    def max_workers(self) -> int | None:
        """How many tasks can run at a time, or None if nobody can tell."""

    def submit_together(
        self, fn: Any, /, arguments: Sequence[tuple[Any, ...]], **submit_kwargs: Any
    ) -> list[Future[Any]]:
        """Run `fn(*args)` for each tuple: all that is launched as one batch."""
        return [self.submit(fn, *args, **submit_kwargs) for args in arguments]

    def validate_together(self, tasks: int, **submit_kwargs: Any) -> None:
        """Check what `submit_together` would be given for so many tasks.

        Raises:
            ValueError: As from `validate`, or they are too many.
        """
        self.validate(**submit_kwargs)

    @property
    def shares_jobs(self) -> bool:
        """Whether what is launched as one batch should be submitted together."""
        return False

    @property
    def resumes_requeued(self) -> bool:
        """Whether a task begins anew when its job is put back into the queue."""
        return False

    def job(self, future: Future[Any]) -> JobInfo | None:
        """Describe the batch job that a task is in, or waits for; may ask a scheduler.

        Returns:
            None if there is no job, or nobody can tell which.
        """
        return None

    def cancel(self, future: Future[Any]) -> bool:
        """End a task, with its job if nothing else is in it; tell if that was possible.

        Of a running task it may only say so: the agent's own shutdown is the way then.
        """
        return future.cancel()

    @abstractmethod
    def submit(self, fn: Any, /, *args: Any, **submit_kwargs: Any) -> Future[Any]:
        """Run `fn(*args)` as the keyword arguments say."""


def validate(executor: Executor, submit_kwargs: Mapping[str, Any]) -> None:
    """Check what any executor's `submit` would be given, before submitting.

    Executors that are not ours pass keyword arguments on to the function, so they can
    mean nothing to them.

    Raises:
        ValueError: Says which key or value is wrong, and what would be right.
    """
    check = getattr(executor, "validate", None)
    if check is not None:
        check(**submit_kwargs)
    elif submit_kwargs:
        keys = ", ".join(map(repr, submit_kwargs))
        raise ValueError(
            f"{type(executor).__name__} takes no submit_kwargs, but was given {keys}. "
            "Resources per agent need an executor that asks a scheduler for them, such "
            "as ParslExecutor."
        )


def preview(executor: Executor, submit_kwargs: Mapping[str, Any]) -> str:
    """Return what any executor would submit.

    Raises:
        ValueError: As from `validate`.
    """
    show = getattr(executor, "preview", None)
    if show is not None:
        return str(show(**submit_kwargs))
    validate(executor, submit_kwargs)
    workers = max_workers(executor)
    return f"{type(executor).__name__}, {workers or 'any number of'} workers\n"


def max_workers(executor: Executor) -> int | None:
    """Return how many tasks any executor can run at a time, or None if unknown."""
    # The pools of the standard library keep theirs to themselves.
    for name in ("max_workers", "_max_workers"):
        workers = getattr(executor, name, None)
        if isinstance(workers, int):
            return workers
    return None


def unknown_key(
    key: str, accepted: Iterable[str], taker: str, aliases: Iterable[str] = ()
) -> ValueError:
    """Make the error for a key that nobody knows, with its nearest neighbour.

    Aliases are neighbours, too, but too many to be listed.
    """
    names = sorted(accepted)
    near = difflib.get_close_matches(key, [*names, *aliases], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f"It takes {', '.join(names)}." if names else "It takes none."
    return ValueError(f"{taker} takes no {key!r}.{hint} {known}")
