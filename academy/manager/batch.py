"""Launching many agents at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from academy.handle import Handle

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.launch import LaunchOptions
    from academy.manager import Manager
    from academy.manager.launched import LaunchRequest

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
        mailboxes of it and of those after it are terminated.

        Raises:
            RuntimeError: the batch is closed.
            Exception: why an agent could not be launched.
        """
        self._check_open()
        queued, self._queued = self._queued, []
        if not queued:
            return
        manager = self._manager
        registrations = await manager.register_agents(
            [(request.agent_type, request.name) for request, _ in queued]
        )
        # Siblings may hold each other's handles, so all are bound before any is packed.
        for (_, handle), registration in zip(queued, registrations, strict=True):
            handle._bind(registration.agent_id)
            manager._handles[registration.agent_id] = handle
        launched = 0
        try:
            for (request, _), registration in zip(queued, registrations, strict=True):
                packed = request.pack(manager.exchange_client)
                manager._start(request, registration, packed)
                launched += 1
        finally:
            await manager._abandon(registrations[launched:])

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("The batch is closed: make another one, launch_batch().")
