"""The namespaces of an exchange: what users share within one and never across two.

A namespace has a broker and a store of its own, so that what belongs to another one is
not forbidden but unknown. A connection belongs to one namespace: its token says which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from academy.exchange.broker import Broker
from academy.exchange.cloud.auth import DEFAULT_NAMESPACE
from academy.exchange.store.measured import MeasuredStore

if TYPE_CHECKING:
    from academy.exchange.cloud.config import BackendConfig
    from academy.exchange.mailbox import Limits


logger = logging.getLogger(__name__)


class Namespaces:
    """Opens the broker of a namespace when somebody of it comes, and keeps it open.

    Invariant: `_opening` has a task for each namespace that was asked for; its result
    is the broker, and `stores` has what it stores in. A broker that did not open is
    tried again by whoever comes next.
    """

    def __init__(self, backend: BackendConfig, limits: Limits) -> None:
        self.limits = limits
        self._backend = backend
        self._opening: dict[str, asyncio.Task[Broker]] = {}
        self.stores: dict[str, MeasuredStore] = {}

    async def open(self) -> None:
        """Open the default namespace, to learn at once whether storage works.

        Raises:
            StorageError: it does not.
        """
        await self.broker(DEFAULT_NAMESPACE)

    async def broker(self, name: str) -> Broker:
        """Return the broker of a namespace.

        Raises:
            StorageError: its store does not open.
        """
        task = self._opening.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._open(name))
            self._opening[name] = task
        # Shielded, since others may wait for it as well.
        return await asyncio.shield(task)

    async def _open(self, name: str) -> Broker:
        store = self.stores[name] = MeasuredStore(self._backend.store(name))
        broker = Broker(store, self.limits)
        try:
            await broker.open()
        except BaseException:
            del self._opening[name]
            await broker.close()
            raise
        logger.info("namespace %s is open", name)
        return broker

    @property
    def brokers(self) -> Mapping[str, Broker]:
        """Those that are open, by namespace."""
        return {
            name: task.result()
            for name, task in self._opening.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }

    async def check(self) -> None:
        """Find out whether the stores work: the default one, and those that did not.

        Raises:
            StorageError: one does not.
        """
        for name, broker in self.brokers.items():
            store = self.stores[name]
            await broker.check()
            if store.failing or name == DEFAULT_NAMESPACE:
                await store.check()

    async def settle(self) -> None:
        """Wait until no broker has anything left to do."""
        await asyncio.gather(*(broker.settle() for broker in self.brokers.values()))

    async def close(self) -> None:
        """Finish the work at hand and close all stores. May be called twice."""
        if opening := list(self._opening.values()):
            await asyncio.wait(opening)
        brokers = self.brokers
        self._opening.clear()
        await asyncio.gather(*(broker.close() for broker in brokers.values()))
