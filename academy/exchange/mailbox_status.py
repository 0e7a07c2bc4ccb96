"""What an exchange knows about a mailbox."""

from __future__ import annotations

from enum import Enum


class MailboxStatus(Enum):
    """State of a mailbox as its exchange sees it."""

    MISSING = "MISSING"
    """No such mailbox was ever registered."""
    ACTIVE = "ACTIVE"
    """Registered; messages to it are kept, and its owner is not known to be away."""
    INACTIVE = "INACTIVE"
    """Its owner was attached and has missed its heartbeats; messages are kept."""
    TERMINATED = "TERMINATED"
    """Its owner is gone for good; messages to it are refused."""
