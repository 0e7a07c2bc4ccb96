"""What a caller may choose about an exchange client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExchangeClientConfig:
    """How a client shows that it is alive, and when it takes others for dead.

    Attributes:
        heartbeat_interval: seconds between two signs of life of one connection.
        stale_heartbeat_threshold: how many missed intervals make an entity inactive.
    """

    heartbeat_interval: float = 30
    stale_heartbeat_threshold: float = 3

    @property
    def stale_after(self) -> float:
        """Seconds of silence after which an entity counts as inactive."""
        return self.heartbeat_interval * self.stale_heartbeat_threshold
