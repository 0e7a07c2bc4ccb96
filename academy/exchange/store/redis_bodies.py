"""Bodies of large messages in Redis: every server that owns the namespace has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from academy.exception import StorageError
from academy.exchange.store import redis_scripts as scripts

if TYPE_CHECKING:
    from academy.exchange.store.redis_server import RedisServer
    from academy.serialize import Part

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1_000_000
"""Bytes of a body that lie in one key: no command keeps Redis from others for long."""


class RedisBodies:
    """Keeps each body in chunks, as keys of its namespace.

    Args:
        server: where.
        namespace: whose.
        token: shows that the namespace is ours.
    """

    def __init__(self, server: RedisServer, namespace: str, token: int) -> None:
        self._server = server
        self._token = token
        self._meta = server.key(namespace, "meta")
        self._index = server.key(namespace, "bodies")
        self._deleting: set[asyncio.Task[None]] = set()

    async def write(self, key: bytes, offset: int, data: Part) -> None:
        rest = memoryview(data)
        for chunk, start, size in _chunks(offset, len(rest)):
            piece, rest = bytes(rest[:size]), rest[size:]
            await self._run(scripts.WRITE_BODY, key, chunk, start, piece)

    async def read(self, key: bytes, offset: int, size: int) -> bytes:
        pieces = [
            await self._run(scripts.READ_BODY, key, chunk, start, start + count - 1)
            for chunk, start, count in _chunks(offset, size)
        ]
        data = b"".join(pieces)
        if len(data) != size:
            raise StorageError(
                f"{self._server!r} has {len(data)} of {size} bytes of {key.hex()}"
            )
        return data

    async def sync(self, keys: Iterable[bytes]) -> None:
        """Nothing: a commit waits for the replicas, which get writes in order."""

    def delete(self, keys: Iterable[bytes]) -> None:
        if keys := list(keys):
            task = asyncio.get_running_loop().create_task(self._delete(keys))
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    async def _delete(self, keys: list[bytes]) -> None:
        try:
            for key in keys:
                await self._run(scripts.DELETE_BODY, key)
        except StorageError as error:
            # Whoever opens the namespace next sweeps.
            logger.warning("large messages are deleted later: %s", error)

    async def sweep(self, kept: Collection[bytes]) -> None:
        cursor = 0
        while True:
            cursor, page = await self._server.call("HSCAN", self._index, cursor)
            for key in page:
                if key not in kept:
                    await self._run(scripts.DELETE_BODY, key)
            if not cursor:
                return

    async def close(self) -> None:
        if self._deleting:
            await asyncio.wait(self._deleting)

    async def _run(self, script: str, *arguments: bytes | int) -> bytes:
        result: bytes = await self._server.run(
            script, self._meta, self._token, *arguments
        )
        return result


def _chunks(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range of a body: (chunk, offset in it, bytes)."""
    end = offset + size
    while offset < end:
        chunk, start = divmod(offset, CHUNK_BYTES)
        count = min(CHUNK_BYTES - start, end - offset)
        yield chunk, start, count
        offset += count
