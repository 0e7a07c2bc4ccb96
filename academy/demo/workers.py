"""Where the demonstration's agents run, and the exchange between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from academy.demo.settings import Settings

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from academy.exchange.cloud import HttpExchangeFactory


def make_executor(settings: Settings) -> Executor:
    """Make the executor that hosts all agents at the same time; nothing starts yet.

    Raises:
        ValueError: It has fewer workers than there are agents, so that replicas
            would wait for neighbours that never start.
    """
    from academy.executors.base import max_workers
    from academy.executors.parsl import ParslExecutor

    wanted = settings.executor
    agents = settings.simulation.replicas + 1
    needed = -(-agents // wanted.agents_per_worker)
    if wanted.parsl_config is None:
        executor: Executor = ParslExecutor.local(needed)
    else:
        executor = ParslExecutor(wanted.parsl_config)
    workers = max_workers(executor)
    if workers is not None and workers < needed:
        executor.shutdown()
        raise ValueError(
            f"{agents} agents run at the same time, {wanted.agents_per_worker} per "
            f"worker, but {wanted.parsl_config} has {workers} workers. Raise "
            "max_workers_per_node or nodes_per_block there, or agents_per_worker."
        )
    if wanted.agents_per_worker > 1:
        from academy.executors.event_loop import EventLoopExecutor

        executor = EventLoopExecutor(
            executor, agents_per_worker=wanted.agents_per_worker
        )
    return executor


@contextmanager
def hosted_exchange(settings: Settings) -> Iterator[HttpExchangeFactory]:
    """Use the exchange of the settings, or start one and stop it at the end."""
    from academy.exchange.cloud import HttpExchangeFactory, spawn_http_exchange
    from academy.socket import address_by_hostname

    wanted = settings.exchange
    if wanted.url is not None:
        yield HttpExchangeFactory(wanted.url)
        return
    if wanted.host is not None:
        host = wanted.host
    elif settings.executor.parsl_config is None:
        host = "127.0.0.1"
    else:
        host = address_by_hostname()
    with (
        TemporaryDirectory(prefix="academy-demo-") as folder,
        spawn_http_exchange(
            host, wanted.port, database=Path(folder) / "exchange.sqlite"
        ) as factory,
    ):
        yield factory
