"""scripts/debian-packages, with commands that only tell what they were asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "debian-packages"


class Machine:
    """A directory of commands, and what it heard of them.

    Attributes:
        calls: What apt-get was asked to do, one line each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        self.add("dpkg-query", 'echo " munge=installed  slurmd=config-files "; exit 1')
        self.add("apt-get", f'echo "$*" >> {self.calls}')
        self.add("id", "echo 0")

    def add(self, name: str, script: str) -> None:
        command = self.folder / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)

    def run(self, *packages: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", SCRIPT, "tests on Slurm", *packages],
            env={"PATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self) -> list[str]:
        """Return what apt-get was asked to do, without options."""
        lines = self.calls.read_text().splitlines()
        return [
            " ".join(w for w in line.split() if w[0] != "-" and "=" not in w)
            for line in lines
        ]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    folder = tmp_path / "bin"
    folder.mkdir()
    return Machine(folder)


def test_nothing_happens_where_all_is_installed(machine: Machine) -> None:
    done = machine.run("munge")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.asked() == []


def test_what_is_missing_is_installed(machine: Machine) -> None:
    done = machine.run("munge", "slurmd", "slurmctld")
    assert done.returncode == 0
    assert machine.asked() == ["install slurmd slurmctld"]
    assert done.stderr.count("\n") == 1


def test_the_package_lists_are_fetched_if_they_do_not_serve(machine: Machine) -> None:
    lists = machine.folder / "lists"
    machine.add(
        "apt-get",
        f'echo "$*" >> {machine.calls}\n'
        f'[ "$1" != update ] || : > {lists}\n'
        f"[ -e {lists} ]",
    )
    assert machine.run("slurmd").returncode == 0
    assert machine.asked() == ["install slurmd", "update", "install slurmd"]


@pytest.mark.parametrize(
    ("command", "script", "reason"),
    [
        ("id", "echo 1000", "not root"),
        ("apt-get", "exit 100", "apt-get failed"),
        ("apt-get", None, "no apt-get here"),
    ],
)
def test_one_line_says_why_and_what_is_skipped(
    machine: Machine, command: str, script: str | None, reason: str
) -> None:
    if script is None:
        (machine.folder / command).unlink()
    else:
        machine.add(command, script)
    done = machine.run("munge", "slurmd")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"debian-packages: {reason}: not installing slurmd; skipped: tests on Slurm"
    )
