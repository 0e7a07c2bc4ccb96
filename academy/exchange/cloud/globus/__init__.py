"""Globus Auth: the exchange of its users, and what ours asks Globus about them."""

from academy.exchange.cloud.globus.factory import (
    GlobusAgentRegistration,
    GlobusExchangeFactory,
    GlobusExchangeTransport,
)

__all__ = [
    "GlobusAgentRegistration",
    "GlobusExchangeFactory",
    "GlobusExchangeTransport",
]
