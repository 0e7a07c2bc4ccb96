"""How a client knows that an exchange is the one it means."""

from __future__ import annotations

import asyncio
import re
import ssl

import aiohttp

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


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


def trust(fingerprint: str | None, verify: bool) -> bool | aiohttp.Fingerprint:
    """Return which certificates are trusted, in aiohttp's words.

    aiohttp compares a pinned one after the handshake and before it sends a request,
    so that a stranger sees no token.
    """
    return aiohttp.Fingerprint(bytes.fromhex(fingerprint)) if fingerprint else verify


def explain(error: Exception, url: str) -> str:
    """Say why a connection failed, and what to do where it is about TLS."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return (
            f"its certificate has the SHA-256 fingerprint {error.got.hex()}, and "
            f"{error.expected.hex()} is expected. Either it has a new certificate "
            "(compare `academy exchange status` on its machine), or this is not it"
        )
    reason = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"{error.certificate_error}. Pin its certificate with fingerprint=… or "
            "ACADEMY_EXCHANGE_FINGERPRINT (`academy exchange status` on its machine "
            "shows it), or name your authority in SSL_CERT_FILE"
        )
    if isinstance(error, aiohttp.ClientSSLError) and _got_no_tls(error):
        return f"it does not speak TLS; is its url http://{url.partition('//')[2]}?"
    hung_up = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError)
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


def _got_no_tls(error: BaseException) -> bool:
    cause = error.__cause__
    return isinstance(cause, ssl.SSLError) and cause.reason in (
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
    )
