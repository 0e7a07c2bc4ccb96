"""Large messages that come from an exchange, and what waits behind them."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from academy.exception import ProtocolError
from academy.exchange.cloud import protocol
from academy.exchange.store.bodies import Body
from academy.serialize import ALIGNMENT

if TYPE_CHECKING:
    from academy.exchange.inbox import Inbox
    from academy.message import Message

_REPORTED = protocol.WINDOW // 4
"""Bytes after which the far side is told how much was taken."""

_EMPTY = memoryview(b"")

Pair = tuple[bytes, bytes]


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that is here or is coming.

    Attributes:
        body: of a large message.
        view: where its bytes are collected.
        received: how many are here.
        told: how many the exchange knows of.
        complete: whether it can be handed on.
    """

    message: Message
    inbox: Inbox
    body: Body | None = None
    view: memoryview = _EMPTY
    received: int = 0
    told: int = 0
    complete: bool = True

    @property
    def pair(self) -> Pair:
        """Between whom order is kept."""
        return self.message.dest.uid.bytes, self.message.src.uid.bytes


class Downloads:
    """Collects large messages, each in one buffer; keeps the order of what is behind.

    Invariant: `lanes` has what was not handed on, by pair and oldest first; the first
    of each lane is not complete. `_coming` has what is not complete, by number.
    """

    def __init__(self) -> None:
        self.lanes: dict[Pair, deque[Arrival]] = {}
        self._coming: dict[int, Arrival] = {}
        self._send: Callable[[bytes], None] = _nowhere

    def connected(self, send: Callable[[bytes], None]) -> None:
        """Ask for what is missing through this connection, once it is offered."""
        self._send = send

    def disconnected(self) -> None:
        """Keep what is here for the next connection."""
        self._send = _nowhere

    def take(self, message: Message, inbox: Inbox, reference: bytes | None) -> None:
        """Take a message that is large, or may have to wait behind one."""
        arrival = Arrival(message, inbox)
        if reference is not None:
            self._begin(arrival, Body.unpacked(reference))
            return
        lane = self.lanes.get(arrival.pair)
        if lane is None:
            inbox.deliver(message)
        elif inbox.admit(message.lease):
            lane.append(arrival)

    def _begin(self, arrival: Arrival, body: Body) -> None:
        number = arrival.message.lease
        known = self._coming.get(number)
        if known is not None and known.body == body:
            known.told = known.received
            self._send(protocol.taken(number, known.received))
            return
        if known is not None:  # an exchange that lost its latest messages began anew
            self._remove(known)
        elif not arrival.inbox.admit(number):
            self._send(protocol.taken(number, body.size))
            return
        arrival.body, arrival.complete = body, False
        arrival.view = _aligned(body.size)
        arrival.message.fill(arrival.view)
        self._coming[number] = arrival
        self.lanes.setdefault(arrival.pair, deque()).append(arrival)
        self._send(protocol.taken(number, 0))

    def part(self, number: int, offset: int, data: memoryview) -> None:
        """Take a part of a message.

        Raises:
            ProtocolError: it does not fit.
        """
        arrival = self._coming.get(number)
        if arrival is None:
            return  # its mailbox was lost or closed meanwhile
        end = offset + len(data)
        if offset != arrival.received or end > len(arrival.view):
            raise ProtocolError(f"bytes {offset} to {end} of message {number}")
        arrival.view[offset:end] = data
        arrival.received = end
        if end == len(arrival.view):
            del self._coming[number]
            arrival.complete = True
            self._send(protocol.taken(number, end))
            self._hand_on(arrival.pair)
        elif end - arrival.told >= _REPORTED:
            arrival.told = end
            self._send(protocol.taken(number, end))

    def drop(self, number: int) -> None:
        """Learn that the rest of a message will not come."""
        arrival = self._coming.get(number)
        if arrival is not None:
            self._remove(arrival)

    def _remove(self, arrival: Arrival) -> None:
        del self._coming[arrival.message.lease]
        self.lanes[arrival.pair].remove(arrival)
        self._hand_on(arrival.pair)

    def _hand_on(self, pair: Pair) -> None:
        lane = self.lanes[pair]
        while lane and lane[0].complete:
            arrival = lane.popleft()
            arrival.inbox.deliver(arrival.message, admitted=True)
        if not lane:
            del self.lanes[pair]

    def forget(self, uid: bytes) -> list[int]:
        """Forget a mailbox; return the numbers of what waited to be handed on."""
        waiting = []
        for pair in [pair for pair in self.lanes if pair[0] == uid]:
            for arrival in self.lanes.pop(pair):
                self._coming.pop(arrival.message.lease, None)
                if arrival.complete:
                    waiting.append(arrival.message.lease)
        return waiting

    def held(self, uid: bytes) -> Iterator[bytes]:
        """Name the requests that are here and wait to be handed on."""
        for pair, lane in self.lanes.items():
            if pair[0] == uid:
                for arrival in lane:
                    if arrival.complete and arrival.message.is_request():
                        yield arrival.message.tag

    def coming(self) -> dict[str, list[int]]:
        """Return the numbers of what is not complete, by mailbox."""
        found: dict[str, list[int]] = {}
        for number, arrival in self._coming.items():
            uid = arrival.message.dest.uid.hex
            found.setdefault(uid, []).append(number)
        return found


def _nowhere(record: bytes) -> None:
    """Lose what is meant for a connection that is gone."""


def _aligned(size: int) -> memoryview:
    """Make a buffer that ends where arrays may begin.

    An encoded value pads its arrays so that they are aligned with regard to its end.
    Memory of its own goes back to the system when the last array in it is gone.
    """
    start = -size % ALIGNMENT
    return memoryview(mmap.mmap(-1, start + size))[start:]
