"""Types as users see them: each case is checked by mypy and by pyright.

A line that ends in `# E: TEXT` must be an error whose message contains TEXT; every
other line must be none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = sorted((Path(__file__).parent / "cases").glob("*.py"))

Errors = dict[int, list[str]]  # line -> messages
Checker = Callable[[], dict[Path, Errors]]


def output_of(*command: str) -> str:
    """Output of a checker, which exits with 1 for the errors that we ask for."""
    process = subprocess.run(
        [sys.executable, "-m", *command, *map(str, CASES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in (0, 1), process.stdout + process.stderr
    return process.stdout


@cache
def mypy() -> dict[Path, Errors]:
    found: dict[Path, Errors] = defaultdict(lambda: defaultdict(list))
    cache_dir = "--cache-dir=.mypy_cache/cases"  # Not that of a mypy beside us.
    output = output_of("mypy", "--strict", "--output=json", cache_dir)
    for error in map(json.loads, output.splitlines()):
        if error["severity"] == "error":
            found[ROOT / error["file"]][error["line"]].append(error["message"])
    return found


@cache
def pyright() -> dict[Path, Errors]:
    found: dict[Path, Errors] = defaultdict(lambda: defaultdict(list))
    output = output_of("pyright", "--outputjson", "--pythonpath", sys.executable)
    for error in json.loads(output)["generalDiagnostics"]:
        line = error["range"]["start"]["line"] + 1
        found[Path(error["file"])][line].append(error["message"])
    return found


def expected_errors(case: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(case.read_text().splitlines(), start=1):
        if match := re.search(r"# E:(.*)", line):
            yield number, match[1].strip()


@pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])
@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
def test_a_case_has_its_errors_and_no_others(case: Path, checker: Checker) -> None:
    found = checker()[case]
    expected = dict(expected_errors(case))
    assert {line: found[line] for line in found if line not in expected} == {}
    missed = {
        line: f"wanted {text!r}, found {found.get(line)}"
        for line, text in expected.items()
        if not any(text in message for message in found.get(line, []))
    }
    assert missed == {}
