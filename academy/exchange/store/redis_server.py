"""A Redis (or Valkey) server as an exchange uses it: scripts, patience, and words."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from hashlib import sha1
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from academy.exception import StorageError

logger = logging.getLogger(__name__)

OLDEST = (6, 2)
"""Oldest version that has all commands."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5

_TRANSIENT = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,
)
_FINAL = (exceptions.AuthenticationError, exceptions.MaxConnectionsError)
_BUSY = "BUSY "

Command = Callable[..., Awaitable[Any]]


class RedisServer:
    """Runs scripts in one Redis, and waits while that restarts.

    Args:
        url: redis://, rediss:// (TLS) or unix://, with user and password if need be.
        patience: seconds to wait for a Redis that does not answer, that loads its
            data, or that is a replica which is to be promoted.
        replicas: how many replicas have to have a write before it counts.
        reply_timeout: seconds after which a command without an answer is sent again.
        prefix: what the names of all keys begin with.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 10.0,
        replicas: int = 0,
        prefix: str = "academy",
        reply_timeout: float = 5.0,
    ) -> None:
        self.prefix = prefix
        self._patience = patience
        self._replicas = replicas
        self._reply_timeout = reply_timeout
        self._address = re.sub(r"//[^/]*@", "//", url).partition("?")[0]
        self._client = Redis.from_url(
            url,
            # One protocol, so that replies look alike whatever the library's default.
            protocol=2,
            socket_timeout=reply_timeout,
            socket_connect_timeout=reply_timeout,
            # What is sent again, and for how long, is decided in `run`.
            retry=Retry(NoBackoff(), 0),
        )
        self._execute: Command = self._client.execute_command

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    def key(self, namespace: str, name: str) -> str:
        """Return the name of a key; those of a namespace lie on one cluster node."""
        return f"{self.prefix}:{{{namespace}}}:{name}"

    async def check(self) -> None:
        """See whether this Redis can keep an exchange's data.

        Raises:
            StorageError: it does not answer, is too old, or evicts what it keeps.
        """
        facts = await self.call("info")
        version = str(facts.get("redis_version", "0"))
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < OLDEST:
            raise StorageError(
                f"{self._address} is Redis {version}; at least 6.2 is needed."
            )
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise StorageError(
                f"{self._address} throws data away when its memory is full "
                f"(maxmemory-policy {policy}), and messages with it: set "
                "maxmemory-policy noeviction."
            )

    async def run(self, script: str, key: str, *arguments: Any) -> Any:
        """Run a script that may be run again when its answer was lost.

        Raises:
            StorageError: it failed, or no answer came in time.
        """
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
        return await self._persist(self._run_once, script, digest, key, arguments)

    async def write(self, script: str, key: str, *arguments: Any) -> Any:
        """Run a script whose outcome has to be on the configured replicas as well."""
        if not self._replicas:
            return await self.run(script, key, *arguments)
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
        return await self._persist(self._run_and_wait, script, digest, key, arguments)

    async def call(self, *command: Any) -> Any:
        """Run a command that may be run again when its answer was lost."""
        return await self._persist(self._execute, *command)

    def pubsub(self) -> PubSub:
        """Return a connection for messages of channels."""
        return self._client.pubsub()

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        await self._client.aclose()

    async def _run_once(
        self, script: str, digest: str, key: str, arguments: tuple[Any, ...]
    ) -> Any:
        command = ("EVALSHA", digest, 1, key, *arguments)
        try:
            return await self._execute(*command)
        except exceptions.NoScriptError:
            await self._execute("SCRIPT LOAD", script)
            return await self._execute(*command)

    async def _run_and_wait(
        self, script: str, digest: str, key: str, arguments: tuple[Any, ...]
    ) -> Any:
        # WAIT is about what its own connection has written.
        await self._execute("SCRIPT LOAD", script)
        pipeline = self._client.pipeline(transaction=False)
        queue: Callable[..., Any] = pipeline.execute_command
        queue("EVALSHA", digest, 1, key, *arguments)
        queue("WAIT", self._replicas, int(self._reply_timeout * 500))
        result, replicas = await pipeline.execute()
        if replicas < self._replicas:
            raise exceptions.TryAgainError(
                f"only {replicas} of {self._replicas} replicas have it"
            )
        return result

    async def _persist(self, attempt: Command, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        pause = _FIRST_PAUSE
        while True:
            try:
                return await attempt(*arguments)
            except (exceptions.RedisError, OSError) as error:
                over = loop.time() + pause > begun + self._patience
                if over or not _passes(error):
                    raise StorageError(f"{self._address}: {_words(error)}") from error
                if pause == _FIRST_PAUSE:
                    logger.warning("%s: %s", self._address, _words(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _passes(error: Exception) -> bool:
    """Whether an error may be over soon."""
    if isinstance(error, _FINAL):
        return False
    return isinstance(error, _TRANSIENT) or str(error).startswith(_BUSY)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
