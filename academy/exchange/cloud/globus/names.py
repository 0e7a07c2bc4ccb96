"""What the hosted exchange is called at Globus, and how to say otherwise."""

from __future__ import annotations

import os

PUBLIC_EXCHANGE = "https://exchange.academy-agents.org/v1"
"""The exchange that everybody with a Globus login may use; it speaks protocol v1."""

EXCHANGE_VARIABLE = "ACADEMY_EXCHANGE_CLIENT_ID"
EXCHANGE_SECRET_VARIABLE = "ACADEMY_EXCHANGE_SECRET"
SCOPE_VARIABLE = "ACADEMY_GLOBUS_SCOPE_ID"
CLIENT_VARIABLE = "ACADEMY_GLOBUS_CLIENT_ID"
SECRET_VARIABLE = "ACADEMY_GLOBUS_CLIENT_SECRET"


def exchange_client_id() -> str:
    """Return the id of the exchange's resource server."""
    public = "ca1e2fbf-4e73-40a6-b2ab-c9458e5fcf99"
    return os.environ.get(EXCHANGE_VARIABLE) or public


def exchange_scope(exchange: str) -> str:
    """Return the scope of tokens for an exchange, given its id."""
    return f"https://auth.globus.org/scopes/{exchange}/academy_exchange"


def exchange_scope_id() -> str:
    """Return the id of this scope."""
    public = "a9e8d535-83e9-40c6-baf4-3f16538b2f10"
    return os.environ.get(SCOPE_VARIABLE) or public
