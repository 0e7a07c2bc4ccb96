"""As whom a client speaks: as one of its mailboxes, or as who has connected."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from academy.exception import ForbiddenError, UnauthorizedError
from academy.exchange.broker import Broker
from academy.exchange.cloud import protocol
from academy.exchange.cloud.security.auth import Authority, Credentials
from academy.exchange.cloud.writer import Writer

logger = logging.getLogger(__name__)

TOKENS_AT_ONCE = 100
"""Tokens in one TOKENS record: to sign them takes a millisecond or two."""
REVOKED = "the token was revoked: get a new one"


class Speakers:
    """What a client and its mailboxes may do, by the tokens that they have shown.

    Invariants: `_credentials` keeps what each attached mailbox may do, and `_cut` whose
    token is void.

    Attributes:
        user: who has connected.
    """

    def __init__(
        self,
        broker: Broker,
        authority: Authority,
        session: bytes,
        user: Credentials,
        writer: Writer,
    ) -> None:
        self.user = user
        self._broker = broker
        self._authority = authority
        self._session = session
        self._writer = writer
        self._credentials: dict[bytes, Credentials] = {}
        self._cut: set[bytes] = set()

    def admit(self, uid: bytes, credentials: Credentials) -> None:
        """Let a mailbox speak that is attached."""
        self._credentials[uid] = credentials
        self._cut.discard(uid)

    def forget(self, uid: bytes) -> None:
        """Let a mailbox speak no more: it is detached."""
        self._credentials.pop(uid, None)

    def speaker(self, call: dict[str, Any]) -> Credentials:
        """Return as whom a client makes a call: one of its mailboxes, or who connected.

        Who connected speaks for own mailboxes that are not attached any more, and for
        nobody else's.
        """
        if "as" not in call:
            return self.user
        uid = UUID(call["as"]).bytes
        if uid in self._credentials:
            return self._credentials[uid]
        if uid in self._cut:
            raise UnauthorizedError(REVOKED)
        if uid == self.user.mailbox or self._broker.creator(uid) == self.user.subject:
            return self.user
        raise ForbiddenError(f"mailbox {UUID(bytes=uid)} is not attached here")

    def verify(self, token: str | None) -> Credentials:
        """Return what another token says, of the namespace of this connection."""
        credentials = self._authority.verify(token, self._session)
        if credentials.namespace != self.user.namespace:
            raise UnauthorizedError(
                f"the token is of the namespace {credentials.namespace!r}, and this "
                f"connection of {self.user.namespace!r}"
            )
        return credentials

    async def renew(self, uids: Iterable[bytes] | None = None) -> None:
        """Send fresh tokens, for the connection and its mailboxes, or for these."""
        issue, session = self._authority.session_token, self._session
        if uids is None:
            self._note_key(self._authority.key_id)
            self._put_tokens({b"": issue(self.user, session)})
            uids = self._credentials
        left = list(uids)
        while left:
            batch, left = left[:TOKENS_AT_ONCE], left[TOKENS_AT_ONCE:]
            held = {uid: c for uid in batch if (c := self._credentials.get(uid))}
            self._put_tokens({uid: issue(c, session) for uid, c in held.items()})
            if left:
                await asyncio.sleep(0)

    def _note_key(self, key_id: str) -> None:
        """Remember that all tokens here are signed with this key from now on."""
        if self.user.key_id in ("", key_id):
            return
        self.user = replace(self.user, key_id=key_id)
        for uid, held in self._credentials.items():
            self._credentials[uid] = replace(held, key_id=key_id)

    def _put_tokens(self, tokens: Mapping[bytes, str | None]) -> None:
        issued = {uid: token for uid, token in tokens.items() if token}
        if issued:
            self._writer.put(protocol.tokens(issued))

    def cut_void(self) -> list[bytes] | None:
        """Forget whose token is void now.

        Returns:
            The mailboxes that are to be detached; None if nobody else is left, so that
            the connection is to be closed.
        """
        is_void = self._authority.is_void
        good = [held for held in self._credentials.values() if not is_void(held)]
        if is_void(self.user):
            logger.info("cut off %s, who is revoked", self.user.subject)
            if not good:
                return None
            # Others of this connection go on, and one of them keeps it open.
            self.user = good[0]
            self._put_tokens(
                {b"": self._authority.session_token(good[0], self._session)}
            )
        void = [uid for uid, held in self._credentials.items() if is_void(held)]
        self._cut.update(void)
        return void
