"""Which records of an exchange are written, and how many of a kind."""

from __future__ import annotations

import logging

from academy.exchange.cloud.operations.logs import (
    BURST,
    ClientFilter,
    Throttle,
    current_client,
)
from academy.exchange.cloud.security.auth import Credentials


def record(
    words: str, time: float, *arguments: object, level: int = logging.WARNING
) -> logging.LogRecord:
    line = len(words)
    made = logging.LogRecord("academy.x", level, __file__, line, words, arguments, None)
    made.created = time
    return made


def test_of_a_kind_of_warning_some_come_at_once_and_then_one_per_second() -> None:
    throttle = Throttle()
    passed = [throttle.filter(record("no %s", 100.0, n)) for n in range(1000)]
    assert passed == [True] * BURST + [False] * (1000 - BURST)

    late = record("no %s", 101.5, "way")
    assert throttle.filter(late)
    assert late.getMessage() == f"no way (and {1000 - BURST} like it, left out)"
    assert not throttle.filter(record("no %s", 101.6, "way"))
    assert throttle.filter(record("no %s", 102.1, "way"))

    calm = [throttle.filter(record("no %s", 10_000.0, n)) for n in range(BURST + 10)]
    assert sum(calm) == BURST


def test_kinds_do_not_count_for_each_other_and_what_is_less_than_a_warning_passes() -> (
    None
):
    throttle = Throttle()
    for n in range(BURST + 10):
        throttle.filter(record("no %s", 0.0, n))
    assert throttle.filter(record("something else", 0.0))
    many = [record("on", 0.0, level=logging.INFO) for _ in range(1000)]
    assert all(map(throttle.filter, many))


def test_a_record_has_its_client_unless_it_is_of_all() -> None:
    token = current_client.set(Credentials("ada", None, "team"))
    try:
        one, of_broker = record("x", 0.0), record("x", 0.0)
        of_broker.name = "academy.exchange.turns"
        for each in (one, of_broker):
            assert ClientFilter().filter(each)
    finally:
        current_client.reset(token)
    assert (vars(one)["namespace"], vars(one)["client"]) == ("team", "ada")
    assert (vars(of_broker)["namespace"], vars(of_broker)["client"]) == ("team", None)
    outside = record("x", 0.0)
    ClientFilter().filter(outside)
    assert (vars(outside)["namespace"], vars(outside)["client"]) == (None, None)
