"""Event loops in which a benchmark's own process can run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop

# The user's loop is asyncio's unless the user chose another. The processes that are
# ours (server, workers) run uvloop in any case.
LOOPS: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
