"""Which of several servers over one Redis a namespace lives on.

A namespace lives on one server at a time, whose broker keeps it in memory. Who is asked
for one that is free takes it, or leaves it to a server that has fewer.
"""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from academy.exception import StorageError
from academy.exchange.store.redis import RedisStore
from academy.exchange.store.redis_leases import RedisLeases
from academy.exchange.store.redis_server import RedisServer

if TYPE_CHECKING:
    from academy.exchange.store import Store

logger = logging.getLogger(__name__)

RENEWALS = 3
"""How often a lease is renewed before it would end."""


@dataclass(frozen=True)
class Peer:
    """A server as the others know it.

    Attributes:
        url: where they reach it.
        fingerprint: of its certificate, if that is one to pin.
        process: random digits that tell it from others at this address before it.
    """

    url: str
    fingerprint: str | None = None
    process: str = ""

    def packed(self) -> str:
        """Return it as text, for Redis."""
        return json.dumps(asdict(self))

    @classmethod
    def unpacked(cls, text: str) -> Peer:
        """Make it again."""
        return cls(**json.loads(text))


class Ownership:
    """The namespaces of this server, and where the others are.

    Invariant: `_tokens` has the namespaces that were taken and neither lost nor given
    up, as far as is known here. What Redis knows is what counts: it refuses the stores
    of namespaces that were lost.

    Args:
        server: what the servers share.
        lease_seconds: after which others may take what is not renewed.
        advertise: url under which other servers reach this one. Default: the one it
            listens on.
    """

    def __init__(
        self, server: RedisServer, lease_seconds: float, advertise: str | None = None
    ) -> None:
        self._lease_seconds = lease_seconds
        self._server = server
        self._advertise = advertise
        self._leases: RedisLeases | None = None
        self._tokens: dict[str, int] = {}

    async def check(self) -> None:
        """See whether Redis is there, and fit for it.

        Raises:
            StorageError: it is not.
        """
        await self._server.check()

    def listening(self, url: str, fingerprint: str | None = None) -> None:
        """Learn where this server can be reached; it takes no namespace before."""
        url = self._advertise or url
        me = Peer(url, fingerprint, secrets.token_hex(8)).packed()
        self._leases = RedisLeases(self._server, me, self._lease_seconds)

    @property
    def renewal_interval(self) -> float:
        """Seconds after which to renew, again and again."""
        return self._lease_seconds / RENEWALS

    @property
    def namespaces(self) -> list[str]:
        """Those that are this server's."""
        return list(self._tokens)

    async def elsewhere(self, namespace: str, *, handed_on: bool) -> Peer | None:
        """Return the other server where a namespace lives; None if it is this one.

        Args:
            namespace: is taken if it is free.
            handed_on: another server has left it to this one.

        Raises:
            StorageError: Redis does not say.
        """
        if namespace in self._tokens:
            return None
        leases = self._listening_leases()
        if not handed_on:
            known = await leases.owner_of(namespace)
            if known is None:
                known = await self._idler(leases)
            if known not in (None, leases.owner):
                return Peer.unpacked(known)
        token, owner = await leases.take(namespace)
        if not token:
            return Peer.unpacked(owner)
        if self._tokens.get(namespace) != token:
            logger.info("namespace %s is ours", namespace)
            self._tokens[namespace] = token
            await leases.announce(len(self._tokens))
        return None

    async def owner(self, namespace: str) -> Peer | None:
        """Return the other server where a namespace lives, if it is open anywhere.

        Raises:
            StorageError: Redis does not say.
        """
        if namespace in self._tokens:
            return None
        owner = await self._listening_leases().owner_of(namespace)
        return None if owner is None else Peer.unpacked(owner)

    async def _idler(self, leases: RedisLeases) -> str | None:
        """Return a server that has fewer namespaces than this one."""
        peers = await leases.announce(len(self._tokens))
        least = min(peers, key=peers.__getitem__, default=None)
        return least if least and peers[least] < len(self._tokens) else None

    async def store(self, namespace: str) -> Store:
        """Return the store of a namespace that is ours.

        Raises:
            StorageError: it is another server's.
        """
        if await self.elsewhere(namespace, handed_on=True) is not None:
            raise StorageError(f"namespace {namespace} has just moved: connect again")
        return RedisStore(self._server, namespace, self._tokens[namespace])

    async def renew(self) -> list[str]:
        """Keep what is ours, and our place among the servers; return what was lost."""
        leases = self._listening_leases()
        lost = []
        try:
            for namespace, token in list(self._tokens.items()):
                kept = await leases.renew(namespace, token)
                if not kept and self._tokens.get(namespace) == token:
                    lost.append(namespace)
            await leases.announce(len(self._tokens))
        except StorageError as error:
            # Others may have taken over meanwhile.
            logger.error("all namespaces are given up: %s", error)
            lost = self.namespaces
        return lost

    async def give_up(self, namespace: str) -> None:
        """Leave a namespace, whose store is closed, to whoever wants it."""
        token = self._tokens.get(namespace)
        if token is None:
            return
        try:
            await self._listening_leases().give_up(namespace, token)
        except StorageError as error:
            logger.warning("the lease of %s will end by itself: %s", namespace, error)
        finally:
            self._tokens.pop(namespace, None)

    async def close(self) -> None:
        """Tell the others that this server goes. May be called twice."""
        if self._leases is not None:
            try:
                await self._leases.withdraw()
            except StorageError as error:
                logger.warning("others will notice that this server goes: %s", error)
            self._leases = None
        await self._server.close()

    def _listening_leases(self) -> RedisLeases:
        if self._leases is None:
            raise StorageError("this server is starting or stopping: connect again")
        return self._leases
