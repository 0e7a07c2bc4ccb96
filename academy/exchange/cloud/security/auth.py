"""Who may do what at a hosted exchange: signed tokens, scoped to what they open."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

import jwt
from jwt.types import Options

from academy.exception import StorageError, UnauthorizedError
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.cloud.security.revocations import Revocations

_ALGORITHM = "HS256"
_ISSUER = "academy"
_SENSELESS = (KeyError, ValueError, TypeError, OverflowError)
_UNTIMED: Options = {"verify_exp": False, "verify_iat": False}
"""Times are checked here: a clock that is set back does no harm."""

DAY = 86_400.0

DEFAULT_NAMESPACE = "default"
"""Of whoever runs the exchange, and of everybody whom nothing else was said about."""
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
"""What a namespace may be called: it becomes part of the names of files and keys."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a token says.

    Attributes:
        subject: name of a user, or the uid (hex digits) of a mailbox.
        mailbox: uid of the only mailbox that it opens; None for a user, who may
            open what the same user registered and terminate any.
        namespace: within which all of this holds.
        groups: of a guest in a namespace: ids of groups. What is shared with one of
            them, and what the guest has registered, is all that exists for it.
        user: who has registered the mailbox, or the mailbox that has registered it,
            and so on; empty for a user.
        token_id: of the token, and of those that are renewed from it.
        key_id: of the key that has signed it.
        issued: when the user has got a token from outside, in seconds since 1970.
    """

    subject: str
    mailbox: bytes | None = None
    namespace: str = DEFAULT_NAMESPACE
    groups: frozenset[str] | None = None
    user: str = field(default="", compare=False)
    token_id: str = field(default="", compare=False)
    key_id: str = field(default="", compare=False)
    issued: float = field(default=0, compare=False)

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


@dataclass(frozen=True)
class Lifetimes:
    """Seconds that tokens are good for.

    Attributes:
        session: of what a connection shows when it comes back; it is renewed while the
            connection lives.
        launch: of what an agent is launched with, which may wait in a queue.
        user: of what a person or program is given.
        grace: how long after its end a connection's token still brings that back.
    """

    session: float = 3600
    launch: float = 90 * DAY
    user: float = 90 * DAY
    grace: float = 7 * DAY


class Authority(Protocol):
    """Checks credentials and issues them for mailboxes."""

    renewal: float | None
    """Seconds after which the tokens of connections are renewed; None for never."""
    version: int
    """Grows with each change of keys and revocations that is known here."""

    @property
    def key_id(self) -> str:
        """Id of the key that signs now."""

    def verify(self, token: str | None, session: bytes = b"") -> Credentials:
        """Return what a token says.

        Args:
            token: as it came.
            session: of the connection that shows it.

        Raises:
            UnauthorizedError: it is missing, expired, revoked, or not of this exchange.
        """

    def user_token(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> str | None:
        """Issue a token for a user of a namespace."""

    def mailbox_token(self, uid: bytes, by: Credentials) -> str | None:
        """Issue a token that opens one mailbox, for who registers that."""

    def session_token(self, credentials: Credentials, session: bytes) -> str | None:
        """Issue a short-lived token that is good in one session only."""

    def is_void(self, credentials: Credentials) -> bool:
        """Whether what was good once has been revoked."""

    async def admit(self, by: Credentials) -> str | None:
        """Issue a token for a user who has logged in elsewhere.

        Raises:
            UnauthorizedError: the user is revoked.
            StorageError: it is not known who is.
        """

    async def refresh(self) -> None:
        """Learn what was revoked and which keys there are; needed before the rest.

        Raises:
            StorageError, OSError, ValueError: what was known before still holds.
        """

    async def wait(self, seconds: float) -> None:
        """Return after so long, or sooner if it is time to refresh."""

    async def close(self) -> None:
        """Let go of where keys and revocations are. May be called twice."""


class TokenAuthority:
    """Issues and checks signed tokens.

    Args:
        keys: that sign and verify.
        revocations: what is void before its time.
        lifetimes: of tokens.

    Attributes:
        keys: the same.
        revocations: the same.
    """

    def __init__(
        self,
        keys: KeySet,
        revocations: Revocations,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self.keys = keys
        self.revocations = revocations
        self._lifetimes = lifetimes or Lifetimes()
        self.renewal: float | None = self._lifetimes.session / 3
        self.version = 0
        self._refreshing = asyncio.Lock()

    @property
    def key_id(self) -> str:
        """Id of the key that signs now."""
        return next(iter(self.keys.keys))

    def user_token(
        self,
        name: str,
        namespace: str = DEFAULT_NAMESPACE,
        lifetime: float | None = None,
    ) -> str:
        """Issue a token for a user of a namespace.

        Raises:
            ValueError: a namespace cannot be called that.
        """
        credentials = Credentials(name, None, check_namespace(namespace))
        return self._sign(credentials, lifetime or self._lifetimes.user)

    def mailbox_token(self, uid: bytes, by: Credentials) -> str:
        """Issue a token that opens one mailbox, for who registers that."""
        user = by.user or by.subject
        # Whoever is revoked by name takes along what was registered before, and in
        # the moment until that is known.
        credentials = Credentials(
            uid.hex(), uid, by.namespace, user=user, issued=by.issued
        )
        return self._sign(credentials, self._lifetimes.launch)

    def session_token(self, credentials: Credentials, session: bytes) -> str | None:
        """Issue a short-lived token that is good in one session only."""
        if not credentials.token_id:
            return None  # these came from elsewhere, and are proven there
        sid = _session_id(session)
        return self._sign(credentials, self._lifetimes.session, sid=sid)

    def verify(self, token: str | None, session: bytes = b"") -> Credentials:
        """Return what a token says."""
        if not token:
            raise UnauthorizedError(
                "this exchange asks for a token and got none: pass "
                "HttpExchangeFactory(url, token=...), or set ACADEMY_EXCHANGE_TOKEN"
            )
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid"))
            key = self.keys.keys.get(key_id)
            if key is None:
                raise jwt.InvalidKeyError(f"there is no key {key_id:.20}")
            claims = jwt.decode(token, key, [_ALGORITHM], _UNTIMED, issuer=_ISSUER)
            credentials = _credentials(claims, key_id)
            over = time.time() - float(claims["exp"])
        except (jwt.PyJWTError, *_SENSELESS) as error:
            raise UnauthorizedError(
                f"the token is not one of this exchange ({error})"
            ) from error
        if "sid" in claims and claims["sid"] != _session_id(session):
            raise UnauthorizedError("the token is of another connection")
        if over > (self._lifetimes.grace if "sid" in claims else 0):
            raise UnauthorizedError("the token has expired: get a new one")
        if self.is_void(credentials):
            raise UnauthorizedError("the token was revoked: get a new one")
        return credentials

    def is_void(self, credentials: Credentials) -> bool:
        """Whether what was good once has been revoked, or its key dropped."""
        known = credentials.key_id in ("", *self.keys.keys)
        return not known or self.revocations.cover(credentials)

    async def admit(self, by: Credentials) -> str:
        """Issue a token for a user who has logged in elsewhere."""
        begun = time.time()  # what is revoked from now on counts for this token
        try:
            await self.refresh()
        except (OSError, ValueError) as error:
            raise StorageError(f"who is revoked is not known: {error}") from error
        if self.is_void(by):
            raise UnauthorizedError(
                f"{by.subject} is revoked here: ask whoever runs the exchange"
            )
        return self._sign(replace(by, issued=begun), self._lifetimes.user)

    async def refresh(self) -> None:
        """Read keys and revocations again."""
        async with self._refreshing:  # else the older of two answers might come last
            changed = await self.keys.refresh()
            if await self.revocations.refresh() or changed:
                self.version += 1

    async def wait(self, seconds: float) -> None:
        """Wait until it is time to refresh."""
        await self.revocations.store.wait(seconds)

    async def close(self) -> None:
        """Let go of the stores of keys and revocations."""
        await self.keys.store.close()
        await self.revocations.store.close()

    def _sign(self, credentials: Credentials, lifetime: float, **claims: Any) -> str:
        now = time.time()
        claims |= {
            "iss": _ISSUER,
            "sub": credentials.subject,
            "scope": "user" if credentials.mailbox is None else "mailbox",
            "ns": credentials.namespace,
            "jti": credentials.token_id or secrets.token_hex(8),
            "auth_time": credentials.issued or now,
            "iat": now,
            "exp": now + lifetime,
        }
        if credentials.user:
            claims["user"] = credentials.user
        headers = {"kid": self.key_id}
        return jwt.encode(claims, self.keys.keys[self.key_id], _ALGORITHM, headers)


def _credentials(claims: dict[str, Any], key_id: str) -> Credentials:
    subject, scope = claims["sub"], claims["scope"]
    if scope not in ("user", "mailbox"):
        raise ValueError(f"there is no scope {scope!r:.20}")
    return Credentials(
        subject,
        UUID(subject).bytes if scope == "mailbox" else None,
        check_namespace(claims["ns"]),
        user=str(claims.get("user", "")),
        token_id=str(claims["jti"]),
        key_id=key_id,
        issued=float(claims["auth_time"]),
    )


def _session_id(session: bytes) -> str:
    """Name a session without telling it: who knows it may take it over."""
    return hashlib.sha256(session).hexdigest()[:16]


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
