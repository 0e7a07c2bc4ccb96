"""Parsl's own configurations that name a network interface of their machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import parsl.configs
import pytest

pytestmark = pytest.mark.hpc

INTERFACES = {
    "bridges": "ens3f0",
    "midway": "bond0",
    "polaris": "bond0",
    "stampede2": "em3",
    "summit": "ib0",
}
PROGRAM = """\
import sys
from academy.executors.parsl import ParslExecutor
for path in sys.argv[1:]:
    for executor in ParslExecutor.from_config(path).values():
        print(executor.preview())
"""


def test_each_of_them_loads_and_previews_where_there_is_such_an_interface(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("only root can make a network of its own, with unshare and ip")
    folder = Path(parsl.configs.__file__).parent
    commands = ["ip link set lo up"]
    for number, name in enumerate(sorted(set(INTERFACES.values())), 1):
        commands += [
            f"ip link add {name} type bridge",
            f"ip addr add 198.18.{number}.1/24 dev {name}",
        ]
    files = [str(folder / f"{name}.py") for name in INTERFACES]
    commands.append(shlex.join([sys.executable, "-c", PROGRAM, *files]))
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", "\n".join(commands)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("process_worker_pool.py") == len(INTERFACES)
    for number in range(1, 5):
        assert f" -a 198.18.{number}.1 " in done.stdout
