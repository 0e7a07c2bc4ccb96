"""Who may do what at a hosted exchange: signed tokens, scoped to what they open."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import jwt

from academy.exception import UnauthorizedError

_ALGORITHM = "HS256"
_ISSUER = "academy"


@dataclass(frozen=True)
class Credentials:
    """What a token says.

    Attributes:
        subject: name of a user, or the uid (hex digits) of a mailbox.
        mailbox: uid of the only mailbox that it opens; None for a user, who may
            open what the same user registered and terminate any.
    """

    subject: str
    mailbox: bytes | None = None

    def may_attach(self, uid: bytes, creator: str) -> bool:
        """Whether this holder may consume a mailbox."""
        if self.mailbox is None:
            return creator == self.subject
        return uid == self.mailbox

    def may_terminate(self, uid: bytes, creator: str) -> bool:
        """Whether this holder may end a mailbox: a user any, others their own."""
        return self.mailbox is None or uid == self.mailbox or creator == self.subject


class Authority(Protocol):
    """Checks credentials and issues them for mailboxes."""

    def verify(self, token: str | None) -> Credentials:
        """Return what a token says.

        Raises:
            UnauthorizedError: it is missing, expired, or not of this exchange.
        """

    def user_token(self, name: str) -> str | None:
        """Issue a token for a user."""

    def mailbox_token(self, uid: bytes) -> str | None:
        """Issue a token that opens one mailbox."""


class TokenAuthority:
    """Issues and checks tokens signed with the exchange's secret key.

    Args:
        key: at least 32 random bytes, as text.
        lifetime: seconds that a token is good for.
    """

    def __init__(self, key: str, lifetime: float) -> None:
        self._key = key
        self._lifetime = lifetime

    def user_token(self, name: str) -> str:
        """Issue a token for a user."""
        return self._sign(sub=name, scope="user")

    def mailbox_token(self, uid: bytes) -> str:
        """Issue a token that opens one mailbox."""
        return self._sign(sub=uid.hex(), scope="mailbox")

    def verify(self, token: str | None) -> Credentials:
        """Return what a token says."""
        if not token:
            raise UnauthorizedError(
                "this exchange asks for a token and got none: pass "
                "HttpExchangeFactory(url, token=...), or set ACADEMY_EXCHANGE_TOKEN"
            )
        try:
            claims = jwt.decode(token, self._key, [_ALGORITHM], issuer=_ISSUER)
            if claims["scope"] == "mailbox":
                return Credentials(claims["sub"], bytes.fromhex(claims["sub"]))
            return Credentials(claims["sub"])
        except jwt.ExpiredSignatureError as error:
            raise UnauthorizedError("the token has expired: get a new one") from error
        except (jwt.InvalidTokenError, KeyError, ValueError) as error:
            raise UnauthorizedError(
                f"the token is not one of this exchange ({error})"
            ) from error

    def _sign(self, **claims: Any) -> str:
        now = int(time.time())
        claims |= {"iss": _ISSUER, "iat": now, "exp": now + int(self._lifetime)}
        return jwt.encode(claims, self._key, _ALGORITHM)


class OpenAuthority:
    """Lets everybody do everything: for an exchange that was asked to be insecure."""

    def verify(self, token: str | None) -> Credentials:
        """Return the credentials of a user, whatever the token."""
        return Credentials("anonymous")

    def user_token(self, name: str) -> None:
        """Issue nothing: no token is needed."""

    def mailbox_token(self, uid: bytes) -> None:
        """Issue nothing: no token is needed."""
