"""The project's own tools: what they must catch, and what they must find."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Where the name to import is not the name to install.
IMPORTED_AS = {"pyjwt": "jwt"}

# Who runs mypy has it; the plugin is loaded by nobody else.
BROUGHT_BY_ITS_USER = {"mypy"}

# Dependencies whose user is yet to be written.
PROMISED: set[str] = set()


def distribution_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", name, maxsplit=1)[0] for name in requirements}


def imported_modules(*folders: str) -> Iterator[str]:
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0]


def import_name(distribution: str) -> str:
    name = distribution.lower()
    return IMPORTED_AS.get(name, name.replace("-", "_"))


class TestDependencies:
    declared = distribution_names(
        PROJECT["dependencies"] + PROJECT["optional-dependencies"]["demo"]
    )

    def test_each_is_used(self) -> None:
        used = set(imported_modules("academy", "examples"))
        unused = {name for name in self.declared if import_name(name) not in used}
        assert unused == PROMISED

    def test_each_third_party_import_is_declared(self) -> None:
        used = set(imported_modules("academy", "examples"))
        known = {import_name(name) for name in self.declared} | {"academy"}
        known |= BROUGHT_BY_ITS_USER
        assert used - known - set(sys.stdlib_module_names) == set()

    def test_each_has_a_lower_bound(self) -> None:
        assert [name for name in PROJECT["dependencies"] if ">=" not in name] == []


def test_the_changelog_describes_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert headings[0] == PROJECT["version"]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    match = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert match is not None
    shown = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, "help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == match[1].split()


class TestFindPython:
    """scripts/find-python chooses what .venv is made from."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        return folder

    def find(self, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", ROOT / "scripts" / "find-python"],
            env={"PATH": str(path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def add(self, path: Path, name: str, script: str) -> Path:
        program = path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    def test_passes_over_a_name_with_nothing_behind_it(self, path: Path) -> None:
        self.add(path, "python3", "echo 'command not found' >&2; exit 127")
        good = self.add(path, "python3.12", f'exec "{sys.executable}" "$@"')
        assert self.find(path).stdout.strip() == str(good)

    def test_passes_over_an_old_python(self, path: Path) -> None:
        self.add(path, "python3", "exit 1")
        good = self.add(path, "python3.11", f'exec "{sys.executable}" "$@"')
        assert self.find(path).stdout.strip() == str(good)

    def test_obeys_the_variable_python(self, path: Path) -> None:
        self.add(path, "python3", f'exec "{sys.executable}" "$@"')
        other = self.add(path, "my python", f'exec "{sys.executable}" "$@"')
        assert self.find(path, PYTHON=str(other)).stdout.strip() == str(other)

    def test_names_what_is_needed_when_there_is_none(self, path: Path) -> None:
        found = self.find(path)
        assert found.returncode == 1
        assert found.stdout == ""
        assert "Python 3.11 or newer" in found.stderr
        assert "skipped: making .venv" in found.stderr
