"""Who may do what at a hosted exchange: signed tokens, scoped to what they open."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import jwt

from academy.exception import UnauthorizedError

_ALGORITHM = "HS256"
_ISSUER = "academy"

DEFAULT_NAMESPACE = "default"
"""Of whoever runs the exchange, and of everybody whom nothing else was said about."""
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
"""What a namespace may be called: it becomes part of the names of files and keys."""


@dataclass(frozen=True)
class Credentials:
    """What a token says.

    Attributes:
        subject: name of a user, or the uid (hex digits) of a mailbox.
        mailbox: uid of the only mailbox that it opens; None for a user, who may
            open what the same user registered and terminate any.
        namespace: within which all of this holds.
        groups: of a guest in a namespace: ids of groups. What is shared with one of
            them, and what the guest has registered, is all that exists for it.
    """

    subject: str
    mailbox: bytes | None = None
    namespace: str = DEFAULT_NAMESPACE
    groups: frozenset[str] | None = None

    def may_attach(self, uid: bytes, creator: str) -> bool:
        """Whether this holder may consume a mailbox."""
        if self.mailbox is None:
            return creator == self.subject
        return uid == self.mailbox

    def may_terminate(self, uid: bytes, creator: str) -> bool:
        """Whether this holder may end a mailbox: a user any, others their own."""
        if self.mailbox is None and self.groups is None:
            return True
        return uid == self.mailbox or creator == self.subject

    def may_see(self, creator: str, groups: Iterable[str]) -> bool:
        """Whether a mailbox, shared with these groups, exists for this holder."""
        if self.groups is None or creator == self.subject:
            return True
        return not self.groups.isdisjoint(groups)


class Authority(Protocol):
    """Checks credentials and issues them for mailboxes."""

    def verify(self, token: str | None) -> Credentials:
        """Return what a token says.

        Raises:
            UnauthorizedError: it is missing, expired, or not of this exchange.
        """

    def user_token(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> str | None:
        """Issue a token for a user of a namespace."""

    def mailbox_token(
        self, uid: bytes, namespace: str = DEFAULT_NAMESPACE
    ) -> str | None:
        """Issue a token that opens one mailbox of a namespace."""


class TokenAuthority:
    """Issues and checks tokens signed with the exchange's secret key.

    Args:
        key: at least 32 random bytes, as text.
        lifetime: seconds that a token is good for.
    """

    def __init__(self, key: str, lifetime: float) -> None:
        self._key = key
        self._lifetime = lifetime

    def user_token(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> str:
        """Issue a token for a user of a namespace.

        Raises:
            ValueError: a namespace cannot be called that.
        """
        return self._sign(sub=name, scope="user", ns=namespace)

    def mailbox_token(self, uid: bytes, namespace: str = DEFAULT_NAMESPACE) -> str:
        """Issue a token that opens one mailbox of a namespace."""
        return self._sign(sub=uid.hex(), scope="mailbox", ns=namespace)

    def verify(self, token: str | None) -> Credentials:
        """Return what a token says."""
        if not token:
            raise UnauthorizedError(
                "this exchange asks for a token and got none: pass "
                "HttpExchangeFactory(url, token=...), or set ACADEMY_EXCHANGE_TOKEN"
            )
        try:
            claims = jwt.decode(
                token,
                self._key,
                [_ALGORITHM],
                issuer=_ISSUER,
                # Not `iat`: a clock that is set back would lock everybody out.
                options={"require": ["exp", "iss", "sub"], "verify_iat": False},
            )
            subject, namespace = claims["sub"], check_namespace(claims["ns"])
            if claims["scope"] == "mailbox":
                return Credentials(subject, UUID(subject).bytes, namespace)
            if claims["scope"] == "user":
                return Credentials(subject, None, namespace)
            raise ValueError(f"there is no scope {claims['scope']!r}")
        except jwt.ExpiredSignatureError as error:
            raise UnauthorizedError("the token has expired: get a new one") from error
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise UnauthorizedError(
                f"the token is not one of this exchange ({error})"
            ) from error

    def _sign(self, *, ns: str, **claims: Any) -> str:
        check_namespace(ns)
        now = int(time.time())
        claims |= {
            "ns": ns,
            "iss": _ISSUER,
            "iat": now,
            "exp": now + int(self._lifetime),
        }
        return jwt.encode(claims, self._key, _ALGORITHM)


class OpenAuthority:
    """Lets everybody do everything: for an exchange that was asked to be insecure."""

    def verify(self, token: str | None) -> Credentials:
        """Return the credentials of a user, whatever the token."""
        return Credentials("anonymous")

    def user_token(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Issue nothing: no token is needed."""

    def mailbox_token(self, uid: bytes, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Issue nothing: no token is needed."""


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the token that a request shows, if it shows one."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else None


def check_namespace(name: str) -> str:
    """Return the name of a namespace.

    Raises:
        ValueError: a namespace cannot be called that.
    """
    if not NAMESPACE.fullmatch(name):
        raise ValueError(
            f"A namespace cannot be called {name!r}: up to 100 letters, digits and any "
            "of . _ @ + - are allowed, of which the first is a letter or a digit."
        )
    return name
