"""The namespaces of an exchange: what users share within one and never across two.

A namespace has a broker and a store of its own, so that what belongs to another one is
not forbidden but unknown. A connection belongs to one namespace: its token says which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from academy.exception import AcademyError, StorageError
from academy.exchange.broker import Broker
from academy.exchange.cloud.rate import Rate, rate_of
from academy.exchange.cloud.security.auth import DEFAULT_NAMESPACE
from academy.exchange.store.measured import MeasuredStore

if TYPE_CHECKING:
    from academy.exchange.cloud.config import BackendConfig
    from academy.exchange.cloud.ownership import Ownership
    from academy.exchange.mailbox import Limits
    from academy.exchange.store import Store

logger = logging.getLogger(__name__)


class Namespaces:
    """Opens the broker of a namespace when somebody of it comes, and keeps it open.

    Where several servers share a Redis, it is kept open for as long as the namespace is
    this server's and somebody uses it.

    Invariant: `_opening` has a task for each namespace that was asked for; its result
    is the broker, and `stores` has what it stores in. A broker that did not open is
    tried again by whoever comes next. `_ending` has a task for each one that is being
    closed; it opens again only after.

    Args:
        backend: where mailboxes are kept.
        limits: of a namespace.
        own: limits of those that have others, by name.
    """

    def __init__(
        self,
        backend: BackendConfig,
        limits: Limits,
        own: Mapping[str, Limits] | None = None,
    ) -> None:
        self.limits = limits
        self._own = own or {}
        self._rates: dict[str, Rate | None] = {}
        self.ownership: Ownership | None = None
        if backend.kind == "redis":
            from academy.exchange.cloud.ownership import Ownership

            self.ownership = Ownership(
                backend.redis(), backend.lease_seconds, backend.advertise
            )
        self._backend = backend
        self._opening: dict[str, asyncio.Task[Broker]] = {}
        self.stores: dict[str, MeasuredStore] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._idle_since: dict[str, float] = {}
        self._keeping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Learn at once whether storage works.

        Raises:
            StorageError: it does not.
        """
        if self.ownership is not None:
            await self.ownership.check()
        else:
            await self.broker(DEFAULT_NAMESPACE)

    def listening(self, url: str, fingerprint: str | None = None) -> None:
        """Learn where other servers reach this one."""
        if self.ownership is not None:
            self.ownership.listening(url, fingerprint)
            loop = asyncio.get_running_loop()
            self._keeping = loop.create_task(self._keep(self.ownership))

    async def broker(self, name: str) -> Broker:
        """Return the broker of a namespace.

        Raises:
            StorageError: its store does not open, or is another server's.
        """
        while (ending := self._ending.get(name)) is not None:
            await asyncio.wait([ending])
        task = self._opening.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._open(name))
            self._opening[name] = task
        # Shielded, since others may wait for it as well.
        return await asyncio.shield(task)

    def rate(self, name: str) -> Rate | None:
        """Return how fast the clients of a namespace may send, if that is limited."""
        if name not in self._rates:
            self._rates[name] = rate_of(self._limits_of(name), name)
        return self._rates[name]

    def _limits_of(self, name: str) -> Limits:
        return self._own.get(name, self.limits)

    async def _open(self, name: str) -> Broker:
        try:
            store = self.stores[name] = MeasuredStore(await self._store(name))
            broker = Broker(store, self._limits_of(name))
            try:
                await broker.open()
            except BaseException:
                await broker.close()
                raise
        except BaseException:
            if self.ownership is not None:
                await self.ownership.give_up(name)
            del self._opening[name]
            raise
        logger.info("namespace %s is open", name)
        return broker

    async def _store(self, name: str) -> Store:
        if self.ownership is None:
            return self._backend.store(name)
        return await self.ownership.store(name)

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
        if self.ownership is not None:
            await self.ownership.check()
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
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        if opening := list(self._opening.values()):
            await asyncio.wait(opening)
        for name in self._opening:
            self._end(name, StorageError("the exchange is stopping"))
        if ending := list(self._ending.values()):
            await asyncio.wait(ending)
        if self.ownership is not None:
            await self.ownership.close()

    # --- of several servers

    async def _keep(self, ownership: Ownership) -> None:
        """Renew what is ours, and end what is lost or not used, until cancelled."""
        while True:
            try:
                for name in await ownership.renew():
                    self._end(name, StorageError(f"{name} is another server's now"))
            except Exception:
                logger.exception("what was renewed is not known")
            self._end_idle(ownership)
            await asyncio.sleep(ownership.renewal_interval)

    def _end_idle(self, ownership: Ownership) -> None:
        now, brokers = asyncio.get_running_loop().time(), self.brokers
        idle = {
            name: self._idle_since.get(name, now)
            for name in ownership.namespaces
            if name not in self._opening or (name in brokers and brokers[name].is_idle)
        }
        self._idle_since = idle
        for name, since in idle.items():
            if now - since >= self._backend.idle_seconds:
                self._end(name, StorageError(f"nobody uses {name}"))

    def _end(self, name: str, error: AcademyError) -> None:
        if name not in self._ending:
            ending = self._close_one(name, error)
            self._ending[name] = asyncio.get_running_loop().create_task(ending)

    async def _close_one(self, name: str, error: AcademyError) -> None:
        logger.info("closing namespace %s: %s", name, error)
        try:
            task = self._opening.get(name)
            if task is not None:
                await asyncio.wait([task])
                with suppress(StorageError):
                    broker = task.result()
                    broker.dismiss(error)
                    await broker.close()
                self._opening.pop(name, None)
            if self.ownership is not None:
                await self.ownership.give_up(name)
        finally:
            del self._ending[name]
