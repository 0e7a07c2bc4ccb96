"""Pools of blocks: one for each shape that launches ask for, and no more than some."""

from __future__ import annotations

import functools
import math
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.base import ParslExecutor as ParslEngine
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from academy.executors.parsl.engine import fresh_executor
from academy.executors.parsl.shapes import (
    Request,
    changes_for,
    describe,
    pool_label,
    read_request,
)
from academy.executors.parsl.tasks import taker_of
from academy.executors.resources import ResourceSpec

# As Parsl has it.
DEFAULT_PORTS = (54000, 55000)
# Ports that pools of this process have chosen, and may not have bound yet.
_chosen: set[int] = set()
_choosing = threading.Lock()


class Pool:
    """A Parsl executor with blocks of one shape: as configured, or as launches ask.

    What of it ends up in a job script is chosen with the first look at it, and stays.

    Attributes:
        pattern: the Parsl executor as configured.
        block: what differs from it; None if nothing does.
        label: of the Parsl executor that is started.
        engine: the Parsl executor that runs, while one does.
        pending: how many futures of its tasks are not done.
        idle_since: when `pending` became 0, by the monotonic clock.
        is_leaving: whether its executor is about to be ended.
        is_asked_for: whether it was there from the beginning, or a launch has asked
            for it, rather than a preview.
    """

    def __init__(
        self, pattern: ParslEngine, config: Config, block: ResourceSpec | None
    ) -> None:
        self.pattern: Any = pattern
        self.block = block
        self.label = str(pattern.label)
        self.engine: Any | None = None
        self.pending = 0
        self.idle_since = 0.0
        self.is_leaving = False
        self.is_asked_for = block is None
        self._changes: Mapping[str, Any] = {}
        # Without a strategy, Parsl starts the initial blocks, and no others ever.
        self._waits = config.strategy not in (None, "none")
        self._has_log_config = not isinstance(config.initialize_logging, bool)
        if block is not None:
            self.label = pool_label(self.label, block)
            self._changes = changes_for(pattern, self.label, block)
            if not self._waits:
                self._changes["provider"].init_blocks = 1
        self._port: int | None = None
        self._first_block = 0
        self._plan: Any | None = None

    @functools.cached_property
    def max_workers(self) -> int | None:
        """How many tasks can run at a time; None if nobody can tell."""
        changed = self.block is not None
        return _max_workers(self.fresh() if changed else self.pattern)

    def fresh(self) -> Any:
        """Return a Parsl executor of this pool that has not been started."""
        fresh: Any = fresh_executor(self.pattern, self._changes, self._first_block)
        if isinstance(fresh, HighThroughputExecutor) and fresh.worker_port is None:
            ports = fresh.worker_port_range or DEFAULT_PORTS
            fresh.worker_port = self._worker_port(*ports)
        return fresh

    def planned(self, run_dir: str) -> Any:
        """Return what `fresh` will be once it has started in a directory."""
        plan = self._plan
        if plan is not None and plan.run_dir == run_dir and _is_free(plan.worker_port):
            return plan
        self._plan = engine = self.fresh()
        engine.run_dir = run_dir
        engine.cert_dir = f"{engine.logdir}/certificates" if engine.encrypted else None
        log_config = f"{engine.logdir}/log_config/log_config.pkl"
        engine.logconf_path = log_config if self._has_log_config else None
        engine.initialize_scaling()
        return engine

    def add_task(self) -> None:
        """Count a task that has been submitted."""
        self.pending += 1

    def drop_task(self) -> None:
        """Count a task whose future is done."""
        self.pending -= 1
        self.idle_since = time.monotonic()

    def ended(self) -> None:
        """Forget the executor that ran, but not how many blocks it has had."""
        counter = getattr(self.engine, "_block_id_counter", None)
        if counter is not None:
            self._first_block = counter.count
        self.engine = None
        self.is_leaving = False
        self._plan = None

    def _worker_port(self, first: int, end: int) -> int:
        if self._port is None or not _is_free(self._port):
            self._port = _choose_port(first, end)
        return self._port


