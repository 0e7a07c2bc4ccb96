"""What a caller may choose about an exchange client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExchangeClientConfig:
    """How a client shows that it is alive, and how long it waits for others.

    Attributes:
        heartbeat_interval: seconds between two signs of life of one connection.
        stale_heartbeat_threshold: how many missed intervals make an entity inactive.
        call_timeout: seconds that a call may take, and of a stream the wait for each
            item, for handles that choose no timeout of their own; None is for ever.
    """

    heartbeat_interval: float = 30
    stale_heartbeat_threshold: float = 3
    call_timeout: float | None = None

    def __post_init__(self) -> None:
        """Refuse a timeout that is none."""
        if self.call_timeout is not None and not self.call_timeout > 0:
            raise ValueError(
                "call_timeout is a positive number of seconds, or None, not "
                f"{self.call_timeout!r}."
            )

    @property
    def stale_after(self) -> float:
        """Seconds of silence after which an entity counts as inactive."""
        return self.heartbeat_interval * self.stale_heartbeat_threshold
