"""For an exchange that asks nobody who they are."""

from __future__ import annotations

import asyncio

from academy.exchange.cloud.security.auth import DEFAULT_NAMESPACE, Credentials


class OpenAuthority:
    """Lets everybody do everything: for an exchange that was asked to be insecure."""

    renewal: float | None = None
    version = 0
    key_id = ""

    def verify(self, token: str | None, session: bytes = b"") -> Credentials:
        """Return the credentials of a user, whatever the token."""
        return Credentials("anonymous")

    def user_token(self, name: str, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Issue nothing: no token is needed."""

    def mailbox_token(self, uid: bytes, by: Credentials) -> None:
        """Issue nothing: no token is needed."""

    def session_token(self, credentials: Credentials, session: bytes) -> None:
        """Issue nothing: no token is needed."""

    def is_void(self, credentials: Credentials) -> bool:
        """Nothing can be revoked."""
        return False

    async def admit(self, by: Credentials) -> None:
        """Issue nothing: no token is needed."""

    async def refresh(self) -> None:
        """Nothing is ever new."""

    async def wait(self, seconds: float) -> None:
        """Nothing is ever new."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """There is nothing to let go of."""
