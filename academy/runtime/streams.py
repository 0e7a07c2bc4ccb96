"""The agent's end of a stream: runs a generator as far as its caller has room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from academy.exception import AcademyError, ActionCancelledError, ExchangeError
from academy.exchange.mailbox_status import MailboxStatus
from academy.message import (
    Message,
    StreamEnd,
    StreamItem,
    StreamRequest,
)
from academy.runtime.answers import not_serialized
from academy.serialize import Payload

if TYPE_CHECKING:
    from academy.exchange.client import AgentExchangeClient

CALLER_PATIENCE = 3600.0
"""Seconds that a caller may be away before its stream is given up.

As long as it tries to connect again unless told otherwise.
"""


class Outlet:
    """Sends what a generator yields, and advances it only while there is room.

    Invariants: `_count` items were yielded, `_taken` of them has the caller taken, and
    `_sizes` has the bytes of those between.

    Attributes:
        failure: why the stream ends before its generator does, if it is an error.
    """

    __slots__ = (
        "_bytes",
        "_client",
        "_count",
        "_message",
        "_request",
        "_room",
        "_sizes",
        "_taken",
        "failure",
    )

    def __init__(
        self, client: AgentExchangeClient, message: Message, request: StreamRequest
    ) -> None:
        self.failure: Exception | None = None
        self._client = client
        self._message = message
        self._request = request
        self._sizes: deque[int] = deque()
        self._count = self._taken = self._bytes = 0
        self._room = asyncio.Event()

    async def run(self, items: AsyncGenerator[Any, None]) -> StreamEnd:
        """Send every item; return how the stream has ended."""
        async with aclosing(items):
            while True:
                if self._is_full():
                    await self._has_room()
                try:
                    value = await anext(items)
                except StopAsyncIteration:
                    return StreamEnd(self._count)
                self._send(value)

    def _send(self, value: Any) -> None:
        index = self._count
        self._count += 1
        if index < self._taken:
            return  # an earlier run of the action has sent it
        item = StreamItem(index, Payload(self._request.result_strategy, value))
        try:
            self._client.post(self._message.create_response(item))
        except AcademyError:
            raise
        except Exception as error:
            raise not_serialized(self._request.action, value, error) from error
        self._sizes.append(item.size)
        self._bytes += item.size

    def _is_full(self) -> bool:
        request = self._request
        if len(self._sizes) >= request.room_items:
            return True
        return self._bytes >= request.room_bytes

    def credit(self, taken: int) -> None:
        """Learn how many items the caller has taken."""
        for _ in range(min(taken - self._taken, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
        self._taken = max(taken, self._taken)
        self._room.set()

    async def _has_room(self) -> None:
        """Wait for room; a caller that is gone will never make any."""
        patience = self._client.config.stale_after
        waited = 0.0
        while self._is_full():
            self._room.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._room.wait()
            except TimeoutError:
                waited += patience
                if await self._is_abandoned(waited):
                    raise ActionCancelledError(self._request.action) from None

    async def _is_abandoned(self, waited: float) -> bool:
        try:
            status = await self._client.status(self._message.src)
        except ExchangeError:
            return False
        if status is MailboxStatus.INACTIVE:
            return waited > CALLER_PATIENCE
        return status is not MailboxStatus.ACTIVE
