"""Times and lists of nodes as schedulers write them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from academy.scheduler.times import c_time, expand, iso_time, seconds


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("n1", ("n1",)),
        ("n1,login", ("n1", "login")),
        ("n[1-3]", ("n1", "n2", "n3")),
        ("n[08-10,3],x", ("n08", "n09", "n10", "n3", "x")),
        ("a[1-2]b[1-2]", ("a1b1", "a1b2", "a2b1", "a2b2")),
        ("nid[000001,000003]-ib", ("nid000001-ib", "nid000003-ib")),
    ],
)
def test_lists_of_nodes_are_written_out(text: str, names: tuple[str, ...]) -> None:
    assert set(expand(text)) == set(names)
    assert len(expand(text)) == len(names)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("1-00:00:00", 86400),
        ("2-12", 2.5 * 86400),
        ("1-1:30", 86400 + 5400),
        ("infinite", None),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_durations_are_seconds(text: str, duration: float | None) -> None:
    assert seconds(text) == duration


def test_times_have_a_time_zone() -> None:
    for time in (iso_time("2026-11-22T17:05:09"), c_time("Sun Nov 22 17:05:09 2026")):
        assert time is not None
        assert time.utcoffset() is not None
        assert time.replace(tzinfo=None) == datetime(2026, 11, 22, 17, 5, 9)


def test_a_time_without_a_year_is_the_last_one() -> None:
    now = datetime.now()
    for ago in (timedelta(days=1), timedelta(days=200)):
        then = (now - ago).replace(second=0, microsecond=0)
        time = c_time(f"{then:%b} {then.day} {then:%H:%M}")
        assert time is not None
        assert time.replace(tzinfo=None) == then


@pytest.mark.parametrize(
    "text", ["", "N/A", "Unknown", "-/-", "Foo 3 10:00", "Feb 31 1:00"]
)
def test_what_is_no_time_is_none(text: str) -> None:
    assert c_time(text) is None
    assert iso_time(text) is None
