"""What a broker has done, and what is in its mailboxes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from academy.exchange.mailbox import Mailbox

AT_ONCE = 5_000
"""Mailboxes that are counted before others get their turn."""


@dataclass
class Census:
    """Counts of one broker.

    Attributes:
        states: mailboxes that are attached, detached (were attached before),
            registered (never were), or terminated.
        waiting: messages in mailboxes, those on lease among them.
        waiting_bytes: their bytes.
        leased: messages that were delivered and are not settled.
    """

    states: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    waiting_bytes: int = 0
    leased: int = 0


@dataclass
class Traffic:
    """What a broker has done since it was made.

    Attributes:
        stored: messages that it has taken.
        settled: messages that were dealt with and removed one by one.
        delivered: messages handed to consumers.
        redelivered: those of them that an earlier incarnation may have had.
        refused: messages that it has refused, by the name of the error.
    """

    stored: int = 0
    settled: int = 0
    delivered: int = 0
    redelivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)


async def take_census(boxes: Iterable[Mailbox]) -> Census:
    """Count mailboxes without holding up the event loop."""
    census = Census()
    for number, box in enumerate(list(boxes), 1):
        census.states[_state(box)] += 1
        census.waiting += box.count
        census.waiting_bytes += box.bytes
        if box.session is not None:
            census.leased += len(box.leased)
        if not number % AT_ONCE:
            await asyncio.sleep(0)
    return census


def _state(box: Mailbox) -> str:
    if box.record.terminated:
        return "terminated"
    if box.session is not None:
        return "attached"
    return "detached" if box.record.epoch else "registered"
