"""Tokens and where clients find them."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from uuid import uuid4

import jwt
import pytest

from academy.exception import UnauthorizedError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud.auth import (
    Authority,
    Credentials,
    OpenAuthority,
    TokenAuthority,
)
from academy.exchange.cloud.credentials import (
    exchanges_file,
    find_token,
    forget,
    known_exchanges,
    remember,
    signing_key,
)

KEY = "k" * 64
URL = "http://127.0.0.1:8700"
ME, OTHER = uuid4().bytes, uuid4().bytes


@pytest.fixture
def authority() -> TokenAuthority:
    return TokenAuthority(KEY, 3600)


# --- tokens


def test_a_users_token_names_the_user(authority: TokenAuthority) -> None:
    assert authority.verify(authority.user_token("ada")) == Credentials("ada")


def test_a_mailboxs_token_opens_that_mailbox(authority: TokenAuthority) -> None:
    credentials = authority.verify(authority.mailbox_token(ME))

    assert credentials == Credentials(ME.hex(), ME)


@pytest.mark.parametrize("token", [None, ""])
def test_a_missing_token_is_refused_with_where_to_put_one(
    authority: TokenAuthority, token: str | None
) -> None:
    with pytest.raises(UnauthorizedError, match=r"got none.*token=.*EXCHANGE_TOKEN"):
        authority.verify(token)


@pytest.mark.parametrize("token", ["x", "a.b.c", "é", "." * 100_000])
def test_what_is_no_token_is_refused(authority: TokenAuthority, token: str) -> None:
    with pytest.raises(UnauthorizedError, match="not one of this exchange"):
        authority.verify(token)


def test_a_token_of_another_exchange_is_refused(authority: TokenAuthority) -> None:
    other = TokenAuthority("o" * 64, 3600)
    with pytest.raises(UnauthorizedError, match="not one of this exchange"):
        authority.verify(other.user_token("ada"))


def test_a_token_is_good_for_its_lifetime_only() -> None:
    short = TokenAuthority(KEY, -5)
    with pytest.raises(UnauthorizedError, match="has expired"):
        short.verify(short.user_token("ada"))


def forged(**claims: object) -> str:
    now = int(time.time())
    usual = {"iss": "academy", "iat": now, "exp": now + 60, "sub": "a", "scope": "user"}
    return jwt.encode({**usual, **claims}, KEY, "HS256")


@pytest.mark.parametrize(
    "token",
    [
        forged(iss="somebody else"),
        forged(scope="mailbox", sub="not hex"),
        forged(sub=5),
        jwt.encode({"iss": "academy"}, KEY, "HS256"),
        jwt.encode({"iss": "academy", "sub": "a", "scope": "user"}, "", "none"),
        jwt.encode({"iss": "academy", "sub": "a", "scope": "user"}, KEY, "HS512"),
    ],
    ids=["issuer", "no uid", "no name", "no claims", "unsigned", "other algorithm"],
)
def test_a_token_with_strange_claims_is_refused(
    authority: TokenAuthority, token: str
) -> None:
    with pytest.raises(UnauthorizedError):
        authority.verify(token)


def test_a_token_that_was_changed_is_refused(authority: TokenAuthority) -> None:
    token = authority.user_token("ada")
    for at in range(0, len(token) - 1, 7):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(UnauthorizedError):
            authority.verify(changed)


# --- what they open


def test_a_user_attaches_what_the_user_has_registered() -> None:
    ada = Credentials("ada")

    assert ada.may_attach(ME, creator="ada")
    assert not ada.may_attach(ME, creator="eve")
    assert not ada.may_attach(ME, creator=OTHER.hex())


def test_a_mailbox_attaches_itself_only() -> None:
    me = Credentials(ME.hex(), ME)

    assert me.may_attach(ME, creator="ada")
    assert not me.may_attach(OTHER, creator="ada")
    assert not me.may_attach(OTHER, creator=ME.hex())


def test_a_user_terminates_any_and_a_mailbox_itself_and_its_children() -> None:
    me = Credentials(ME.hex(), ME)

    assert Credentials("ada").may_terminate(OTHER, creator="eve")
    assert me.may_terminate(ME, creator="ada")
    assert me.may_terminate(OTHER, creator=ME.hex())
    assert not me.may_terminate(OTHER, creator="ada")


def test_an_open_exchange_asks_nobody() -> None:
    authority: Authority = OpenAuthority()

    assert authority.verify(None) == authority.verify("x") == Credentials("anonymous")
    assert authority.user_token("ada") is None
    assert authority.mailbox_token(ME) is None


# --- where clients find them


def test_what_is_remembered_of_an_exchange_is_private(academy_home: Path) -> None:
    remember(URL + "/", token="secret", pid=5)
    remember("http://elsewhere:1", token="other")

    assert find_token(URL) == find_token(URL + "/") == "secret"
    assert known_exchanges()[URL] == {"token": "secret", "pid": 5}
    assert exchanges_file() == academy_home / "exchange.json"
    assert stat.S_IMODE(exchanges_file().stat().st_mode) == 0o600

    forget(URL)
    forget(URL)
    assert find_token(URL) is None
    assert find_token("http://elsewhere:1") == "other"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\xff"])
def test_a_damaged_file_is_as_good_as_none(academy_home: Path, content: str) -> None:
    academy_home.mkdir()
    exchanges_file().write_text(content, encoding="latin-1")

    assert known_exchanges() == {}
    assert find_token(URL) is None
    remember(URL, token="secret")
    assert find_token(URL) == "secret"


def test_a_factorys_own_token_comes_before_the_environment_and_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember(URL, token="file")
    factory = HttpExchangeFactory(URL)
    assert factory.find_token() == "file"
    monkeypatch.setenv("ACADEMY_EXCHANGE_TOKEN", "environment")
    assert factory.find_token() == "environment"
    assert HttpExchangeFactory(URL, token="own").find_token() == "own"


def test_a_factory_for_agents_leaves_the_users_token_behind() -> None:
    factory = HttpExchangeFactory(URL, token="own")

    assert factory.for_agents().find_token() is None
    assert factory.find_token() == "own"
    assert factory.for_agents().link_key == factory.link_key


def test_a_factory_does_not_show_its_token() -> None:
    assert "own" not in repr(HttpExchangeFactory(URL, token="own"))


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = signing_key(path)

    assert signing_key(path) == key
    assert len(bytes.fromhex(key)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
