"""What an exchange counts of an agent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AgentStats:
    """Messages and actions of one agent since its exchange has started.

    Attributes:
        incoming: Messages received.
        outgoing: Messages sent.
        completed: Actions that have ended, with a result or an error.
        in_progress: Actions that are running.
        queued: Messages that wait in the mailbox.
    """

    incoming: int
    outgoing: int
    completed: int
    in_progress: int
    queued: int
