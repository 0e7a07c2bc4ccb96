"""What is remembered of exchanges: where they are, and where they were."""

from __future__ import annotations

import json
import subprocess
import sys

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
        assert current_address(f"{url}/v1/") == f"{THIRD}/v1"
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
    assert current_address(f"{FIRST}0/v1") == f"{FIRST}0/v1"
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


def test_a_fact_that_is_none_is_forgotten_and_others_stay() -> None:
    remember(FIRST, SECOND, token="t", pid=7, name="campaign")
    remember(FIRST, token=None, name=None)
    assert known_exchanges() == {FIRST: {"pid": 7}, SECOND: {"token": "t", "pid": 7}}


def test_what_is_known_already_is_not_written_again() -> None:
    remember(FIRST, token="t")
    before = exchanges_file().stat()
    remember(FIRST, token="t")
    forget(SECOND)
    assert exchanges_file().stat().st_ino == before.st_ino


REMEMBER = """
import sys
from academy.exchange.cloud.credentials import remember
print(flush=True)
sys.stdin.readline()
for number in range(20):
    remember(f"http://{sys.argv[1]}:{number}", token="t")
"""


def test_programs_that_remember_at_once_lose_nothing_of_each_other() -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", REMEMBER, f"n{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for program in programs:
        assert program.stdout is not None
        program.stdout.readline()
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    for program in programs:
        program.communicate()
        assert program.returncode == 0
    assert len(known_exchanges()) == 80
