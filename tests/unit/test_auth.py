"""Tokens and where clients find them."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from pathlib import Path
from uuid import uuid4

import jwt
import pytest

from academy.exception import UnauthorizedError
from academy.exchange import HttpExchangeFactory
from academy.exchange.cloud.credentials import (
    exchanges_file,
    find_token,
    forget,
    known_exchanges,
    remember,
)
from academy.exchange.cloud.security.auth import (
    Authority,
    Credentials,
    Lifetimes,
    TokenAuthority,
)
from academy.exchange.cloud.security.auth_store import REVOKED, FileAuthStore
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.cloud.security.open_authority import OpenAuthority
from academy.exchange.cloud.security.revocations import Revocations

KEY = "k" * 64
URL = "http://127.0.0.1:8700"
ME, OTHER = uuid4().bytes, uuid4().bytes


@pytest.fixture
def authority(tmp_path: Path) -> TokenAuthority:
    return made(tmp_path)


def made(
    folder: Path, lifetimes: Lifetimes | None = None, key: str = KEY
) -> TokenAuthority:
    """Make an authority with one key, of id "k"."""
    store = FileAuthStore(folder / "exchange.key")
    text = json.dumps({"keys": [{"kty": "oct", "kid": "k", "k": key}]})
    (folder / "exchange.key").write_text(text)
    keys = KeySet(store)
    keys.load(text)
    return TokenAuthority(keys, Revocations(store), lifetimes)


# --- tokens


def test_a_users_token_names_the_user(authority: TokenAuthority) -> None:
    assert authority.verify(authority.user_token("ada")) == Credentials("ada")


def test_a_mailboxs_token_opens_that_mailbox(authority: TokenAuthority) -> None:
    token = authority.mailbox_token(ME, Credentials("ada"))
    credentials = authority.verify(token)

    assert credentials == Credentials(ME.hex(), ME)
    assert credentials.user == "ada"


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


def test_a_token_of_another_exchange_is_refused(
    authority: TokenAuthority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", key="o" * 64)
    with pytest.raises(UnauthorizedError, match="not one of this exchange"):
        authority.verify(other.user_token("ada"))


def test_a_token_is_good_for_its_lifetime_only(tmp_path: Path) -> None:
    short = made(tmp_path, Lifetimes(user=-5))
    with pytest.raises(UnauthorizedError, match="has expired"):
        short.verify(short.user_token("ada"))


NOW = int(time.time())
CLAIMS = {
    "iss": "academy",
    "iat": NOW,
    "exp": NOW + 3600,
    "sub": "a",
    "scope": "user",
    "ns": "default",
    "jti": "1",
    "auth_time": NOW,
}


def forged(**claims: object) -> str:
    return jwt.encode({**CLAIMS, **claims}, KEY, "HS256", {"kid": "k"})


def test_what_is_forged_below_differs_in_one_point_only(
    authority: TokenAuthority,
) -> None:
    assert authority.verify(forged()) == Credentials("a")


@pytest.mark.parametrize(
    "token",
    [
        forged(iss="somebody else"),
        forged(scope="mailbox", sub="not hex"),
        forged(scope="operator"),
        forged(sub=5),
        forged(ns=5),
        forged(exp="soon"),
        forged(auth_time=None),
        jwt.encode({"iss": "academy"}, KEY, "HS256", {"kid": "k"}),
        jwt.encode(CLAIMS, "", "none", {"kid": "k"}),
        jwt.encode(CLAIMS, KEY, "HS512", {"kid": "k"}),
        jwt.encode(CLAIMS, KEY, "HS256", {"kid": "other"}),
    ],
    ids=[
        *("issuer", "no uid", "no scope", "no name", "no namespace", "no end"),
        *("no beginning", "no claims", "unsigned", "other algorithm", "other key"),
    ],
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


def test_a_token_of_a_session_is_good_in_that_session_only(
    authority: TokenAuthority,
) -> None:
    held = authority.verify(authority.user_token("ada"))
    token = authority.session_token(held, b"one")

    assert authority.verify(token, b"one") == held
    for other in (b"two", b""):
        with pytest.raises(UnauthorizedError, match="another connection"):
            authority.verify(token, other)


def test_a_session_comes_back_with_an_expired_token_within_its_grace(
    tmp_path: Path,
) -> None:
    for late, good in ((-50, True), (-70, False)):
        authority = made(tmp_path, Lifetimes(session=late, grace=60))
        held = authority.verify(authority.user_token("ada"))
        token = authority.session_token(held, b"one")
        if good:
            assert authority.verify(token, b"one") == held
            continue
        with pytest.raises(UnauthorizedError, match="has expired"):
            authority.verify(token, b"one")


def test_what_was_proven_elsewhere_gets_no_token_for_its_session(
    authority: TokenAuthority,
) -> None:
    assert authority.session_token(Credentials("guest"), b"one") is None


# --- what is revoked


@pytest.fixture
def revoked(tmp_path: Path, authority: TokenAuthority) -> Revocations:
    """The list as another process writes it."""
    return Revocations(FileAuthStore(tmp_path / "exchange.key"))


async def test_a_revoked_user_takes_along_what_acts_for_the_user(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    ada = authority.verify(authority.user_token("ada", "space"))
    agent = authority.verify(authority.mailbox_token(ME, ada))
    child = authority.mailbox_token(OTHER, agent)
    session = authority.session_token(agent, b"one")
    eve = authority.user_token("eve", "space")
    await revoked.add("user", "ada", "space")
    late = authority.mailbox_token(OTHER, ada)  # before the exchange has noticed

    await authority.refresh()
    assert authority.version == 1
    assert authority.is_void(ada)
    for token in (child, session, late):
        with pytest.raises(UnauthorizedError, match="was revoked"):
            authority.verify(token, b"one")
    assert authority.verify(eve).subject == "eve"
    assert authority.verify(authority.user_token("ada", "space")).subject == "ada"
    await authority.refresh()
    assert authority.version == 1


async def test_a_user_is_revoked_in_one_namespace_or_in_all(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    here, there = (
        authority.verify(authority.user_token("ada", name)) for name in ("a", "b")
    )
    await revoked.add("user", "ada", "a")
    await authority.refresh()
    assert authority.is_void(here)
    assert not authority.is_void(there)

    await revoked.add("user", "ada")
    await authority.refresh()
    assert authority.is_void(there)


async def test_a_revoked_token_takes_along_what_was_renewed_from_it(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    first, second = (authority.user_token("ada") for _ in range(2))
    held = authority.verify(first)
    renewed = authority.session_token(held, b"one")
    await revoked.add("token", held.token_id)
    await authority.refresh()

    for token in (first, renewed):
        with pytest.raises(UnauthorizedError, match="was revoked"):
            authority.verify(token, b"one")
    assert authority.verify(second).subject == "ada"


async def test_a_revoked_mailbox_leaves_others_of_the_user_alone(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    ada = authority.verify(authority.user_token("ada"))
    mine, other = (authority.mailbox_token(uid, ada) for uid in (ME, OTHER))
    await revoked.add("mailbox", ME.hex())
    await authority.refresh()

    with pytest.raises(UnauthorizedError, match="was revoked"):
        authority.verify(mine)
    assert authority.verify(other).mailbox == OTHER
    assert not authority.is_void(ada)


async def test_a_damaged_list_of_revocations_is_named_and_what_was_known_holds(
    authority: TokenAuthority, revoked: Revocations, tmp_path: Path
) -> None:
    held = authority.verify(authority.user_token("ada"))
    await revoked.add("user", "ada")
    await authority.refresh()
    (tmp_path / "exchange.revoked").write_text("[")

    with pytest.raises(ValueError, match="revoked is no list of revocations"):
        await authority.refresh()
    assert authority.is_void(held)
    with pytest.raises(ValueError, match="revoked is no list"):
        await revoked.refresh()


GLOBUS = Credentials("ada", namespace="ada")
"""Of somebody who has proven elsewhere to be Ada."""


async def test_a_revoked_user_does_not_log_in_until_that_is_lifted(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    before = authority.verify(await authority.admit(GLOBUS))
    await revoked.add("user", "ada")
    for _ in range(2):
        with pytest.raises(UnauthorizedError, match="ada is revoked here"):
            await authority.admit(GLOBUS)
    assert authority.is_void(GLOBUS)
    assert await authority.admit(Credentials("eve"))

    await revoked.lift("ada")
    assert authority.verify(await authority.admit(GLOBUS)).subject == "ada"
    assert not authority.is_void(GLOBUS)
    assert authority.is_void(before)


async def test_a_revocation_is_lifted_where_it_holds(
    authority: TokenAuthority, revoked: Revocations
) -> None:
    await revoked.add("user", "ada", "ada")
    with pytest.raises(LookupError, match=r"in the namespace 'eve'.*ada \(ada\)"):
        await revoked.lift("ada", "eve")
    await revoked.lift("ada", "ada")
    await authority.admit(GLOBUS)
    await revoked.add("user", "ada")
    with pytest.raises(UnauthorizedError):
        await authority.admit(GLOBUS)


async def test_who_is_revoked_while_logging_in_is_revoked(
    authority: TokenAuthority, tmp_path: Path
) -> None:
    """The list is read before the token is made, and may be older than that."""

    class Meanwhile(FileAuthStore):
        async def read(self, name: str) -> str | None:
            text = await super().read(name)
            if name == REVOKED and text is None:
                await Revocations(FileAuthStore(path)).add("user", "ada")
            return text

    path = tmp_path / "exchange.key"
    authority = TokenAuthority(authority.keys, Revocations(Meanwhile(path)))
    token = await authority.admit(GLOBUS)
    await authority.refresh()
    with pytest.raises(UnauthorizedError, match="was revoked"):
        authority.verify(token)


async def test_of_two_answers_the_older_one_does_not_come_last(
    authority: TokenAuthority, revoked: Revocations, tmp_path: Path
) -> None:
    class Late(FileAuthStore):
        """Its first answer takes its time."""

        asked = False

        async def read(self, name: str) -> str | None:
            text = await super().read(name)
            if name == REVOKED and not self.asked:
                self.asked = True
                await answered.wait()
            return text

    answered, store = asyncio.Event(), Late(tmp_path / "exchange.key")
    late = TokenAuthority(authority.keys, Revocations(store))
    ada = late.verify(late.user_token("ada"))
    await revoked.add("user", "eve")
    first = asyncio.create_task(late.refresh())
    while not store.asked:
        await asyncio.sleep(0.01)
    await revoked.add("user", "ada")
    second = asyncio.create_task(late.refresh())
    await asyncio.wait([second], timeout=0.5)  # it may have to wait for the first
    answered.set()
    await asyncio.gather(first, second)
    assert late.is_void(ada)


# --- keys


async def test_after_a_rotation_a_new_key_signs_and_older_ones_verify(
    authority: TokenAuthority, tmp_path: Path
) -> None:
    old = authority.user_token("ada")
    await KeySet(FileAuthStore(tmp_path / "exchange.key")).rotate()

    await authority.refresh()
    assert authority.version == 1
    new = authority.user_token("ada")
    assert authority.verify(old) == authority.verify(new)
    assert authority.verify(old).key_id == "k" != authority.verify(new).key_id


async def test_what_a_dropped_key_has_signed_is_void(
    authority: TokenAuthority, tmp_path: Path
) -> None:
    token = authority.user_token("ada")
    held = authority.verify(token)
    await KeySet(FileAuthStore(tmp_path / "exchange.key")).rotate(drop_older=True)
    await authority.refresh()

    assert authority.is_void(held)
    with pytest.raises(UnauthorizedError, match="there is no key k"):
        authority.verify(token)


async def test_a_key_is_made_once_and_only_its_owner_can_read_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "key"
    first, second = (KeySet(FileAuthStore(path)) for _ in range(2))
    await asyncio.gather(first.refresh(), second.refresh())

    assert first.keys == second.keys
    assert len(first.keys) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "{}", "0" * 64, '{"keys": [{"kid": "a"}]}'])
async def test_a_file_without_keys_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ValueError, match=r"key holds no keys \(a JSON Web Key Set\)"):
        await KeySet(FileAuthStore(tmp_path / "key")).refresh()


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
    assert authority.mailbox_token(ME, Credentials("ada")) is None
    assert authority.session_token(Credentials("ada"), b"s") is None


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


def test_a_user_and_the_users_agents_share_a_connection_and_nobody_else_does(
    authority: TokenAuthority,
) -> None:
    factory = HttpExchangeFactory(URL)
    ada = authority.user_token("ada")
    agent = authority.mailbox_token(ME, authority.verify(ada))
    child = authority.mailbox_token(OTHER, authority.verify(agent))
    others = [authority.user_token("ada", "space"), authority.user_token("eve"), None]

    keys = [factory.for_agents().link_key(token) for token in (agent, child)]
    assert keys == 2 * [factory.link_key(ada)]
    assert factory.link_key(ada) not in [factory.link_key(token) for token in others]


def test_a_factory_does_not_show_its_token() -> None:
    assert "own" not in repr(HttpExchangeFactory(URL, token="own"))
