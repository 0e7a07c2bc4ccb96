"""The configuration of a hosted exchange: what it means and what it refuses."""

from __future__ import annotations

import re
import stat
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from academy.exception import UnauthorizedError
from academy.exchange.cloud.config import (
    BackendConfig,
    ExchangeServingConfig,
    LimitsConfig,
)
from academy.exchange.cloud.operations.settings import Settings, keys
from academy.exchange.cloud.security.auth import TokenAuthority
from academy.exchange.cloud.security.open_authority import OpenAuthority
from academy.exchange.mailbox import Limits
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]

EVERYTHING = """
host = "0.0.0.0"
port = 8123

[auth]
method = "token"
key_file = "/secret/key"
token_lifetime = 60

[backend]
kind = "sqlite"
path = "/scratch/exchange.db"
durability = "power"

[limits]
max_message_bytes = 1000
max_mailbox_messages = 20
max_mailbox_bytes = 5000

[logger]
level = "debug"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "exchange.toml"


def refusal(file: Path, content: str) -> str:
    file.write_text(content)
    with pytest.raises(ValueError, match=r"exchange\.toml") as refused:
        ExchangeServingConfig.from_toml(file)
    return str(refused.value)


def test_an_empty_file_is_an_exchange_for_this_machine_with_tokens(file: Path) -> None:
    file.touch()
    config = ExchangeServingConfig.from_toml(file)

    assert config == ExchangeServingConfig()
    assert (config.host, config.port) == ("127.0.0.1", 8700)
    assert config.auth.method == "token"
    assert config.backend.kind == "sqlite"
    assert config.limits.broker_limits() == Limits()


def test_everything_can_be_chosen(file: Path) -> None:
    file.write_text(EVERYTHING)
    config = ExchangeServingConfig.from_toml(str(file))

    assert (config.host, config.port) == ("0.0.0.0", 8123)
    assert config.auth.key_file == Path("/secret/key")
    assert config.auth.token_lifetime == 60
    assert config.backend.path == Path("/scratch/exchange.db")
    assert config.backend.durability == "power"
    assert config.limits.broker_limits() == Limits(1000, 20, 5000)
    assert config.logger.level == "DEBUG"


# --- what is refused


def test_an_unknown_key_is_named_with_the_nearest_and_all_others(file: Path) -> None:
    assert refusal(file, "prot = 1\n") == (
        f"{file}:\n"
        "  unknown key 'prot', did you mean 'port'? Known here: host, port, name, "
        "insecure, tls, certfile, keyfile, heartbeat_interval, auth, backend, limits, "
        "namespaces, logger, operations."
    )


def test_an_unknown_key_of_a_section_is_named_with_its_neighbours(file: Path) -> None:
    words = refusal(file, '[backend]\nkind = "memory"\ndurabilty = "power"\n')

    assert "unknown key 'backend.durabilty', did you mean 'durability'?" in words
    assert "Known here: kind, path, durability, url, " in words


def test_an_unknown_key_like_no_other_is_named_with_all_others(file: Path) -> None:
    words = refusal(file, "[limits]\nxyz = 1\n")

    assert "unknown key 'limits.xyz'. Known here: max_message_bytes, " in words


def test_all_problems_are_told_together(file: Path) -> None:
    words = refusal(file, 'port = 70000\nhots = "x"\n[auth]\nmethod = "password"\n')

    assert "port = 70000: Input should be less than or equal to 65535" in words
    assert "unknown key 'hots', did you mean 'host'?" in words
    assert (
        "auth.method = 'password': Input should be 'token', 'globus' or 'none'" in words
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[backend]\nkind = "sqllite"', "backend.kind = 'sqllite'"),
        ("[backend]\nkind = 3", "backend.kind = 3"),
        ('[backend]\ndurability = "none"', "backend.durability = 'none'"),
        ("[limits]\nmax_message_bytes = 0", "limits.max_message_bytes = 0"),
        ("[auth]\ntoken_lifetime = -1", "auth.token_lifetime = -1"),
        ('[logger]\nlevel = "LOUD"', "logger.level = 'LOUD': Value error, levels are"),
        ('auth = "none"', "auth = 'none'"),
        ('port = "http"', "port = 'http'"),
        ('insecure = "maybe"', "insecure = 'maybe'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_key(
    file: Path, content: str, words: str
) -> None:
    assert words in refusal(file, content)


def test_what_is_not_toml_is_refused_with_the_place(file: Path) -> None:
    assert "is not TOML" in refusal(file, "port = \n")
    assert "line 1" in refusal(file, "port = \n")


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"exchange\.toml"):
        ExchangeServingConfig.from_toml(file)


# --- the environment


def test_a_variable_counts_before_the_file_and_the_file_before_the_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('port = 1\nhost = "login1"\n[backend]\npath = "/a.db"\n')
    monkeypatch.setenv("ACADEMY_EXCHANGE__PORT", "2")
    monkeypatch.setenv("ACADEMY_EXCHANGE__BACKEND__KIND", "memory")
    monkeypatch.setenv("ACADEMY_EXCHANGE__LIMITS__MAX_MESSAGE_BYTES", "")
    config = ExchangeServingConfig.load(file)

    assert (config.host, config.port) == ("login1", 2)
    assert config.backend == BackendConfig(kind="memory", path=Path("/a.db"))
    assert config.limits == LimitsConfig()
    assert ExchangeServingConfig.load().port == 2
    assert ExchangeServingConfig.from_toml(file).port == 1
    assert ExchangeServingConfig().port == 8700


def test_a_section_can_be_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACADEMY_EXCHANGE__BACKEND", '{"kind": "memory"}')
    assert ExchangeServingConfig.load().backend.kind == "memory"

    monkeypatch.setenv("ACADEMY_EXCHANGE__BACKEND", "memory")
    with pytest.raises(ValueError, match=r'environment: .*"backend".*Expecting value'):
        ExchangeServingConfig.load()


def test_what_clients_read_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "CLIENT_ID", "SECRET"):
        monkeypatch.setenv(f"ACADEMY_EXCHANGE_{name}", "x")
    assert ExchangeServingConfig.load() == ExchangeServingConfig()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PROT", "unknown variable ACADEMY_EXCHANGE__PROT: did you mean {}PORT?"),
        ("BACKEND__PAHT", "BACKEND__PAHT: did you mean {}BACKEND__PATH?"),
        ("LOGGER_LEVEL", "LOGGER_LEVEL: did you mean {}LOGGER__LEVEL?"),
        ("HOST__X", "HOST__X: did you mean {}HOST?"),
        ("PORT", "ACADEMY_EXCHANGE__PORT = 'x': Input should be a valid integer"),
        ("AUTH__METHOD", "ACADEMY_EXCHANGE__AUTH__METHOD = 'x': Input should be "),
    ],
)
def test_a_wrong_variable_is_named_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv(f"ACADEMY_EXCHANGE__{name}", "x")
    with pytest.raises(ValueError, match=r"^environment:\n") as refused:
        ExchangeServingConfig.load()
    assert words.format("ACADEMY_EXCHANGE__") in str(refused.value)


def test_problems_of_file_and_environment_are_told_apart(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("prot = 1\n[logger]\nlevel = 'LOUD'\n")
    monkeypatch.setenv("ACADEMY_EXCHANGE__PORT", "70000")
    with pytest.raises(ValueError, match="LOUD") as refused:
        ExchangeServingConfig.load(file)
    of_file, of_environment = str(refused.value).split("\nenvironment:\n")

    assert of_file.startswith(f"{file}:\n")
    assert "logger.level" in of_file
    assert "unknown key 'prot'" in of_file
    assert of_environment.startswith("  ACADEMY_EXCHANGE__PORT = '70000'")
    assert "\n" not in of_environment


# --- single namespaces


def test_a_namespace_has_what_is_said_of_all_but_for_what_is_said_of_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "[limits]\nmax_mailbox_messages = 20\nmax_namespace_bytes = 5000\n"
        "[namespaces.team]\nmax_namespace_bytes = 0\nmax_message_bytes = 10\n"
        '[namespaces."ada@x.org"]\nmax_namespace_messages = 7\n'
    )
    monkeypatch.setenv("ACADEMY_EXCHANGE__NAMESPACES__TEAM__MAX_MESSAGE_BYTES", "11")
    settings = ExchangeServingConfig.settings(file)
    config = settings.validate(ExchangeServingConfig)

    of_all = Limits(max_mailbox_messages=20, max_namespace_bytes=5000)
    assert config.broker_limits() == of_all
    assert config.broker_limits("team") == replace(
        of_all, max_namespace_bytes=0, max_message_bytes=11
    )
    assert config.broker_limits("ada@x.org").quotas == {
        "max_namespace_bytes": 5000,
        "max_namespace_messages": 7,
    }
    shown = settings.describe(config)
    assert "[namespaces.team]\nmax_message_bytes = 11  # ACADEMY_EXCHANGE__" in shown
    assert f'[namespaces."ada@x.org"]\nmax_namespace_messages = 7  # {file}\n' in shown
    file.write_text(shown)
    monkeypatch.undo()
    assert ExchangeServingConfig.from_toml(file) == config


def test_what_is_wrong_about_a_namespace_is_named_like_everything_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = refusal(file, "[namespaces.team]\nmax_namespace_byte = 1\n")
    assert "'namespaces.team.max_namespace_byte', did you mean 'max_na" in words
    assert "spill_bytes" not in words
    words = refusal(file, '[namespaces."a/b"]\n')
    assert "A namespace cannot be called 'a/b'" in words

    name = "ACADEMY_EXCHANGE__NAMESPACES__TEAM__MAX_NAMESPACE_BYTE"
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=rf"{name}: did you mean {name}S\?"):
        ExchangeServingConfig.load()


# --- what holds, and what the pages say


def test_the_configuration_is_shown_with_who_chose_what(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('insecure = true\n[backend]\npath = "/b.db"\n')
    monkeypatch.setenv("ACADEMY_EXCHANGE__LOGGER__LEVEL", "debug")
    settings = ExchangeServingConfig.settings(file)
    config = settings.validate(ExchangeServingConfig)
    shown = settings.describe(config)

    for line in (
        f"insecure = true  # {file}",
        "port = 8700  # default",
        'method = "none"  # derived',
        "# key_file is not set",
        f'path = "/b.db"  # {file}',
        'level = "DEBUG"  # ACADEMY_EXCHANGE__LOGGER__LEVEL',
    ):
        assert line in shown.splitlines()
    file.write_text(shown)
    monkeypatch.undo()
    assert ExchangeServingConfig.from_toml(file) == config


def test_a_configuration_is_shown_without_secrets() -> None:
    class Section(BaseModel):
        url: str = "redis://user:hunter2@host:1/0"
        more: list[str] = ["unix://:hunter2@/tmp/socket"]
        words: SecretStr = SecretStr("hunter2")

    shown = Settings().describe(Section())
    assert "hunter2" not in shown
    assert '"redis://user:**********@host:1/0"' in shown


def test_a_password_in_a_wrong_value_is_not_told(file: Path) -> None:
    assert "hunter2" not in refusal(file, 'port = "redis://:hunter2@host"\n')


DEFAULTS = ExchangeServingConfig().model_dump(mode="json")
KEYS = [*keys(ExchangeServingConfig)]


def at(content: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        content = content.get(key, {})
    return content


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_each_key_is_in_the_example_and_documented_with_its_default(
    path: tuple[str, ...],
) -> None:
    example = (ROOT / "configs" / "exchange.toml").read_text()
    *_, key = path
    table = (ROOT / "docs" / "exchange.md").read_text()
    row = re.search(rf"^\| `{'.'.join(path)}` \| (.+?) \|", table, flags=re.MULTILINE)
    assert row is not None
    if (default := at(DEFAULTS, path)) is None:
        start = f"\n[{path[0]}]\n" if len(path) > 1 else ""
        of_section = example[example.index(start) :].split("\n[")[bool(start)]
        assert f"\n# {key} = " in of_section
    else:
        assert at(tomllib.loads(example), path) == default
        assert tomllib.loads(f"x = {row[1].strip('`')}")["x"] == default


def test_nothing_else_is_documented_or_in_the_example(file: Path) -> None:
    table = (ROOT / "docs" / "exchange.md").read_text()
    _, _, rows = table.partition("| Key | Default | Meaning |")
    rows, _, _ = rows.partition("\n\n")
    documented = re.findall(r"^\| `([\w.]+)` ", rows, flags=re.MULTILINE)
    assert documented == [".".join(path) for path in KEYS]

    example = (ROOT / "configs" / "exchange.toml").read_text()
    with_all = re.sub(r"^# (?=\w+ = )", "", example, flags=re.MULTILINE)
    file.write_text(with_all)
    ExchangeServingConfig.from_toml(file)


# --- what it makes


def test_the_backend_makes_its_store(file: Path) -> None:
    for kind, store in (
        ("memory", MemoryStore),
        ("python", MemoryStore),
        ("sqlite", SqliteStore),
    ):
        file.write_text(f'[backend]\nkind = "{kind}"\n')
        config = ExchangeServingConfig.from_toml(file)
        assert type(config.backend.store()) is store
        assert config.backend.kind == ("sqlite" if kind == "sqlite" else "memory")


async def test_a_store_lies_under_the_academy_home_unless_told_otherwise(
    academy_home: Path,
) -> None:
    store = ExchangeServingConfig().backend.store()
    await store.open()
    await store.close()

    assert (academy_home / "exchange.db").exists()


def test_tokens_are_asked_for_unless_told_otherwise(file: Path) -> None:
    assert isinstance(ExchangeServingConfig().authority(), TokenAuthority)

    for content in ("insecure = true\n", '[auth]\nmethod = "none"\n'):
        file.write_text(content)
        config = ExchangeServingConfig.from_toml(file)
        assert isinstance(config.authority(), OpenAuthority)


async def test_the_signing_key_is_made_once_and_only_its_owner_can_read_it(
    academy_home: Path, tmp_path: Path
) -> None:
    auth = ExchangeServingConfig().auth
    other = auth.model_copy(update={"key_file": tmp_path / "other.key"})
    first, again, another = (one.authority() for one in (auth, auth, other))
    for authority in (first, again, another):
        await authority.refresh()
    token = first.user_token("ada")

    assert again.verify(token).mailbox is None
    with pytest.raises(UnauthorizedError):
        another.verify(token)
    for key_file in (academy_home / "exchange.key", tmp_path / "other.key"):
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_limits_are_the_same_wherever_messages_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "exchange.toml"
    path.write_text('[backend]\nkind = "redis"\nurl = "redis://127.0.0.1:6379"\n')
    of_redis = ExchangeServingConfig.from_toml(path).broker_limits()
    assert of_redis == ExchangeServingConfig().broker_limits() == Limits()