def _choose_port(first: int, end: int) -> int:
    with _choosing:
        ports = random.sample(range(first, end), end - first)
        # Those of pools that have not started yet are free as well.
        ports.sort(key=_chosen.__contains__)
        for port in ports:
            if _is_free(port):
                _chosen.add(port)
                return port
    raise OSError(f"No port is free for an interchange, of {first} to {end - 1}.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the interchange does, or connections that are closing would be in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


class Pools:
    """The pools of one Parsl executor of a configuration.

    Not to be used by two threads at a time.

    Args:
        pattern: the Parsl executor as configured.
        config: the configuration that it is in.
        resources: what holds where a launch says nothing.
        max_pools: how many shapes may have blocks at the same time.

    Raises:
        ValueError: The resources or the number are wrong; says how.
    """

    def __init__(
        self,
        pattern: ParslEngine,
        config: Config,
        resources: Mapping[str, Any],
        max_pools: int,
    ) -> None:
        if max_pools < 1:
            raise ValueError(f"max_pools is at least 1; it was {max_pools}.")
        self.usual = Pool(pattern, config, None)
        self._config = config
        self._resources = dict(resources)
        self._max = max_pools
        self._shaped: dict[str, Pool] = {}
        if resources:
            self.read({})

    def read(self, submit_kwargs: Mapping[str, Any]) -> tuple[Pool, Request]:
        """Return where a launch goes, and all that it asks for.

        Raises:
            ValueError: Says which key or value is wrong, and what would be right.
        """
        pattern = self.usual.pattern
        request = read_request(pattern, submit_kwargs, self._resources)
        if request.block is None:
            return self.usual, request
        label = pool_label(self.usual.label, request.block)
        if label not in self._shaped:
            self._shaped[label] = Pool(pattern, self._config, request.block)
        return self._shaped[label], request

    def __iter__(self) -> Iterator[Pool]:
        return iter([self.usual, *self._shaped.values()])

    def make_room(self, pool: Pool) -> Pool | None:
        """Return the pool that has to end before this one may begin, if any.

        Raises:
            ValueError: There are as many as there may be, and none of them is idle.
        """
        if pool is self.usual or _is_active(pool):
            return None
        active = [p for p in self._shaped.values() if _is_active(p)]
        if len(active) < self._max:
            return None
        idle = [p for p in active if not p.pending]
        if idle:
            return min(idle, key=lambda p: p.idle_since)
        shapes = "; ".join(
            f"{p.label} ({describe(p.block)})" for p in active if p.block is not None
        )
        raise ValueError(
            f"{taker_of(self.usual.pattern)} has agents in blocks of {len(active)} "
            f"other shapes, which is max_pools: {shapes}. Ask for one of these, wait "
            "until one has no agents, or raise max_pools."
        )


def _is_active(pool: Pool) -> bool:
    return pool.pending > 0 or (pool.engine is not None and not pool.is_leaving)


def _max_workers(engine: Any) -> int | None:
    if isinstance(engine, ThreadPoolExecutor):
        return int(engine.max_threads) if engine.max_threads else None
    if not isinstance(engine, HighThroughputExecutor):
        return None
    provider: Any = engine.provider
    per_node = engine.max_workers_per_node
    if any(getattr(provider, h, None) for h in ("cores_per_node", "mem_per_node")):
        per_node = min(per_node, engine.workers_per_node)
    if engine.available_accelerators:
        per_node = min(per_node, len(engine.available_accelerators))
    if isinstance(provider, LocalProvider):
        per_node = min(per_node, (os.cpu_count() or 1) / engine.cores_per_worker)
    if math.isinf(per_node):
        return None  # As many as a node has cores for.
    # A simple launcher starts one worker pool per block, on its first node.
    is_simple = isinstance(provider.launcher, SimpleLauncher)
    nodes = 1 if is_simple else provider.nodes_per_block
    return int(per_node) * int(nodes) * int(provider.max_blocks)
