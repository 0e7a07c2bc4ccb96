"""The hosted exchange: one server that everybody connects out to."""

from academy.exchange.cloud.client import HttpExchangeFactory, HttpExchangeTransport
from academy.exchange.cloud.credentials import find_url
from academy.exchange.cloud.globus import GlobusExchangeFactory, GlobusExchangeTransport
from academy.exchange.cloud.spawn import spawn_http_exchange

__all__ = [
    "GlobusExchangeFactory",
    "GlobusExchangeTransport",
    "HttpExchangeFactory",
    "HttpExchangeTransport",
    "find_url",
    "spawn_http_exchange",
]
