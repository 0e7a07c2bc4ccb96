"""Where this process runs: what its environment says of its batch job."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from academy.scheduler.job import Place


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Return where this process runs, in some microseconds; starts no process.

    A job's id is written as its scheduler's commands take it, so that it means no more
    than the job of this process: `12_3` is one task of a job array in Slurm, `12[3]` in
    LSF, `12.3` in Grid Engine, and `12[3].server` in PBS.
    """
    scheduler, job_id = _job(environment)
    return Place(socket.gethostname(), os.getpid(), scheduler, job_id)


def _job(environment: Mapping[str, str]) -> tuple[str, str]:
    for scheduler, (variables, job_id) in _SCHEDULERS.items():
        if all(environment.get(variable) for variable in variables):
            return _pbs_or_torque(scheduler, environment), job_id(environment)
    return "", ""


def _slurm(environment: Mapping[str, str]) -> str:
    # The first task of an array has the array's own number as its SLURM_JOB_ID, by
    # which `scancel` would end all of them.
    array = environment.get("SLURM_ARRAY_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]


def _pbs(environment: Mapping[str, str]) -> str:
    return environment["PBS_JOBID"]


def _lsf(environment: Mapping[str, str]) -> str:
    index = environment.get("LSB_JOBINDEX", "0")  # 0: not in an array.
    job = environment["LSB_JOBID"]
    return job if index in ("", "0") else f"{job}[{index}]"


def _grid_engine(environment: Mapping[str, str]) -> str:
    task = environment.get("SGE_TASK_ID", "undefined")
    job = environment["JOB_ID"]
    return job if task in ("", "undefined") else f"{job}.{task}"


def _flux(environment: Mapping[str, str]) -> str:
    return environment["FLUX_JOB_ID"]


def _pbs_or_torque(scheduler: str, environment: Mapping[str, str]) -> str:
    """Tell Torque from PBS, whose jobs have the same variable with their number."""
    if scheduler != "pbs" or "PBS_JOBDIR" in environment:  # Torque has no such thing.
        return scheduler
    version = environment.get("PBS_VERSION", "")
    # Some sites define PBS_NUM_PPN, which is Torque's, in jobs of PBS.
    torque = version.startswith("TORQUE") or "PBS_NUM_PPN" in environment
    return "torque" if torque else "pbs"


# The variables that only its jobs have, and the id. Flux comes last because people
# start it inside jobs of the others, and a login node knows those.
# Source: https://slurm.schedmd.com/sbatch.html (output environment variables)
# Source: https://slurm.schedmd.com/job_array.html
# Source: https://github.com/openpbs/openpbs/blob/master/doc/man1/qsub.1B
# Source: https://docs.adaptivecomputing.com/torque/4-1-3/Content/topics/commands/qsub.htm
# Source: https://www.ibm.com/docs/en/spectrum-lsf/10.1.0?topic=variables-environment-set-job-execution
# Source: https://gridscheduler.sourceforge.net/htmlman/htmlman1/submit.html
# Source: https://flux-framework.readthedocs.io/projects/flux-core/en/latest/man7/flux-environment.html
_SCHEDULERS = {
    "slurm": (("SLURM_JOB_ID",), _slurm),
    "pbs": (("PBS_JOBID",), _pbs),
    "lsf": (("LSB_JOBID",), _lsf),
    "grid_engine": (("JOB_ID", "SGE_TASK_ID"), _grid_engine),
    "flux": (("FLUX_JOB_ID",), _flux),
}
