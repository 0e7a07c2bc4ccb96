"""Handles: references to agents, through which their actions are called."""

from academy.handle.proxy import ProxyHandle
from academy.handle.reference import DEFAULT_POLLING_INTERVAL, Handle, unknown_action

__all__ = ["DEFAULT_POLLING_INTERVAL", "Handle", "ProxyHandle", "unknown_action"]
