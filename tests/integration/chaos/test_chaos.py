"""Everything breaks in the midst of 10,000 calls: each has one outcome, in order.

A seed decides which calls are made, what breaks, when, and for how long. To see a run
again, or others: `CHAOS_SEEDS="17 18" make test ARGS="tests/integration/chaos"`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.integration.chaos.disasters import ALL
from tests.integration.chaos.site import Site
from tests.integration.chaos.storm import Storm
from tests.support.clock import Clock
from tests.support.disk import SmallDisk
from tests.support.redis import Redis
from tests.support.server import ExchangeServer
from tests.support.servers import exchange_servers

CALLS = 10_000
TOKEN_LIFETIME = 2
"""Seconds; tokens are renewed all the time."""
MORE = range(1000, 1050)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

Make: TypeAlias = Callable[[Path, random.Random], Any]


@contextmanager
def one_server_over_sqlite(
    folder: Path,
    dice: random.Random,
    *,
    tls: bool = False,
    durability: str = "process",
) -> Iterator[Site]:
    with SmallDisk(folder / "disk", megabytes=256) as disk:
        clock = Clock(folder / "clock")
        path = str(disk.path / "exchange.db")
        backend = {"path": path, "durability": durability}
        auth = {"key_file": str(folder / "key"), "token_lifetime": TOKEN_LIFETIME}
        server = ExchangeServer(folder, tls=tls, auth=auth, backend=backend)
        server.environment |= clock.environment()
        with server:
            yield Site([server], dice, disk=disk, clock=clock)


@contextmanager
def three_servers_over_redis(folder: Path, dice: random.Random) -> Iterator[Site]:
    clock = Clock(folder / "clock")
    with Redis(folder / "redis") as redis, ExitStack() as running:
        config = {"auth": {"token_lifetime": TOKEN_LIFETIME}}
        servers = exchange_servers(folder, redis, config=config)
        for server in servers:
            server.environment |= clock.environment()
            running.enter_context(server)
        yield Site(servers, dice, clock=clock, redis=redis)


SITES: dict[str, Make] = {
    "sqlite": one_server_over_sqlite,
    # Its commits take a while, so that more happens before they are done.
    "tls": partial(one_server_over_sqlite, tls=True, durability="power"),
    "redis": three_servers_over_redis,
}


SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "").split()]
RUNS = [(site, seed) for site in SITES for seed in SEEDS]
RUNS = RUNS or [(site, seed) for seed, site in enumerate(SITES, 1)]


async def weather(make: Make, folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    with make(folder, dice) as site:
        possible = [disaster for disaster in ALL if site.can_have(disaster)]
        disasters = dice.sample(possible, len(possible))
        storm = Storm(site, folder, seed, CALLS)
        faults = ["it was not over in time"]
        try:
            faults = await storm.run(disasters)
        finally:
            print(f"CHAOS_SEEDS={seed}", *faults, *storm.events, sep="\n")
            print(storm.ledger.interrupted(), "interrupted")
            _show_logs(folder)
    assert faults == [], f"seed {seed}"
    assert storm.ledger.interrupted() < 1000, "no more than were under way"


def _show_logs(folder: Path) -> None:
    for log in folder.glob("**/*.log"):
        print(f"--- {log.name}", log.read_text()[-5000:], sep="\n")


@pytest.mark.parametrize(("site", "seed"), RUNS)
async def test_nothing_is_lost_doubled_or_reordered(
    tmp_path: Path, site: str, seed: int
) -> None:
    await weather(SITES[site], tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", MORE)
@pytest.mark.parametrize("site", SITES)
async def test_nothing_is_lost_doubled_or_reordered_whatever_the_seed(
    tmp_path: Path, site: str, seed: int
) -> None:
    await weather(SITES[site], tmp_path, seed)
