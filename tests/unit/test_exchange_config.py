"""The configuration of a hosted exchange: what it means and what it refuses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from academy.exception import UnauthorizedError
from academy.exchange.cloud.auth import OpenAuthority, TokenAuthority
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.mailbox import Limits
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore

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
        "  unknown key 'prot', did you mean 'port'? Known here: host, port, insecure, "
        "heartbeat_interval, auth, backend, limits, logger."
    )


def test_an_unknown_key_of_a_section_is_named_with_its_neighbours(file: Path) -> None:
    words = refusal(file, '[backend]\nkind = "memory"\ndurabilty = "power"\n')

    assert "unknown key 'backend.durabilty', did you mean 'durability'?" in words
    assert words.endswith("Known here: kind, path, durability.")


def test_an_unknown_key_like_no_other_is_named_with_all_others(file: Path) -> None:
    words = refusal(file, "[limits]\nxyz = 1\n")

    assert "unknown key 'limits.xyz'. Known here: max_message_bytes, " in words


def test_all_problems_are_told_together(file: Path) -> None:
    words = refusal(file, 'port = 70000\nhots = "x"\n[auth]\nmethod = "password"\n')

    assert "port = 70000: Input should be less than or equal to 65535" in words
    assert "unknown key 'hots', did you mean 'host'?" in words
    assert "auth.method = 'password': Input should be 'token' or 'none'" in words


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
    assert isinstance(ExchangeServingConfig().auth.authority(), TokenAuthority)

    for content in ("insecure = true\n", '[auth]\nmethod = "none"\n'):
        file.write_text(content)
        config = ExchangeServingConfig.from_toml(file)
        assert isinstance(config.auth.authority(), OpenAuthority)
        assert config.auth.user_token() is None


def test_the_signing_key_is_made_once_and_only_its_owner_can_read_it(
    academy_home: Path, tmp_path: Path
) -> None:
    auth = ExchangeServingConfig().auth
    token = auth.user_token()
    again = ExchangeServingConfig().auth
    key_file = academy_home / "exchange.key"

    assert again.authority().verify(token).mailbox is None
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert len(key_file.read_text()) == 64

    other = auth.model_copy(update={"key_file": tmp_path / "other.key"})
    with pytest.raises(UnauthorizedError):
        other.authority().verify(token)
    assert stat.S_IMODE((tmp_path / "other.key").stat().st_mode) == 0o600
