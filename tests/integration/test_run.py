"""One agent from a file, without a manager."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle
import pytest

from academy.exception import AgentTerminatedError
from academy.exchange.cloud import HttpExchangeFactory
from academy.exchange.cloud.credentials import FINGERPRINT_VARIABLE, TOKEN_VARIABLE
from academy.exchange.mailbox_status import MailboxStatus
from academy.handle import Handle
from academy.identifier import AgentId
from academy.run import RunConfig, RunConfigError, main
from tests.support.launchables import Counter


@pytest.fixture
def exchange(
    http_exchange: HttpExchangeFactory, monkeypatch: pytest.MonkeyPatch
) -> HttpExchangeFactory:
    """An exchange whose token the environment tells."""
    monkeypatch.setenv(TOKEN_VARIABLE, http_exchange.find_token() or "")
    monkeypatch.setenv(FINGERPRINT_VARIABLE, http_exchange.find_fingerprint() or "")
    return http_exchange


@pytest.fixture
def write(tmp_path: Path, exchange: HttpExchangeFactory) -> Any:
    """Write a file with an `[agent]` section and what may follow."""

    def write(agent: str, more: str = "") -> Path:
        path = tmp_path / "agent.toml"
        path.write_text(
            "# Kept by hand.\n"
            f'[exchange]\nexchange_type = "http"\nurl = "{exchange.url}"\n'
            f"[agent]\n{agent}\n{more}"
        )
        return path

    return write


HTTP = "[exchange]\nexchange_type = 'http'\nurl = 'http://node'\n"
COUNTER = 'constructor = "tests.support.launchables.Counter"\nstart = 5'


MODULE = (sys.executable, "-m", "academy.run", "--config")
COMMAND = (str(Path(sys.executable).with_name("academy")), "run")


@contextmanager
def running(
    path: Path, *, how: tuple[str, ...] = MODULE
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*how, path.name], cwd=path.parent, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_for_registration(process: subprocess.Popen[str]) -> None:
    """Return when the agent says that it runs."""
    assert process.stderr is not None
    for line in process.stderr:
        if "runs as" in line:
            return
    pytest.fail("it ended instead")


def agent_id(path: Path) -> AgentId[Counter]:
    section = tomllib.loads(path.read_text())["agent_registration"]
    return AgentId(uid=UUID(section["uid"]))


async def ask(exchange: HttpExchangeFactory, path: Path) -> int:
    async with await exchange.create_user_client() as client:
        handle: Handle[Counter] = Handle(agent_id(path), exchange=client)
        return await handle.action(Counter.add, 1)


async def shut_down(exchange: HttpExchangeFactory, path: Path, **options: Any) -> None:
    async with await exchange.create_user_client() as client:
        await Handle(agent_id(path), exchange=client).shutdown(**options)


async def status(exchange: HttpExchangeFactory, path: Path) -> MailboxStatus:
    async with await exchange.create_user_client() as client:
        return await client.status(agent_id(path))


def test_an_agent_keeps_its_mailbox_from_run_to_run(
    exchange: HttpExchangeFactory, write: Any
) -> None:
    path = write(COUNTER)
    with running(path) as process:
        wait_for_registration(process)
        first = agent_id(path)
        assert asyncio.run(ask(exchange, path)) == 6
        asyncio.run(shut_down(exchange, path))
        assert process.wait() == 0
    assert asyncio.run(status(exchange, path)) is MailboxStatus.ACTIVE
    with running(path) as process:
        assert asyncio.run(ask(exchange, path)) == 6
        assert agent_id(path) == first
        asyncio.run(shut_down(exchange, path))
        assert process.wait() == 0


def test_the_file_keeps_what_was_in_it_and_hides_the_token(
    exchange: HttpExchangeFactory, write: Any, tmp_path: Path
) -> None:
    path = write(COUNTER, "[config]\nterminate_on_success = true\n")
    before = path.read_text()
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    with running(link) as process:
        wait_for_registration(process)
        asyncio.run(shut_down(exchange, path))
        assert process.wait() == 0
    assert path.read_text().startswith(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert link.is_symlink()
    assert asyncio.run(status(exchange, path)) is MailboxStatus.TERMINATED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_agent_in_order(
    write: Any, tmp_path: Path, number: signal.Signals
) -> None:
    diary = tmp_path / "diary"
    constructor = 'constructor = "tests.support.launchables.diary_at"'
    path = write(f'{constructor}\npath = "{diary}"')
    with running(path) as process:
        wait_for_registration(process)
        process.send_signal(number)
        assert process.wait() == 0
    assert diary.read_text().split() == ["startup", "shutdown"]


def test_an_agent_can_come_from_a_pickle(
    exchange: HttpExchangeFactory, write: Any, tmp_path: Path
) -> None:
    (tmp_path / "agent.pkl").write_bytes(cloudpickle.dumps(Counter(41)))
    path = write('pickle = "agent.pkl"')
    with running(path) as process:
        wait_for_registration(process)
        assert asyncio.run(ask(exchange, path)) == 42
        asyncio.run(shut_down(exchange, path))
        assert process.wait() == 0


def test_a_mailbox_that_has_ended_says_how_to_get_another_one(
    exchange: HttpExchangeFactory, write: Any
) -> None:
    path = write(COUNTER)
    with running(path) as process:
        wait_for_registration(process)
        asyncio.run(shut_down(exchange, path, terminate=True))
        process.wait()
    with running(path) as process:
        _, errors = process.communicate()
        assert process.returncode == 2
    assert "Cannot run" in errors
    assert f"[agent_registration] in {path.name}: remove the section" in errors
    with pytest.raises(AgentTerminatedError):
        asyncio.run(ask(exchange, path))


def test_an_agent_that_fails_shows_its_traceback(write: Any, tmp_path: Path) -> None:
    path = write('constructor = "tests.support.launchables.FailingLoop"')
    with running(path) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "ZeroDivisionError: in the loop" in errors


def test_an_exchange_that_is_not_there_is_named(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(COUNTER)
    text = path.read_text()
    url = text[text.index("url = ") : text.index("[agent]")]
    path.write_text(text.replace(url, 'url = "http://127.0.0.1:9"\nretries = 0\n'))
    assert main(["--config", str(path)]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


# --- files that cannot be followed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[exchange", "is not TOML"),
        ("[agnet]", 'unknown key "agnet"; did you mean "agent"'),
        (HTTP, r"no section \[agent\]"),
        (
            "[agent]\n[exchange]\nexchange_type = 'redis'",
            "'redis'; .*supports: http, globus",
        ),
        ("[agent]\n[exchange]\nurl = 'http://node'", "exchange_type is None"),
        ("[agent]\n[exchange]\nexchange_type = 'http'", "argument: 'url'"),
        (f"[agent]\n{HTTP}retry = 1", '"retry"; did you mean "retries"'),
        (f"[agent]\n{HTTP}[config]\nterminate_on = 1", 'unknown key "terminate_on"'),
        (
            f"[agent]\n{HTTP}[config]\nmax_sync_concurrency = 0",
            "max_sync_.* = 0: Input",
        ),
        (f"[agent]\n{HTTP}[agent_registration]\nuid = 'me'", "uid is 'me'"),
        (f"[agent]\n{HTTP.replace('http://', 'node:')}", "begins with http://"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(content)
    with pytest.raises(RunConfigError, match=words) as caught:
        RunConfig.from_toml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ("", "needs either constructor = or pickle ="),
        ('constructor = "Counter"', "has no module"),
        ('constructor = "no_such_package.Thing"', "No module named 'no_such_package'"),
        ('constructor = "tests.support.launchables.Conter"', "no attribute 'Conter'"),
        ('constructor = "builtins.dict"', "makes {}, which is no Agent"),
        (f"{COUNTER}\nstop = 7", "unexpected keyword argument 'stop'"),
        ('pickle = "nowhere.pkl"', "nowhere.pkl.*No such file"),
        ('pickle = "a.pkl"\nstart = 3', "takes no arguments"),
    ],
)
def test_an_agent_that_cannot_be_made_is_named(
    write: Any, agent: str, words: str
) -> None:
    path = write(agent)
    with pytest.raises(RunConfigError, match=words) as caught:
        RunConfig.from_toml(path).build()
    assert str(path) in str(caught.value)


def test_an_error_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "nowhere.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere.toml" in line
    (tmp_path / "agent.toml").write_text("")
    options = ["--config", str(tmp_path / "agent.toml"), "--log-level", "LOUD"]
    assert main(options) == 2
    assert 'Unknown log level "LOUD"' in capsys.readouterr().err


def test_nested_classes_can_be_named(write: Any) -> None:
    path = write('constructor = "tests.support.launchables.Outer.Inner"')
    assert type(RunConfig.from_toml(path).build()).__qualname__ == "Outer.Inner"


@pytest.mark.parametrize("how", [MODULE, COMMAND])
def test_modules_are_found_where_the_command_is_run(
    write: Any, tmp_path: Path, exchange: HttpExchangeFactory, how: tuple[str, ...]
) -> None:
    (tmp_path / "my_agents.py").write_text(
        "from tests.support.launchables import Counter as Mine\n"
    )
    path = write('constructor = "my_agents.Mine"\nstart = 1')
    with running(path, how=how) as process:
        wait_for_registration(process)
        asyncio.run(shut_down(exchange, path))
        assert process.wait() == 0
