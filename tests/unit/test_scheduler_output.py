"""The last lines that a job printed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from academy.scheduler.job import JobInfo
from academy.scheduler.output import tail, tail_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("\n\n", ""),
        ("one\n", "one"),
        ("one\n\nthree\n\n", "one\n\nthree"),
        ("10 %\r50 %\r100 %\r\ndone\n", "100 %\ndone"),
        ("\x1b[31mred\x1b[0m\tand\0more\n", "?[31mred?[0m\tand?more"),
        ("\r\n", ""),
    ],
)
def test_the_end_of_a_file_is_what_a_terminal_would_show(
    tmp_path: Path, text: str, shown: str
) -> None:
    path = tmp_path / "output"
    path.write_text(text, newline="")
    assert tail(path) == shown


def test_of_a_large_file_little_is_read(tmp_path: Path) -> None:
    path = tmp_path / "output"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)  # It takes no room.
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"x" * 1_000_000 + b"\n")
        file.write(b"".join(b"line %d\n" % number for number in range(100)))
    lines = tail(path, lines=3)
    assert lines == "line 97\nline 98\nline 99"
    assert len(tail(path, lines=1000)) < 16_384


def test_a_long_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "output"
    path.write_bytes(b"x" * 100_000 + b"end\n")
    assert tail(path).endswith("xend")
    assert len(tail(path)) == 400


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe end")
    assert tail(tmp_path / "nosuch") == ""
    assert tail(tmp_path) == ""
    assert tail(tmp_path / "pipe") == ""
    assert tail("/dev/zero") == ""
    assert tail(tmp_path / "binary").endswith(" end")


def test_errors_come_before_output_and_alone_if_there_are_many(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    job = JobInfo("slurm", "12", stdout=str(out), stderr=str(err))
    assert tail_of(job) == ""
    out.write_text("said\n")
    assert tail_of(job) == "said"
    err.write_text("failed\n")
    assert tail_of(job) == "failed\nsaid"
    err.write_text("".join(f"{number}\n" for number in range(30)))
    assert tail_of(job).splitlines() == [str(number) for number in range(10, 30)]
    assert tail_of(JobInfo("slurm", "12", stdout=str(out), stderr=str(out))) == "said"
    assert tail_of(JobInfo("slurm", "12")) == ""
