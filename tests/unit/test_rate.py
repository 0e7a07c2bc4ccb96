"""How fast a namespace may send: what has come is paid for, and nothing is refused."""

from __future__ import annotations

import logging

import pytest

from academy.exception import RateExceededError
from academy.exchange.cloud.rate import Rate, rate_of
from academy.exchange.mailbox import Limits

DAY = 86_400.0
SLOW = Limits(messages_per_second=1 / DAY, burst_seconds=5 * DAY)
"""So slow that it does not matter how long a test takes."""


def days(seconds: float) -> float:
    return round(seconds / DAY, 2)


def test_a_burst_is_free_and_what_is_above_it_has_to_be_waited_for() -> None:
    rate = Rate(SLOW, "team")
    assert days(rate.take(3, 1_000_000)) == -2
    assert days(rate.take(2, 0)) == 0
    assert days(rate.take(3, 0)) == 3


def test_who_comes_later_waits_behind_those_who_came_before() -> None:
    rate = Rate(SLOW, "team")
    assert days(rate.take(9, 0)) == 4
    assert days(rate.take(1, 0)) == 5
    assert days(rate.take(0, 0)) == 5


def test_messages_and_bytes_are_counted_by_themselves() -> None:
    limits = Limits(
        messages_per_second=1 / DAY, bytes_per_second=100 / DAY, burst_seconds=DAY
    )
    rate = Rate(limits, "team")
    assert days(rate.take(2, 0)) == 1
    assert days(rate.take(0, 500)) == 4
    assert days(Rate(limits, "team").take(1, 300)) == 2


def test_what_can_be_sent_again_is_refused_while_there_is_something_to_pay() -> None:
    rate = Rate(SLOW, "team")
    rate.take(4, 0)
    rate.check()
    rate.take(2, 0)
    with pytest.raises(RateExceededError) as refused:
        rate.check()
    assert refused.value.quota == "messages_per_second"
    assert days(refused.value.wait) == 1
    assert " messages per second, and has sent more" in str(refused.value)


def test_an_episode_is_logged_once_however_long_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rate = Rate(SLOW, "team")
    for _ in range(9):
        rate.take(2, 0)
    assert rate.episodes == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "namespace team sends faster than it may" in record.getMessage()


def test_another_episode_begins_after_a_rest(caplog: pytest.LogCaptureFixture) -> None:
    rate = Rate(Limits(bytes_per_second=1e9, burst_seconds=1e-9), "team")
    while rate.episodes < 2:
        rate.take(0, 1000)
        while rate.take(0, 0) > -4e-10:
            pass
    assert len(caplog.records) == 2


def test_where_no_rate_is_configured_nothing_is_counted() -> None:
    assert rate_of(Limits(max_namespace_messages=1), "team") is None
    assert rate_of(Limits(bytes_per_second=1), "team") is not None
