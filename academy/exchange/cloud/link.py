"""One outbound connection of an event loop to an exchange, shared by its mailboxes.

A `Link` outlives its connections: when one is lost it connects again, says for each
mailbox what it still holds, and sends again what was not confirmed. Calls in flight
do not notice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from picows import WSCloseCode

from academy.exception import (
    AcademyError,
    ExchangeConnectionError,
    ExchangeError,
)
from academy.exchange.cloud import protocol
from academy.exchange.cloud.attachments import Attachments, attach_arguments
from academy.exchange.cloud.calls import Calls, batched
from academy.exchange.cloud.connector import FIRST_PAUSE, LONGEST_PAUSE, Connector
from academy.exchange.cloud.conversation import Conversation
from academy.exchange.cloud.sender import MessageSender
from academy.exchange.cloud.watching import Watching
from academy.exchange.errors import unpack_error

if TYPE_CHECKING:
    from academy.exchange.cloud.attachments import Attachment
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.exchange.cloud.writer import Writer
    from academy.exchange.presence import PresenceCallback
    from academy.identifier import EntityId

logger = logging.getLogger(__name__)

_CLOSE_PATIENCE = 10.0


class Link:
    """A connection to one exchange and everything that has to survive its loss.

    `key` is what its users have in common: the exchange, and who they are there.

    Invariants: what `sender` has posted and what `calls` ask for is sent again through
    each new connection, in order, until it is confirmed. `_error` is set when there
    will be no more connections.

    Attributes:
        users: transports that share it.
        connector: makes the connections, and keeps the tokens for them.
        calls: what is asked of the exchange.
        sender: sends messages.
        attachments: receives them.
        watching: whom transports watch.
    """

    def __init__(
        self, factory: HttpExchangeFactory, token: str | None, patience: float
    ) -> None:
        self.users = 0
        self.key = factory.link_key(token)
        self._factory = factory
        self._patience = patience
        self.connector = Connector(factory, os.urandom(16), token)
        self.calls = Calls()
        self.sender = MessageSender(self.call)
        self.attachments = Attachments()
        self.watching = Watching()
        self._given_up = False
        self._error: AcademyError | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._run())

    # --- life

    @property
    def failed(self) -> bool:
        """Whether this link has given up."""
        return self._error is not None

    async def ready(self) -> None:
        """Wait for the first connection.

        Raises:
            ExchangeConnectionError: nobody answers, within the factory's retries.
            UnauthorizedError: the token is refused.
        """
        await asyncio.wait([self._ready])
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Disconnect, after what was posted is confirmed (10 s at most)."""
        await self._drained(None)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._fail(ExchangeError(f"the connection to {self._factory.url} was closed"))

    async def _drained(self, source: bytes | None) -> None:
        """Wait until what was posted is confirmed, unless that was in vain before.

        Large messages are waited for while they move: of one mailbox, or of all.
        """
        if self._given_up:
            return
        try:
            if not await self.sender.postings.drained(source, _CLOSE_PATIENCE):
                raise TimeoutError
            await asyncio.wait_for(self.sender.outbox.drained(), _CLOSE_PATIENCE)
        except TimeoutError:
            self._given_up = True
            logger.error("%s did not confirm all messages", self._factory.url)

    async def _run(self) -> None:
        url = self._factory.url
        try:
            websocket = await self.connector.connect(self._patience)
            pause = FIRST_PAUSE
            while True:
                conversation = Conversation(self, websocket)
                reason = await conversation.run()
                logger.warning("lost %s: %s", url, reason)
                restarting = websocket.code == WSCloseCode.SERVICE_RESTART.value
                if conversation.welcomed and not restarting:
                    pause = FIRST_PAUSE
                else:
                    # Something is there, but cannot do its work for now.
                    await asyncio.sleep(pause * random.uniform(0.5, 1))
                    pause = min(pause * 2, LONGEST_PAUSE)
                patience = self._factory.reconnect_timeout_s
                websocket = await self.connector.connect(patience)
                logger.info("connected to %s again", url)
        except AcademyError as error:
            self._fail(error)
        except Exception as error:
            logger.exception("the connection to %s failed", url)
            self._fail(ExchangeConnectionError(url, repr(error)))

    def use(self, writer: Writer) -> None:
        """Send through this connection what will come."""
        self.sender.writer = writer
        self._given_up = False
        if not self._ready.done():
            self._ready.set_result(None)

    def _fail(self, error: AcademyError) -> None:
        """Tell everybody who waits that nothing will come any more."""
        if self._error is not None:
            return
        self._error = error
        if not self._ready.done():
            self._ready.set_result(None)
        self.sender.fail(error)
        self.calls.fail(error)
        self.attachments.fail(error)

    # --- what transports use

    async def call(
        self,
        method: str,
        then: Callable[[Any], None] | None = None,
        /,
        **arguments: Any,
    ) -> Any:
        """Ask the exchange; survives a lost connection, since calls are idempotent.

        Args:
            method: what is asked for.
            then: told the result before anything that came behind it is read.
            **arguments: of the method.

        Raises:
            ExchangeError: the exchange refuses, or the arguments are too large.
        """
        if self._error is not None:
            raise self._error
        content = {"method": method, **arguments}
        after = self.sender.outbox.last_sequence
        number, done = self.calls.begin(content, after, then)
        record = protocol.numbered(protocol.CALL, number, content)
        try:
            if len(record) > protocol.CALL_BYTES:
                raise ExchangeError(
                    f"the call {method!r} has {len(record)} bytes, and an exchange "
                    f"takes {protocol.CALL_BYTES}"
                )
            if (writer := self.sender.writer) is not None:
                # Receipts go before, since the call may let go of what they are about.
                writer.put_late()
                writer.put(record)
            return await done
        finally:
            self.calls.drop(number)

    async def attach(self, box: Attachment) -> None:
        """Become the consumer of a mailbox."""

        def attached(problems: list[Any]) -> None:
            if problems[0] is None:
                self.attachments.add(box)

        try:
            (problem,) = await self.call(
                "attach", attached, mailboxes=[attach_arguments(box, box.token)]
            )
        except asyncio.CancelledError:
            self._abandon(box)
            raise
        if problem is not None:
            raise unpack_error(problem)

    def _abandon(self, box: Attachment) -> None:
        """Undo an attachment that may be under way, without waiting."""
        uid = box.mailbox_id.uid.bytes
        writer = self.sender.writer
        if writer is not None and self.attachments.get(uid) in (None, box):
            self.attachments.remove(uid)
            self.calls.tell(writer, method="detach", uid=box.mailbox_id.uid.hex)

    async def detach(self, box: Attachment, released: list[int]) -> None:
        """Let go of a mailbox, after what it has sent; give requests back unserved."""
        uid = box.mailbox_id.uid.bytes
        if self.attachments.get(uid) is not box:
            return
        # Attached until it is confirmed, since only who is attached may send it again.
        await self._drained(uid)
        if self.attachments.get(uid) is not box:
            return
        released = released + self.attachments.remove(uid)
        # Without a connection there is nothing to detach from: the next one
        # attaches only what is attached here.
        if (writer := self.sender.writer) is not None:
            with suppress(ExchangeError, TimeoutError):
                async with asyncio.timeout(_CLOSE_PATIENCE):
                    await self._let_go(writer, box.mailbox_id.uid.hex, released)

    async def _let_go(self, writer: Writer, uid: str, released: list[int]) -> None:
        *steps, last = batched(released, protocol.HELD_AT_ONCE) or [[]]
        for numbers in steps:
            self.calls.tell(
                writer, method="detach", uid=uid, released=numbers, more=True
            )
        await self.call("detach", uid=uid, released=last)

    async def watch(
        self, user: object, uids: Collection[EntityId], callback: PresenceCallback
    ) -> None:
        """Have a callback told where owners are; see `ExchangeTransport.watch`."""
        self.watching.add(user, uids, callback)
        for some in batched(uids):
            await self.call("watch", uids=[uid.uid.hex for uid in some])

    def unwatch(self, user: object, uids: Collection[EntityId] | None) -> None:
        """Tell a user of this link no more about these, or about anybody."""
        left = self.watching.remove(user, uids)
        # Nobody need wait for it: news of them are dropped here, and the next
        # connection watches only what is watched here.
        if (writer := self.sender.writer) is not None:
            for some in batched(left):
                uids_left = [uid.hex() for uid in some]
                self.calls.tell(writer, method="unwatch", uids=uids_left)
