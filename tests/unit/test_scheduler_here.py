"""What a process learns about its job from its environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from academy.scheduler.here import place


@pytest.mark.parametrize(
    ("environment", "scheduler", "job_id"),
    [
        ({}, "", ""),
        ({"SLURM_JOB_ID": "12"}, "slurm", "12"),
        (
            {
                "SLURM_JOB_ID": "14",
                "SLURM_ARRAY_JOB_ID": "12",
                "SLURM_ARRAY_TASK_ID": "3",
            },
            *("slurm", "12_3"),
        ),
        ({"PBS_JOBID": "12.pbs01", "PBS_JOBDIR": "/home/u"}, "pbs", "12.pbs01"),
        ({"PBS_JOBID": "12[3].pbs01"}, "pbs", "12[3].pbs01"),
        ({"PBS_JOBID": "12.t", "PBS_NUM_PPN": "8"}, "torque", "12.t"),
        ({"PBS_JOBID": "12.t", "PBS_VERSION": "TORQUE-6.1.1"}, "torque", "12.t"),
        (
            {"PBS_JOBID": "12.p", "PBS_JOBDIR": "/home/u", "PBS_NUM_PPN": "8"},
            *("pbs", "12.p"),
        ),
        ({"LSB_JOBID": "12", "LSB_JOBINDEX": "0"}, "lsf", "12"),
        ({"LSB_JOBID": "12", "LSB_JOBINDEX": "3"}, "lsf", "12[3]"),
        ({"JOB_ID": "12", "SGE_TASK_ID": "undefined"}, "grid_engine", "12"),
        ({"JOB_ID": "12", "SGE_TASK_ID": "3"}, "grid_engine", "12.3"),
        ({"JOB_ID": "of something else"}, "", ""),
        ({"FLUX_JOB_ID": "ƒ2uqL"}, "flux", "ƒ2uqL"),
        ({"FLUX_JOB_ID": "ƒ2uqL", "SLURM_JOB_ID": "12"}, "slurm", "12"),
        ({"SLURM_JOB_ID": ""}, "", ""),
    ],
)
def test_the_job_is_told_from_the_variables_of_its_scheduler(
    environment: dict[str, str], scheduler: str, job_id: str
) -> None:
    here = place(environment)
    assert (here.scheduler, here.job_id) == (scheduler, job_id)
    assert (here.host, here.pid) == (socket.gethostname(), os.getpid())


def test_a_job_without_its_number_is_none() -> None:
    assert place({"SGE_TASK_ID": "undefined"}).scheduler == ""


def test_asking_for_the_place_imports_no_package_but_ours() -> None:
    program = (
        "import sys; before = set(sys.modules); import academy.scheduler.here;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(new - set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'academy'}\n"
