"""How many mailboxes there are, in which state, and what waits in them."""

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
