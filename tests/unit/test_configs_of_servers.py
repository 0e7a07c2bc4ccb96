"""Configurations of several servers: what each program itself says about its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.cloud.security.certificate import Certificate
from tests.support.server import ExchangeServer
from tests.support.servers import CONFIGS, Balancer


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_load_balancer_finds_no_fault_with_its_configuration(
    tmp_path: Path, kind: str
) -> None:
    server = ExchangeServer(tmp_path / "server", tls=True)
    Certificate.made_here(server.home / "exchange.pem")
    balancer = Balancer(kind, tmp_path / kind, [server] * 3)
    checked = subprocess.run(balancer.check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr


async def test_servers_read_their_configuration() -> None:
    config = ExchangeServingConfig.from_toml(CONFIGS / "exchange.toml")
    namespaces = Namespaces(config.backend, config.limits.broker_limits())
    assert config.backend.kind == "redis"
    assert namespaces.ownership is not None
    await namespaces.ownership.close()


def test_redis_is_told_to_lose_nothing() -> None:
    lines = (CONFIGS / "redis.conf").read_text().splitlines()
    assert {"appendonly yes", "maxmemory-policy noeviction"} <= set(lines)


def test_redis_needs_its_url(tmp_path: Path) -> None:
    file = tmp_path / "exchange.toml"
    file.write_text('[backend]\nkind = "redis"\n')
    with pytest.raises(ValueError, match="needs its url"):
        ExchangeServingConfig.from_toml(file)


def test_a_password_of_redis_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "exchange.toml"
    file.write_text('[backend]\nkind = "redis"\nurl = "redis://:s3cret@h"\n')
    config = ExchangeServingConfig.from_toml(file)
    described = ExchangeServingConfig.settings(file).describe(config)
    assert "s3cret" not in f"{config!r} {described} {config.backend.redis()!r}"
