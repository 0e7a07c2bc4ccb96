"""What is remembered of exchanges: where they are, and where they were."""

from __future__ import annotations

import json

import pytest

from academy.exception import ExchangeError
from academy.exchange.cloud.credentials import (
    current_address,
    exchanges_file,
    find_fingerprint,
    find_token,
    find_url,
    forget,
    known_exchanges,
    remember,
)

FIRST, SECOND, THIRD = (f"http://n{n}:8700" for n in (1, 2, 3))


def test_an_exchange_of_a_name_is_found_wherever_it_was() -> None:
    remember("http://other:1", token="z", name="other")
    for number, url in enumerate((FIRST, SECOND, THIRD)):
        remember(url, token=f"t{number}", fingerprint=f"f{number}", name="campaign")
        forget(url)
        assert find_url("campaign") == url

    for url in (FIRST, SECOND, THIRD):
        assert current_address(f"{url}/") == THIRD
        assert find_token(url) == "t2"
        assert find_fingerprint(url) == "f2"
    assert find_url("other") == current_address("http://other:1") == "http://other:1"
    assert "t0" not in exchanges_file().read_text()


def test_one_that_comes_back_to_where_it_was_has_not_moved() -> None:
    for url in (FIRST, SECOND, FIRST):
        remember(url, token="t", name="campaign")
    assert current_address(SECOND) == current_address(FIRST) == FIRST


def test_one_without_a_name_is_forgotten_and_leads_nowhere_else() -> None:
    remember(FIRST, token="t")
    remember(SECOND, token="u")
    assert current_address(FIRST) == FIRST
    forget(FIRST)
    assert known_exchanges() == {SECOND: {"token": "u"}}


def test_of_one_that_has_ended_no_process_is_remembered() -> None:
    remember(FIRST, token="t", name="campaign", pid=7, node="n1", started=1, log="l")
    forget(FIRST)
    content = json.loads(exchanges_file().read_text())
    assert content == {FIRST: {"name": "campaign", "token": "t"}}


def test_a_name_that_is_not_known_is_told_with_those_that_are() -> None:
    remember(FIRST, name="campaign")
    remember(SECOND)
    with pytest.raises(ExchangeError, match=r"'campain' is known .* Known: campaign"):
        find_url("campain")
