"""The caller's end of a stream: gets items in order, and grants the agent room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from academy.exception import ExchangeError
from academy.handle.calls import (
    client_for,
    error_in,
    give_up,
    is_inactive,
    new_request,
    post,
)
from academy.handle.timeouts import chosen, timed
from academy.handle.vigil import attended
from academy.message import (
    Message,
    StreamCredit,
    StreamEnd,
    StreamItem,
    StreamRequest,
)

if TYPE_CHECKING:
    from academy.exchange.client import ExchangeClient
    from academy.handle import Handle

RETRY_SECONDS = 1.0
"""How long a credit that a full mailbox has refused waits before it is sent again."""


async def iterate(
    handle: Handle[Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncGenerator[Any, None]:
    """Run an action that yields; yield its items and raise what it raises."""
    client = client_for(handle)
    seconds = chosen(handle._timeout, client.config.call_timeout)
    kind = partial(
        StreamRequest,
        room_items=client.config.stream_items,
        room_bytes=client.config.stream_bytes,
    )
    request = new_request(client, handle, kind, name, args, kwargs, seconds)
    async with AsyncExitStack() as stack:
        vigil = None
        if handle._reject_on_inactive:
            watch = attended(client, handle.agent_id)
            vigil = await stack.enter_async_context(watch)
        inlet = Inlet(client, request)
        future = post(client.request_stream, request, inlet.take)
        stack.callback(inlet.end, future)
        if vigil is not None:
            vigil.guard(future)
        future.add_done_callback(inlet.wake)
        while True:
            if (item := inlet.next_item()) is not None:
                yield item.value.load()
            elif inlet.problem is not None:
                raise inlet.problem
            elif future.done():
                break
            else:
                await timed(inlet.woken(), seconds, handle.agent_id, name)
        response = future.result()
    body = response.get_body()
    if type(body) is not StreamEnd:
        raise error_in(response, handle.agent_id)
    if body.count != inlet.received:
        raise inlet.gap(body.count)


class Inlet:
    """Keeps the items that have come and were not taken.

    Invariants: `received` is the index of the next item that is new, and `problem` is
    set when that will never come. `_untold` and `_untold_bytes` are what was taken
    since the agent was last told.
    """

    __slots__ = (
        "_client",
        "_items",
        "_request",
        "_retry",
        "_taken",
        "_untold",
        "_untold_bytes",
        "_waiter",
        "problem",
        "received",
    )

    def __init__(self, client: ExchangeClient, request: Message) -> None:
        self.received = 0
        self.problem: ExchangeError | None = None
        self._client = client
        self._request = request
        self._items: deque[StreamItem] = deque()
        self._taken = self._untold = self._untold_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._retry: asyncio.TimerHandle | None = None

    # --- what comes

    def take(self, message: Message) -> None:
        """Take an item; or learn that a credit of ours was refused."""
        item = message.get_body()
        if not isinstance(item, StreamItem):
            self._grant_later()
        elif item.index == self.received:
            self.received += 1
            self._items.append(item)
            self.wake()
        elif item.index == 0:
            # The agent runs the action again, and knows nothing of what was taken.
            self._grant()
        elif item.index > self.received:
            self.problem = self.problem or self.gap(item.index)
            self.wake()

    def wake(self, _: object = None) -> None:
        """Let go on who waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def gap(self, index: int) -> ExchangeError:
        """Return the error for items that never came."""
        return ExchangeError(
            f"The stream has a gap: items {self.received} to {index - 1} were refused, "
            f"since the mailbox of {self._client.client_id} was full."
        )

    # --- what is taken

    async def woken(self) -> None:
        """Wait for an item or the end."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def next_item(self) -> StreamItem | None:
        """Return the next item, if it has come; tell the agent now and then."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._taken += 1
        self._untold += 1
        self._untold_bytes += item.size
        config = self._client.config
        if (
            self._untold * 2 >= config.stream_items
            or self._untold_bytes * 2 >= config.stream_bytes
        ):
            self._grant()
        return item

    def _grant(self) -> None:
        self._untold = self._untold_bytes = 0
        request, client = self._request, self._client
        credit = StreamCredit(self._taken)
        # A client that is closed or lost has ended the stream already.
        with suppress(ExchangeError):
            client.post(Message(client.client_id, request.dest, request.tag, credit))

    def _grant_later(self) -> None:
        if self._retry is None:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(RETRY_SECONDS, self._grant_again)

    def _grant_again(self) -> None:
        self._retry = None
        self._grant()

    def end(self, future: asyncio.Future[Message]) -> None:
        """Take no more; an agent that has not ended the stream itself is told."""
        if self._retry is not None:
            self._retry.cancel()
        self._client.forget(self._request)
        ended = future.done() and not future.cancelled()
        if not ended or is_inactive(future.exception()):
            give_up(self._client, self._request)
