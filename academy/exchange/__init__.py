"""Exchanges: mailboxes that carry messages between agents and users."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from academy.exchange.client import (
    AgentExchangeClient,
    ExchangeClient,
    UserExchangeClient,
    exchange_context,
)
from academy.exchange.client_config import ExchangeClientConfig
from academy.exchange.factory import ExchangeFactory
from academy.exchange.mailbox_status import MailboxStatus
from academy.exchange.transport import AgentRegistration, ExchangeTransport

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory, HttpExchangeTransport
    from academy.exchange.cloud.globus import (
        GlobusExchangeFactory,
        GlobusExchangeTransport,
    )
    from academy.exchange.local import LocalExchangeFactory, LocalExchangeTransport

# Imported when asked for: workers do not pay for what they do not use.
_LAZY = {
    "LocalExchangeFactory": "academy.exchange.local",
    "LocalExchangeTransport": "academy.exchange.local",
    "HttpExchangeFactory": "academy.exchange.cloud.client",
    "HttpExchangeTransport": "academy.exchange.cloud.client",
    "GlobusExchangeFactory": "academy.exchange.cloud.globus",
    "GlobusExchangeTransport": "academy.exchange.cloud.globus",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AgentExchangeClient",
    "AgentRegistration",
    "ExchangeClient",
    "ExchangeClientConfig",
    "ExchangeFactory",
    "ExchangeTransport",
    "GlobusExchangeFactory",
    "GlobusExchangeTransport",
    "HttpExchangeFactory",
    "HttpExchangeTransport",
    "LocalExchangeFactory",
    "LocalExchangeTransport",
    "MailboxStatus",
    "UserExchangeClient",
    "exchange_context",
]
