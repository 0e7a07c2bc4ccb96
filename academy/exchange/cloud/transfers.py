"""The server's end of one connection's transfers: large messages, part by part."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from academy.exception import ProtocolError, StorageError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.pump import Outgoing, Pump
from academy.exchange.store import Envelope
from academy.exchange.store.bodies import Body

if TYPE_CHECKING:
    from academy.exchange.broker import Broker
    from academy.exchange.cloud.writer import Writer
    from academy.exchange.mailbox import Session
    from academy.serialize import Part

logger = logging.getLogger(__name__)

_REPORTED = protocol.WINDOW // 4
"""Bytes after which the far side is told how much was taken."""


class Transfers:
    """Bodies that a client sends, and those that it is sent.

    Invariants: `_told` is what the client knows to be taken of its uploads; `_offered`
    has the large messages that were delivered and not received.
    """

    def __init__(self, broker: Broker, session: Session, writer: Writer) -> None:
        self.pump = Pump(writer)
        self._broker = broker
        self._session = session
        self._writer = writer
        self._told: dict[int, int] = {}
        self._offered: dict[int, Envelope] = {}

    async def learn(self, kind: int, record: memoryview) -> None:
        """Take a record that is about a transfer.

        Raises:
            ProtocolError: no client sends it.
        """
        if kind == protocol.PART:
            await self._take(*protocol.read_part(record))
        elif kind == protocol.TAKEN:
            self._taken(*protocol.read_taken(record))
        else:
            raise ProtocolError(f"records of kind {kind} come from servers")

    # --- to the exchange

    async def _take(self, number: int, offset: int, data: memoryview) -> None:
        uploads, session = self._broker.large.uploads, self._session.uid
        try:
            state = await uploads.write(session, number, offset, data)
        except StorageError as error:
            logger.error("gave up an upload: %s", error)
            uploads.drop(session, number)
            self._writer.put(protocol.drop(number, error))
            return
        if state is None:
            return
        taken, size = state
        if taken == size:
            self._told.pop(number, None)
        elif taken - self._told.get(number, 0) >= _REPORTED:
            self._told[number] = taken
        else:
            return
        self._writer.put(protocol.taken(number, taken))

    # --- from the exchange

    def deliver(self, envelope: Envelope) -> None:
        """Learn of a large message that was offered to the client."""
        self._offered[envelope.number] = envelope

    def forget(self, uid: bytes) -> None:
        """Send no more to a mailbox."""
        for number, envelope in list(self._offered.items()):
            if envelope.dest == uid:
                self._end(number)

    def _end(self, number: int) -> None:
        del self._offered[number]
        self.pump.stop(number)

    def _taken(self, number: int, offset: int) -> None:
        envelope = self._offered.get(number)
        if envelope is None:
            return  # its mailbox is no longer the client's
        body = Body.unpacked(envelope.payload)
        if offset > body.size:
            raise ProtocolError(f"{offset} bytes of {body.size} were not sent")
        if offset == body.size:
            self._end(number)
            self._broker.large.received(self._session, number)
        elif not self.pump.taken(number, offset):

            async def read(at: int, size: int) -> list[Part]:
                return [await self._broker.bodies.read(body.key, at, size)]

            def failed(error: StorageError) -> None:
                logger.error("message %d cannot be sent: %s", number, error)
                self._end(number)
                self._writer.put(protocol.drop(number, error))

            self.pump.start(Outgoing(number, body.size, offset, read, failed))
