"""The last lines that a batch job printed."""

from __future__ import annotations

import os
from pathlib import Path

from academy.scheduler.job import JobInfo

_MAX_BYTES = 16_384
_MAX_LINE = 400


def tail(path: str | Path, lines: int = 20) -> str:
    """Return the last lines of a file, or "" if it cannot be read.

    At most 16 KiB are read and 400 characters kept of a line, so a file of any size
    and content will do. Progress bars, which overwrite their line, count as one.
    """
    try:
        # Pipes and devices would have us wait.
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - _MAX_BYTES))
            text = file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
    if start:  # The first line may be half of one.
        text = text.partition("\n")[2] or text
    kept = text.rstrip().split("\n")[-lines:]
    return "\n".join(_last_written(line)[-_MAX_LINE:] for line in kept)


def tail_of(job: JobInfo, lines: int = 20) -> str:
    """Return the last that a job printed: its errors, or else its standard output.

    If both are short, both.
    """
    paths = dict.fromkeys(path for path in (job.stderr, job.stdout) if path)
    printed = [said for said in (tail(path, lines) for path in paths) if said]
    if len(printed) == 2 and sum(said.count("\n") + 1 for said in printed) > lines:
        return printed[0]
    return "\n".join(printed)


def _last_written(line: str) -> str:
    """Return what a terminal would show of a line, without its control characters."""
    written = [part for part in line.split("\r") if part.strip()]
    shown = written[-1] if written else ""
    return "".join(
        char if char.isprintable() or char == "\t" else "?" for char in shown
    )
