"""Where a user's tokens and an exchange's key lie: private files under the home."""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

from academy.home import get_academy_home, write_private

TOKEN_VARIABLE = "ACADEMY_EXCHANGE_TOKEN"
FINGERPRINT_VARIABLE = "ACADEMY_EXCHANGE_FINGERPRINT"


def exchanges_file(home: Path | None = None) -> Path:
    """Return the file that knows the exchanges of this user, by url."""
    return (home or get_academy_home()) / "exchange.json"


def known_exchanges(home: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return what was remembered of exchanges, by url; empty if nothing was."""
    try:
        content = json.loads(exchanges_file(home).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_token(url: str) -> str | None:
    """Return the token from the environment, or the one remembered for a url."""
    return _find(TOKEN_VARIABLE, url, "token")


def find_fingerprint(url: str) -> str | None:
    """Return the fingerprint from the environment, or the one remembered for a url."""
    return _find(FINGERPRINT_VARIABLE, url, "fingerprint")


def _find(variable: str, url: str, fact: str) -> str | None:
    if value := os.environ.get(variable):
        return value
    value = known_exchanges().get(url.rstrip("/"), {}).get(fact)
    return str(value) if value else None


def claims_of(token: str | None) -> dict[str, Any]:
    """Return what a token says, or nothing if it is none; it is not checked here."""
    try:
        _, payload, _ = (token or "").split(".")
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


def remember(url: str, **facts: Any) -> None:
    """Keep what clients of this user need to use an exchange."""
    write_private(
        exchanges_file(),
        json.dumps(known_exchanges() | {url.rstrip("/"): facts}, indent=2),
    )


def forget(url: str) -> None:
    """Remove what was remembered of an exchange."""
    known = known_exchanges()
    if known.pop(url.rstrip("/"), None) is not None:
        write_private(exchanges_file(), json.dumps(known, indent=2))
