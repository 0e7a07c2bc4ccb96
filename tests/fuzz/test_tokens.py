"""Tokens that somebody has made or changed open nothing, whatever is in them."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import assume, given, strategies as st

from academy.exception import UnauthorizedError
from academy.exchange.cloud.security.auth import NAMESPACE, Credentials, TokenAuthority
from academy.exchange.cloud.security.auth_store import FileAuthStore
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.cloud.security.revocations import Revocations

KEY, OTHER_KEY = "k" * 64, "o" * 64
ME, OTHER = UUID(int=1).bytes, UUID(int=2).bytes


def authority_of(key: str) -> TokenAuthority:
    """Make an authority whose only key is called "k"."""
    store = FileAuthStore(Path("/nowhere/key"))
    keys = KeySet(store)
    keys.load(json.dumps({"keys": [{"kid": "k", "k": key}]}))
    return TokenAuthority(keys, Revocations(store))


AUTHORITY = authority_of(KEY)
ADA = Credentials("ada")
TOKENS = [
    AUTHORITY.user_token("ada"),
    AUTHORITY.user_token("eve", "elsewhere"),
    AUTHORITY.mailbox_token(ME, ADA),
    AUTHORITY.mailbox_token(OTHER, Credentials("eve", None, "elsewhere")),
]
tokens = st.sampled_from(TOKENS)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=5,
)


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def part(content: Any) -> str:
    """Encode a part of a token."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def means_the_same(token: str, other: str) -> bool:
    """Whether two tokens are the same bytes: base64 has spare bits at its end."""

    def decoded(text: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(p + "==") for p in text.split(".")]

    try:
        return decoded(token) == decoded(other)
    except ValueError:
        return False


def refuses(token: str) -> None:
    with pytest.raises(UnauthorizedError):
        AUTHORITY.verify(token)


# --- by who has no key


@given(st.text(max_size=300))
def test_text_is_no_token(text: str) -> None:
    refuses(text)


@given(st.lists(anything | st.binary(max_size=50), min_size=1, max_size=4))
def test_parts_of_anything_are_no_token(parts: list[Any]) -> None:
    refuses(".".join(map(part, parts)))


@given(tokens, st.integers(0, 10_000), st.integers(1, 127))
def test_a_token_with_another_character_is_refused(
    token: str, at: int, change: int
) -> None:
    at %= len(token)
    changed = token[:at] + chr(ord(token[at]) ^ change) + token[at + 1 :]
    assume(not means_the_same(token, changed))
    refuses(changed)


@given(tokens, st.integers(0, 10_000), st.text(max_size=20))
def test_a_token_that_is_cut_or_grown_is_refused(
    token: str, at: int, more: str
) -> None:
    changed = token[: at % len(token)] + more
    assume(not means_the_same(token, changed))
    refuses(changed)


@given(tokens, tokens)
def test_the_claims_of_one_token_with_the_signature_of_another_are_refused(
    token: str, other: str
) -> None:
    assume(token != other)
    head, claims, _ = token.split(".")
    signature = other.rpartition(".")[2]
    refuses(f"{head}.{claims}.{signature}")


@given(
    tokens, st.dictionaries(st.sampled_from(["sub", "scope", "ns", "exp"]), anything)
)
def test_claims_that_were_changed_under_a_good_signature_are_refused(
    token: str, changes: dict[str, Any]
) -> None:
    head, _, signature = token.split(".")
    claims = claims_of(token)
    assume(claims | changes != claims)
    refuses(f"{head}.{part(claims | changes)}.{signature}")


@given(
    tokens,
    st.sampled_from(["none", "None", "NONE", "HS384", "HS512", "RS256", "ES256", ""])
    | anything,
    st.sampled_from(["", "AAAA"]),
)
def test_a_header_that_names_another_algorithm_is_refused(
    token: str, algorithm: Any, signature: str
) -> None:
    claims = token.split(".")[1]
    head = part({"alg": algorithm, "typ": "JWT", "kid": "k"})
    refuses(f"{head}.{claims}.{signature}")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512", "none"])
@pytest.mark.parametrize("token", TOKENS)
def test_the_right_key_with_another_algorithm_is_refused(
    token: str, algorithm: str
) -> None:
    key = "" if algorithm == "none" else KEY
    refuses(jwt.encode(claims_of(token), key, algorithm, {"kid": "k"}))


@given(tokens, st.text(min_size=32, max_size=80))
def test_another_key_is_refused(token: str, key: str) -> None:
    assume(key != KEY)
    refuses(jwt.encode(claims_of(token), key, "HS256", {"kid": "k"}))


# --- by who has the key, for another purpose


def signed(token: str, **changes: Any) -> str:
    return jwt.encode(claims_of(token) | changes, KEY, "HS256", {"kid": "k"})


@given(tokens, anything)
def test_another_issuer_is_refused(token: str, issuer: Any) -> None:
    assume(issuer != "academy")
    try:
        changed = signed(token, iss=issuer)
    except TypeError:
        return  # it cannot be made
    refuses(changed)


@given(tokens, anything)
def test_another_scope_is_refused(token: str, scope: Any) -> None:
    assume(scope not in ("user", "mailbox"))
    refuses(signed(token, scope=scope))


@given(tokens, anything)
def test_another_namespace_than_can_be_is_refused(token: str, namespace: Any) -> None:
    assume(not isinstance(namespace, str) or not NAMESPACE.fullmatch(namespace))
    refuses(signed(token, ns=namespace))


@given(tokens, st.integers(1, 10**9))
def test_a_token_past_its_time_is_refused(token: str, seconds: int) -> None:
    refuses(signed(token, exp=int(time.time()) - seconds))


@given(tokens, st.sampled_from(["exp", "iss", "sub", "scope", "ns", "jti"]))
def test_a_token_that_lacks_a_claim_is_refused(token: str, claim: str) -> None:
    claims = claims_of(token)
    del claims[claim]
    refuses(jwt.encode(claims, KEY, "HS256", {"kid": "k"}))


@given(st.text(max_size=40))
def test_a_mailboxs_token_for_no_mailbox_is_refused(subject: str) -> None:
    try:
        UUID(subject)
    except ValueError:
        refuses(signed(AUTHORITY.mailbox_token(ME, ADA), sub=subject))


@given(st.integers(-(10**9), 10**9))
def test_when_a_token_was_issued_does_not_matter(seconds: int) -> None:
    """The clock of an exchange may have been wrong then, or be so now."""
    token = signed(TOKENS[0], iat=int(time.time()) + seconds)

    assert AUTHORITY.verify(token) == Credentials("ada")


def test_what_was_fuzzed_is_good_as_it_was_issued() -> None:
    assert [AUTHORITY.verify(token) for token in TOKENS] == [
        Credentials("ada"),
        Credentials("eve", None, "elsewhere"),
        Credentials(ME.hex(), ME),
        Credentials(OTHER.hex(), OTHER, "elsewhere"),
    ]
