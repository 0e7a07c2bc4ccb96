"""Which server a namespace belongs to: a lease that ends unless it is renewed.

Each time that a namespace is taken its token grows. Redis takes nothing that is written
with an older one, so that a server which was stopped for longer than its lease, and
does not know yet that another one has taken over, does no harm.
"""

from __future__ import annotations

from academy.exchange.store import redis_scripts as scripts
from academy.exchange.store.redis_server import RedisServer


class RedisLeases:
    """The leases of one server.

    Args:
        server: where they are kept.
        owner: what others are told who find a namespace taken.
        seconds: after which a lease ends that was not renewed.
    """

    def __init__(self, server: RedisServer, owner: str, seconds: float) -> None:
        self.seconds = seconds
        self.owner = owner
        self._server = server
        self._servers = f"{server.prefix}:servers"

    async def owner_of(self, namespace: str) -> str | None:
        """Return who owns a namespace, if anybody does."""
        owner = await self._server.call("GET", self._server.key(namespace, "lease"))
        return None if owner is None else owner.decode()

    async def take(self, namespace: str) -> tuple[int, str]:
        """Take a namespace that nobody else has.

        Returns:
            The token for its store, or 0 if somebody else has it; who has it.
        """
        meta = self._server.key(namespace, "meta")
        token, owner = await self._server.run(
            scripts.TAKE, meta, self.owner, self._milliseconds
        )
        return token, owner.decode()

    async def renew(self, namespace: str, token: int) -> bool:
        """Keep a namespace for as long again; tell whether it is still ours."""
        meta = self._server.key(namespace, "meta")
        kept = await self._server.run(
            scripts.RENEW, meta, token, self.owner, self._milliseconds
        )
        return bool(kept)

    async def give_up(self, namespace: str, token: int) -> None:
        """Let others take a namespace at once; its token is worth nothing then."""
        meta = self._server.key(namespace, "meta")
        await self._server.run(scripts.GIVE_UP, meta, token)

    async def announce(self, count: int) -> dict[str, int]:
        """Say how many namespaces this server has; return that of each other one."""
        found = await self._server.run(
            scripts.ANNOUNCE, self._servers, self.owner, count, self._milliseconds
        )
        return {owner.decode(): count for owner, count in found}

    async def withdraw(self) -> None:
        """Announce this server no more."""
        await self._server.call("HDEL", self._servers, self.owner)

    @property
    def _milliseconds(self) -> int:
        return max(1, int(self.seconds * 1000))
