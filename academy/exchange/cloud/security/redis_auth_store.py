"""Keys and revocations in Redis, for several servers: what is new is known at once."""

from __future__ import annotations

import asyncio
import secrets

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from academy.exchange.cloud.security.auth_store import Change
from academy.exchange.store.redis_server import RedisServer

CHANGE = """
local name, before, after, change = unpack(ARGV)
local last = name .. ':change'
if redis.call('HGET', KEYS[1], last) == change then
    return 1  -- the answer was lost
end
if (redis.call('HGET', KEYS[1], name) or '') ~= before then
    return 0
end
redis.call('HSET', KEYS[1], name, after, last, change)
redis.call('PUBLISH', KEYS[1], name)
return 1
"""


class RedisAuthStore:
    """Keeps texts in a hash, and publishes on a channel of its name what is new.

    A message of the channel says no more than that it is time to read: one that is lost
    with its connection does no harm, since all is read now and then anyway.

    Args:
        server: where they are kept; closed with this.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._key = f"{server.prefix}:auth"
        self._news: PubSub | None = None

    def where(self, name: str) -> str:
        return f"{name} in {self._key} of {self._server!r}"

    async def read(self, name: str) -> str | None:
        text = await self._server.call("HGET", self._key, name)
        return None if text is None else str(text.decode())

    async def change(self, name: str, change: Change) -> str:
        while True:
            before = await self.read(name)
            after = change(before)
            arguments = (name, before or "", after, secrets.token_hex(8))
            if await self._server.write(CHANGE, self._key, *arguments):
                return after

    async def wait(self, seconds: float) -> None:
        try:
            if self._news is None:
                self._news = self._server.pubsub()
                await self._news.subscribe(self._key)
            await self._news.get_message(timeout=seconds)
        except (RedisError, OSError):
            await self._forget_news()
            await asyncio.sleep(seconds)

    async def close(self) -> None:
        await self._forget_news()
        await self._server.close()

    async def _forget_news(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            await news.aclose()  # type: ignore[no-untyped-call]  # redis-py's
