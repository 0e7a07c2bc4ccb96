"""The hosted exchange: one server that everybody connects out to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from academy.exchange.cloud.client import HttpExchangeFactory, HttpExchangeTransport
from academy.exchange.cloud.credentials import find_url

if TYPE_CHECKING:
    from academy.exchange.cloud.globus import (
        GlobusExchangeFactory,
        GlobusExchangeTransport,
    )
    from academy.exchange.cloud.spawn import spawn_http_exchange

# Imported when asked for: they load aiohttp and pydantic-settings, for which a worker
# that only connects would wait as long as for all the rest.
_LAZY = {
    "GlobusExchangeFactory": "academy.exchange.cloud.globus",
    "GlobusExchangeTransport": "academy.exchange.cloud.globus",
    "spawn_http_exchange": "academy.exchange.cloud.spawn",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "GlobusExchangeFactory",
    "GlobusExchangeTransport",
    "HttpExchangeFactory",
    "HttpExchangeTransport",
    "find_url",
    "spawn_http_exchange",
]
