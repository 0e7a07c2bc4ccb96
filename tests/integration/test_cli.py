"""The `academy` command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from socket import gethostname

import psutil
import pytest

from academy.exchange.cloud import HttpExchangeFactory
from academy.exchange.cloud.operations.daemon import Daemon, daemons, stop
from tests.support.server import free_port


def academy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("academy")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture
def port() -> Iterator[str]:
    """A free port; whatever exchange was started is stopped in the end."""
    yield str(free_port())
    for daemon in daemons():
        process = daemon.process()
        if process is not None:
            process.kill()
            process.wait()


def start(port: str, *arguments: str) -> str:
    result = academy("exchange", "start", "--port", port, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


async def round_trip(url: str) -> None:
    async with await HttpExchangeFactory(url).create_user_client() as client:
        await client.status(client.client_id)


def test_an_exchange_starts_answers_and_stops(port: str, academy_home: Path) -> None:
    url = f"https://127.0.0.1:{port}"
    assert f"Exchange at {url}" in start(port)
    asyncio.run(round_trip(url))  # the token is found by the address
    status = academy("exchange", "status")
    assert status.returncode == 0
    assert f"{url} (pid " in status.stdout
    assert "answers in" in status.stdout
    (daemon,) = daemons()
    assert academy("exchange", "stop").stdout == f"Stopped the exchange at {url}\n"
    assert not psutil.pid_exists(daemon.pid)
    assert json.loads((academy_home / "exchange.json").read_text()) == {}


def test_what_is_known_of_an_exchange_is_private(port: str, academy_home: Path) -> None:
    start(port)
    path = academy_home / "exchange.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    facts = json.loads(path.read_text())[f"https://127.0.0.1:{port}"]
    of_process = {"pid", "node", "started", "log", "drain_seconds"}
    assert facts.keys() == {"token", "fingerprint"} | of_process


def test_an_exchange_takes_its_settings_from_a_file(port: str, tmp_path: Path) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text(f'port = {port}\n[backend]\nkind = "memory"\n')
    result = academy("exchange", "start", "--config", str(config))
    assert f"https://127.0.0.1:{port}" in result.stdout


def test_an_option_counts_before_the_environment_and_the_file(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text('port = 1\n[auth]\nmethod = "none"\n')
    monkeypatch.setenv("ACADEMY_EXCHANGE__PORT", "2")
    monkeypatch.setenv("ACADEMY_EXCHANGE__BACKEND__PATH", str(tmp_path / "x.db"))
    assert f":{port} " in start(port, "--config", str(config))
    assert (tmp_path / "x.db").exists()
    asyncio.run(round_trip(f"https://127.0.0.1:{port}"))


def test_an_insecure_exchange_says_so(port: str) -> None:
    result = academy("exchange", "start", "--port", port, "--insecure")
    assert result.returncode == 0
    assert "INSECURE" in result.stderr
    asyncio.run(round_trip(f"http://127.0.0.1:{port}"))


def test_two_exchanges_on_one_port_are_one_too_many(port: str) -> None:
    start(port)
    result = academy("exchange", "start", "--port", port)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"https://127.0.0.1:{port}" in line
    assert "academy exchange stop" in line


def test_a_port_in_use_is_named(port: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(port)))
        taken.listen()
        result = academy("exchange", "start", "--port", port)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"port {port}" in line
    assert daemons() == []


@pytest.mark.parametrize("port", ["-1", "70000", "http"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    result = academy("exchange", "start", "--port", port)
    assert result.returncode == 2
    assert "Invalid value for '--port'" in result.stderr


def test_a_config_file_with_an_unknown_key_names_its_neighbour(tmp_path: Path) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text("prot = 8700\n")
    result = academy("exchange", "start", "--config", str(config))
    assert result.returncode == 1
    assert "'prot'" in result.stderr
    assert "'port'" in result.stderr
    missing = academy("exchange", "start", "--config", str(tmp_path / "nowhere.toml"))
    assert missing.returncode == 1
    assert "nowhere.toml" in missing.stderr


def test_without_an_exchange_there_is_nothing_to_stop() -> None:
    for command in ("stop", "status"):
        result = academy("exchange", command)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "academy exchange start" in line


def test_an_exchange_of_another_address_is_not_stopped(port: str) -> None:
    start(port)
    result = academy("exchange", "stop", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert f"Known: https://127.0.0.1:{port}" in result.stderr
    assert academy("exchange", "status").returncode == 0


def test_an_exchange_that_was_killed_is_forgotten(port: str) -> None:
    start(port)
    (daemon,) = daemons()
    process = psutil.Process(daemon.pid)
    process.kill()
    process.wait()
    assert academy("exchange", "status").returncode == 1
    start(port)


def test_an_exchange_that_does_not_answer_is_told(port: str) -> None:
    start(port)
    (daemon,) = daemons()
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        result = academy("exchange", "status")
        assert result.returncode == 1
        assert "does not answer" in result.stderr
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_an_exchange_that_has_a_name_is_looked_at_and_stopped(
    port: str, tmp_path: Path
) -> None:
    config = tmp_path / "exchange.toml"
    config.write_text('name = "campaign"\n[operations]\ndrain_seconds = 3.5\n')
    start(port, "--config", str(config))
    assert [daemon.drain_seconds for daemon in daemons()] == [3.5]
    assert academy("exchange", "stop").returncode == 0
    assert daemons() == []


STUBBORN = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(flush=True)
signal.sigwait([signal.SIGTERM])
time.sleep(0.5)
print("ended in order", flush=True)
"""


def test_an_exchange_may_take_its_drain_seconds_before_it_is_killed() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    started = psutil.Process(process.pid).create_time()
    daemon = Daemon(
        "http://here:1", process.pid, gethostname(), started, "log", drain_seconds=60
    )
    stop(daemon, close_timeout=0)
    said, _ = process.communicate()
    assert said == "ended in order\n"


def test_an_exchange_of_another_machine_is_stopped_there(
    port: str, academy_home: Path
) -> None:
    start(port)
    path = academy_home / "exchange.json"
    known = json.loads(path.read_text())
    facts = known[f"https://127.0.0.1:{port}"]
    path.write_text(
        json.dumps({f"https://127.0.0.1:{port}": facts | {"node": "login9"}})
    )
    result = academy("exchange", "stop")
    assert result.returncode == 1
    assert "runs on login9: stop it there" in result.stderr
    path.write_text(json.dumps(known))


def test_the_command_says_what_it_can_do() -> None:
    result = academy("--help")
    assert result.returncode == 0
    for command in ("demo", "exchange", "run"):
        assert command in result.stdout
    assert academy("--version").stdout.startswith("academy-hpc ")


def test_a_typo_is_an_error_with_a_hint() -> None:
    result = academy("exchnage")
    assert result.returncode == 2
    assert "exchange" in result.stderr


def test_an_agent_file_that_cannot_be_followed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[agnet]\n")
    result = academy("run", str(path))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert 'did you mean "agent"' in line


def test_the_command_starts_fast_enough_to_show_its_help() -> None:
    code = "import sys, academy.cli.app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"aiohttp", "parsl", "globus_sdk", "numpy", "cloudpickle"} & set(loaded)
