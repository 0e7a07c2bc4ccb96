"""The exchange of a storm: one server, or several that serve the same mailboxes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from academy.exchange import HttpExchangeFactory
from tests.support.clock import Clock
from tests.support.disk import SmallDisk
from tests.support.redis import Redis
from tests.support.server import ExchangeServer


class Site:
    """Servers that serve the same mailboxes, and what they stand on.

    Args:
        servers: started; each new connection goes to any of those that run.
        dice: which of them.
        disk: where they store, if it can be filled.
        clock: which they all read, if it can be set.
        redis: where they store, if they share one.

    Attributes:
        busy: held while something happens that is to be over before the next.
    """

    def __init__(
        self,
        servers: Sequence[ExchangeServer],
        dice: random.Random,
        *,
        disk: SmallDisk | None = None,
        clock: Clock | None = None,
        redis: Redis | None = None,
    ) -> None:
        self.servers = servers
        self.disk = disk
        self.clock = clock
        self.redis = redis
        self.busy = asyncio.Lock()
        self._dice = dice

    def can_have(self, disaster: object) -> bool:
        """Whether it stands on what a disaster happens to."""
        stands_on = {
            "fill_disk": self.disk,
            "restart_redis": self.redis,
            "set_clock": self.clock,
        }
        name = getattr(disaster, "__name__", "")
        return stands_on.get(name, self) is not None

    def port(self) -> int:
        """Return where the next connection goes, as a load balancer would choose."""
        running = [s for s in self.servers if s.process is not None] or self.servers
        return self._dice.choice(running).port

    def factory(self, port: int | None = None, **options: Any) -> HttpExchangeFactory:
        """Make a factory of clients, through a proxy if its port is given."""
        return self.servers[0].factory(port or self.port(), **options)
