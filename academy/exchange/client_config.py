"""What a caller may choose about an exchange client."""

from __future__ import annotations

from dataclasses import dataclass

from academy.message.stream import STREAM_BYTES, STREAM_ITEMS


@dataclass(frozen=True)
class ExchangeClientConfig:
    """How a client shows that it is alive, how long it waits, and how much it takes.

    Attributes:
        heartbeat_interval: seconds between two signs of life of one connection.
        stale_heartbeat_threshold: how many missed intervals make an entity inactive.
        call_timeout: seconds that a call may take, and of a stream the wait for each
            item, for handles that choose no timeout of their own; None is for ever.
        stream_items: of a stream, how many may be on their way and not taken yet.
        stream_bytes: their bytes; the item that reaches it is sent as a whole.
    """

    heartbeat_interval: float = 30
    stale_heartbeat_threshold: float = 3
    call_timeout: float | None = None
    stream_items: int = STREAM_ITEMS
    stream_bytes: int = STREAM_BYTES

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.call_timeout is not None and not self.call_timeout > 0:
            raise ValueError(
                "call_timeout is a positive number of seconds, or None, not "
                f"{self.call_timeout!r}."
            )
        for name in ("stream_items", "stream_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value < 1 << 32:
                raise ValueError(f"{name} is at least 1, and below 2³², not {value!r}.")

    @property
    def stale_after(self) -> float:
        """Seconds of silence after which an entity counts as inactive."""
        return self.heartbeat_interval * self.stale_heartbeat_threshold
