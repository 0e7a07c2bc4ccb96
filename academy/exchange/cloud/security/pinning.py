"""How a client knows that an exchange is the one it means."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import ssl

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
"""What OpenSSL calls an answer that is no TLS."""


def parse_fingerprint(text: str) -> str:
    """Return a SHA-256 fingerprint as 64 hex digits; colons between may be there.

    Raises:
        ValueError: it is none.
    """
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "")
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError(
            f"A fingerprint has 64 hex digits (SHA-256), not {len(digits)} as "
            f"{text!r:.100}: `academy exchange status` shows it."
        )
    return digits


class FingerprintError(ssl.SSLCertVerificationError):
    """A certificate is not the pinned one.

    Args:
        expected: fingerprint of the pinned one.
        got: fingerprint of the one that was shown.
    """

    def __init__(self, expected: str, got: str) -> None:
        text = (
            f"its certificate has the SHA-256 fingerprint {got}, and {expected} is "
            "expected. Either it has a new certificate (compare `academy exchange "
            "status` on its machine), or this is not it"
        )
        super().__init__(ssl.SSL_ERROR_SSL, text)


@functools.cache
def trust(fingerprint: str | None, verify: bool) -> ssl.SSLContext:
    """Return a context that trusts one certificate, those of authorities, or any.

    A pinned one is compared as the last step of the handshake, before anything is
    sent over the connection: a stranger sees no token.
    """
    if fingerprint is None and verify:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if fingerprint is not None:
        pinned = type("Pinned", (_PinnedConnection,), {"fingerprint": fingerprint})
        context.sslobject_class = pinned
    return context


class _PinnedConnection(ssl.SSLObject):
    """A TLS connection to whoever has the certificate of its class."""

    fingerprint: str

    def do_handshake(self) -> None:
        super().do_handshake()
        shown = self.getpeercert(binary_form=True) or b""
        got = hashlib.sha256(shown).hexdigest()
        if got != self.fingerprint:
            raise FingerprintError(self.fingerprint, got)


def explain(error: Exception, url: str, *, hung_up: bool = False) -> str:
    """Say why a connection failed, and what to do where it is about TLS.

    Args:
        error: of the connection.
        url: that it was made to.
        hung_up: whether the other side has ended it without an answer.
    """
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, FingerprintError):
        return str(cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"{cause}. Pin its certificate with fingerprint=… or "
            "ACADEMY_EXCHANGE_FINGERPRINT (`academy exchange status` on its machine "
            "shows it), or name your authority in SSL_CERT_FILE"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
        return f"it does not speak TLS; is its url http://{url.partition('//')[2]}?"
    reason = str(error) or type(error).__name__
    if isinstance(error, ConnectionError) and error.errno:
        reason = f"{os.strerror(error.errno)} ({error.strerror})"
    hung_up = hung_up or isinstance(error, ConnectionResetError)
    if hung_up and url.startswith("http:"):
        return (
            f"{reason}. If it speaks TLS, its url is https://{url.partition('//')[2]}"
        )
    return reason


def break_off(transport: asyncio.Transport | None) -> None:
    """End a connection on which nothing is left to be sent, at once.

    TLS says goodbye after a transport is closed, when the event loop may be gone.
    """
    if transport is not None:
        transport.abort()
