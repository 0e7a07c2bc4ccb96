"""Where a user's tokens and an exchange's key lie: private files under the home."""

from __future__ import annotations

import copy
import json
import os
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from academy.exception import ExchangeError
from academy.home import get_academy_home, locked, write_private

TOKEN_VARIABLE = "ACADEMY_EXCHANGE_TOKEN"
FINGERPRINT_VARIABLE = "ACADEMY_EXCHANGE_FINGERPRINT"
_LASTING = ("name", "moved", "token", "fingerprint")


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
    known = known_exchanges()
    value = known.get(_address(known, url), {}).get(fact)
    return str(value) if value else None


def find_url(name: str) -> str:
    """Return where the exchange of a name is, or where it was last.

    Raises:
        ExchangeError: no exchange of this user was called that.
    """
    known = known_exchanges()
    names = {facts["name"] for facts in known.values() if "name" in facts}
    for url, facts in known.items():
        if facts.get("name") == name and "moved" not in facts:
            return url
    called = ", ".join(sorted(names)) or "none"
    raise ExchangeError(
        f"No exchange called {name!r} is known in {exchanges_file()}. Known: {called}."
    )


def current_address(url: str) -> str:
    """Return where the exchange is now that was at a url."""
    return _address(known_exchanges(), url)


def _address(known: Mapping[str, dict[str, Any]], url: str) -> str:
    url = url.rstrip("/")
    for old, facts in known.items():
        path = url.removeprefix(old)  # such as that of an older protocol
        if "moved" in facts and url.startswith(old) and path[:1] in ("", "/"):
            return str(facts["moved"]) + path
    return url


def claims_of(token: str | None) -> dict[str, Any]:
    """Return what a token says, or nothing if it is none; it is not checked here."""
    try:
        _, payload, _ = (token or "").split(".")
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


def remember(url: str, *others: str, **facts: Any) -> None:
    """Keep what clients of this user need to use an exchange, beside what is known.

    One that has a `name` may have been elsewhere before: who knows it from there is
    sent here.

    Args:
        url: its address.
        others: by which it is known as well.
        facts: to keep; None forgets one.
    """
    url, name = url.rstrip("/"), facts.get("name")
    with _changing() as known:
        for other, of_other in known.items():
            if name and other != url and of_other.get("name") == name:
                known[other] = {"name": name, "moved": url}
        for one in (url, *others):
            found = known.get(one, {}) | facts | {"moved": None}
            if one != url:
                found["name"] = None  # the first address stands for all
            known[one] = {key: fact for key, fact in found.items() if fact is not None}


def forget(*urls: str) -> None:
    """Remove what was remembered of an exchange, under all its addresses.

    Of one that has a name, what those who wait for it need stays.
    """
    with _changing() as known:
        for url in urls:
            facts = known.pop(url.rstrip("/"), {})
            if "name" in facts:
                lasting = {key: facts[key] for key in _LASTING if key in facts}
                known[url.rstrip("/")] = lasting


@contextmanager
def _changing() -> Iterator[dict[str, dict[str, Any]]]:
    """Change what is known, one process at a time; what is the same is not written."""
    with locked(exchanges_file()):
        known = known_exchanges()
        before = copy.deepcopy(known)
        yield known
        if known != before:
            write_private(exchanges_file(), json.dumps(known, indent=2))
