"""The Globus Compute service, through the SDK's documented `Client`.

A submission is a request that carries its configuration, so that no two can mix, and
that leaves nothing behind when it fails. The SDK's own Executor offers neither: it
reads both dictionaries from attributes when it gets to send, sends whatever has
gathered, in whatever size, and after one refusal accepts nothing more.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from academy.executors.globus_compute.causes import EndpointRefusedError, refusal
from academy.executors.globus_compute.future import Task
from academy.executors.globus_compute.limits import Pace
from academy.executors.globus_compute.request import Request
from academy.executors.globus_compute.task import run_task
from academy.failure import NeverStartedError

if TYPE_CHECKING:
    from globus_compute_sdk import Client

logger = logging.getLogger(__name__)

# What this process may send: the service counts requests of a user.
_pace = Pace()


@dataclass(frozen=True)
class Accepted:
    """What the service says to a submission.

    Attributes:
        task_group_id: where the results will be.
        task_ids: one for each task, in their order.
    """

    task_group_id: str
    task_ids: tuple[str, ...]


class Service:
    """Submits tasks to one endpoint; used by several threads.

    Args:
        endpoint_id: of the endpoint.
        client: one of the SDK's, which stays the caller's; or a function that makes
            one, which is called where it may take its time; or None for the default.
    """

    def __init__(
        self, endpoint_id: str, client: Client | Callable[[], Client] | None
    ) -> None:
        self.endpoint_id = endpoint_id
        self._given = None if client is None or callable(client) else client
        self._make = client if callable(client) else _log_in
        self._lock = threading.Lock()
        # A client makes one request at a time, and one that starts an endpoint can
        # take a minute. So each lane that works has its own.
        self._unused: list[Client] = []
        self._function_id: str | None = None

    def borrow(self) -> Client:
        """Return a client that nobody else uses, or the one that was given.

        Raises:
            NeverStartedError: the service is away, or wants a login.
        """
        if self._given is not None:
            return self._given
        with self._lock:
            if self._unused:
                return self._unused.pop()
        try:
            return self._make()
        except Exception as error:
            raise refusal(error, self.endpoint_id) from error

    def give_back(self, client: Client) -> None:
        """Keep a client for who needs one next."""
        if client is not self._given:
            with self._lock:
                self._unused.append(client)

    def submit(
        self,
        client: Client,
        request: Request,
        task_group_id: str | None,
        tasks: Sequence[Task],
    ) -> Accepted:
        """Submit tasks in one request; takes as long as the service does.

        Raises:
            NeverStartedError: the service, or the endpoint, refuses it; says why.
        """
        try:
            function_id = self._function(client)
            batch = client.create_batch(
                task_group_id=task_group_id,
                resource_specification=dict(request.resource_specification),
                user_endpoint_config=dict(request.user_endpoint_config),
                create_websocket_queue=True,
            )
            for task in tasks:
                batch.add(function_id, (task.packed,))
            _pace.wait()
            answer: Any = client.batch_run(self.endpoint_id, batch)
            task_ids = tuple(answer["tasks"][function_id])
            if len(task_ids) != len(tasks):
                raise ValueError(f"{len(tasks)} tasks became {len(task_ids)}")
            return Accepted(answer["task_group_id"], task_ids)
        except Exception as error:
            # The function may be what the service does not know any more.
            self._function_id = None
            raise refusal(error, self.endpoint_id) from error

    def _function(self, client: Client) -> str:
        with self._lock:
            if self._function_id is None:
                _pace.wait()
                self._function_id = str(client.register_function(run_task))
            return self._function_id

    def check_online(self) -> None:
        """Ask the service whether the endpoint is there.

        Raises:
            EndpointRefusedError: it is not, or is not for us.
            NeverStartedError: the service is away.
        """
        client = self.borrow()
        try:
            status = client.get_endpoint_status(self.endpoint_id)["status"]
        except Exception as error:
            raise refusal(error, self.endpoint_id) from error
        finally:
            self.give_back(client)
        if status != "online":
            raise EndpointRefusedError(
                reason=f"endpoint {self.endpoint_id} is {status}. Start it on its "
                "login node: globus-compute-endpoint start NAME."
            )

    def close(self) -> None:
        """Close the connections of all clients that are ours."""
        with self._lock:
            clients, self._unused = self._unused, []
        for client in clients:
            _close(client)


def _log_in() -> Client:
    """Make the SDK's default client, whose login may ask questions in a terminal."""
    from globus_compute_sdk import Client

    client = Client(do_version_check=False)
    if client.app is not None and client.app.login_required():
        if not sys.stdin or not sys.stdin.isatty():
            raise NeverStartedError(
                reason="you are not logged in to Globus Compute, and there is no "
                "terminal to do it. Run `globus-compute-endpoint login`, or set "
                "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET."
            )
        client.app.login()
    client.version_check()
    return client


def _close(client: Client) -> None:
    """Close a client's connections, which it has no method for."""
    web: Any = getattr(client, "_compute_web_client", None)
    for part in (getattr(web, "v2", None), getattr(web, "v3", None), client.app):
        close = getattr(part, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()
