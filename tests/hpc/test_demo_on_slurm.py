"""The demonstration with its workers in a Slurm job, as a user of a cluster runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.slurm import NetnsLab

pytestmark = pytest.mark.hpc

INPUT = """
[simulation]
atoms = 7
replicas = 3
steps = 400
steps_per_round = 20

[exchange]
host = "{address}"
"""


@pytest.mark.slow
def test_the_demonstration_finds_the_published_minimum_in_a_slurm_job(
    hosts: NetnsLab, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    (tmp_path / "input.toml").write_text(INPUT.format(address=hosts.address))
    demo = subprocess.run(
        [
            *(Path(sys.executable).with_name("academy"), "demo", "input.toml"),
            *("--parsl-config", pytestconfig.rootpath / "examples/hpc/slurm.py"),
            *("--output", "found"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "PASS" in demo.stdout
    summary = json.loads((tmp_path / "found" / "summary.json").read_text())
    assert summary["minimum"] == pytest.approx(-16.505384, abs=1e-3)
    assert [job for job, state in hosts.jobs().items() if state != "COMPLETING"] == []
