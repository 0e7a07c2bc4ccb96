"""The SDK's result watcher, for programs that may end while their tasks run.

All that we use of the SDK beyond its documentation is here and in `pending`.
"""

from __future__ import annotations

import uuid
from typing import Any

from globus_compute_sdk import Client, Executor
from globus_compute_sdk.sdk import executor as sdk
from globus_compute_sdk.sdk.asynchronous.compute_future import ComputeFuture

POLL_PERIOD = 0.1
"""Seconds between two looks of a watcher at what has arrived."""


class Watcher(sdk._ResultWatcher):
    """Brings results of a task group, and gives up when it loses its connection.

    One attempt to connect is all it makes: by itself it sleeps up to ten seconds
    between two, and gives up for good after a few. Who needs results makes a new one.

    Args:
        task_group_id: whose results.
        client: for the address of the broker.
    """

    def __init__(self, task_group_id: str, client: Client) -> None:
        group = uuid.UUID(task_group_id)
        super().__init__(
            group, client, poll_period_s=POLL_PERIOD, connect_attempt_limit=1
        )
        # Neither this thread nor the SDK's exit handler is to keep a program.
        self.daemon = True
        sdk._RESULT_WATCHERS.pop(group, None)
        self._loop: Any = None

    def follow(self, futures: list[ComputeFuture]) -> bool:
        """Settle these futures too; False if this watcher has given up."""
        if not self.is_alive():
            return False
        try:
            executor: Any = self  # Of which it only notes the identity.
            self.watch_for_task_results(executor, futures)
        except self.ShuttingDownError:
            return False
        return True

    def end(self, timeout: float) -> None:
        """End soon, and leave the futures as they are."""
        # Its own shutdown() cancels futures, or waits for them, in a further thread.
        self._closed = self._time_to_stop = True
        self.join(timeout)

    def _connect(self) -> Any:
        self._close_loop()
        connection = super()._connect()
        self._loop = connection.ioloop
        return connection

    def run(self) -> None:
        try:
            super().run()  # type: ignore[no-untyped-call]
        finally:
            self._close_loop()

    def _close_loop(self) -> None:
        """Close the sockets by which a loop wakes itself, which the SDK does not."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None


def pending(tasks: dict[str, ComputeFuture], client: Client) -> list[ComputeFuture]:
    """Ask the service about tasks: settle futures, and return those of the others."""
    return Executor._load_tasks_status(tasks, client=client)
