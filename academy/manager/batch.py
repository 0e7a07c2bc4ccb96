"""Launching many agents at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from academy.executors.base import AgentExecutor
from academy.handle import Handle
from academy.launch import run_agent
from academy.manager.request import spec_of_run

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.transport import AgentRegistration
    from academy.launch import LaunchOptions
    from academy.manager import Manager
    from academy.manager.request import LaunchRequest

AgentT = TypeVar("AgentT", bound="Agent")


class LaunchBatch:
    """Agents to be launched together; see `Manager.launch_batch`.

    `async with` submits what was queued at its end, unless its body raised.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._queued: list[tuple[LaunchRequest, Handle[Any]]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: object, *exc_info: object) -> None:
        try:
            if exc_type is None:
                await self.submit()
        finally:
            self._closed = True
            self._queued.clear()

    async def queue(
        self, agent: AgentT | type[AgentT], **options: Unpack[LaunchOptions]
    ) -> Handle[AgentT]:
        """Queue a launch; takes what `Manager.launch` takes but a registration.

        Returns:
            A handle that can be given to other agents of the batch at once, and used
            when the batch has been submitted.

        Raises:
            RuntimeError: the batch is closed.
            ValueError: there is no such executor, or it refuses `submit_kwargs`.
            TypeError: the type does not take these arguments.
        """
        self._check_open()
        request = self._manager._check(agent, options)
        handle = self._manager._new_handle(None, request.agent_type)
        self._queued.append((request, handle))
        return handle

    async def submit(self) -> None:
        """Register all queued agents in one call, and launch them.

        If one cannot be launched, those queued before it keep running, and the
        mailboxes of it and of those after it are terminated. Those that an executor
        submits together count as launched with the first of them.

        Raises:
            RuntimeError: the batch is closed.
            Exception: why an agent could not be launched.
        """
        self._check_open()
        queued, self._queued = self._queued, []
        if not queued:
            return
        manager = self._manager
        groups = _groups([request for request, _ in queued])
        for executor, submit_kwargs, members in groups:
            if executor is not None:
                executor.validate_together(len(members), **submit_kwargs)
        await manager._consents.ask(request for request, _ in queued)
        registrations = await manager.register_agents(
            [(request.agent_type, request.name) for request, _ in queued]
        )
        # Siblings may hold each other's handles, so all are bound before any is packed.
        for (_, handle), registration in zip(queued, registrations, strict=True):
            handle._bind(registration.agent_id)
            manager._handles[registration.agent_id] = handle
        launched: set[int] = set()
        try:
            for executor, _, members in groups:
                self._launch(
                    executor, [(queued[n][0], registrations[n]) for n in members]
                )
                launched.update(members)
        finally:
            left = [r for n, r in enumerate(registrations) if n not in launched]
            await manager._abandon(left)

    def _launch(
        self,
        executor: AgentExecutor | None,
        members: list[tuple[LaunchRequest, AgentRegistration[Any]]],
    ) -> None:
        """Launch one agent, or all that an executor submits together."""
        manager = self._manager
        client = manager.exchange_client
        packed = [request.pack(client) for request, _ in members]
        futures: list[Any] = [None] * len(members)
        if executor is not None:
            specs = [
                spec_of_run(1, client, manager._retry, *member, pack).pack()
                for member, pack in zip(members, packed, strict=True)
            ]
            submit_kwargs = members[0][0].submit_kwargs
            futures = executor.submit_together(
                run_agent, [(spec,) for spec in specs], **submit_kwargs
            )
        for member, pack, future in zip(members, packed, futures, strict=True):
            manager._start(*member, pack, future)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("The batch is closed: make another one, launch_batch().")


def _groups(
    requests: list[LaunchRequest],
) -> list[tuple[AgentExecutor | None, Mapping[str, Any], list[int]]]:
    """Group launches for executors that submit a batch's agents together.

    Returns:
        Executor, what is asked of it, and numbers of launches; for all other launches,
        None and one number.
    """
    groups: list[tuple[AgentExecutor | None, Mapping[str, Any], list[int]]] = []
    for number, request in enumerate(requests):
        executor, submit_kwargs = request.executor, request.submit_kwargs
        if not isinstance(executor, AgentExecutor) or not executor.shares_jobs:
            groups.append((None, submit_kwargs, [number]))
            continue
        for group in groups:
            if group[0] is executor and group[1] == submit_kwargs:
                group[2].append(number)
                break
        else:
            groups.append((executor, submit_kwargs, [number]))
    return groups
