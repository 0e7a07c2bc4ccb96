#!/usr/bin/env python3
"""qsub, qstat and qdel with OpenPBS's command line and answers, done by a Slurm.

Linked to by these names. Job ids look like OpenPBS's: 123.pbs01. Of the options there
are those which Parsl's providers and our own code use; another one is an error.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

SERVER = "pbs01"
HELD_STATES = {
    "PENDING": "Q",
    "CONFIGURING": "Q",
    "RUNNING": "R",
    "COMPLETING": "E",
    "SUSPENDED": "S",
    "STOPPED": "S",
}
FINISHED = "F"

# Exit statuses. Source: pbs_error.h of OpenPBS, less 15000.
UNKNOWN_JOB = 153
REFUSED = 170
HAS_FINISHED = 35

# sbatch's names for qsub's options that have one value.
SBATCH_OPTIONS = {"-q": "-p", "-A": "-A", "-N": "-J", "-o": "-o", "-e": "-e"}


def slurm(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def qsub(arguments: list[str]) -> int:
    options, variables, script = [], [], ""
    everything = False
    rest = iter(arguments)
    for argument in rest:
        if argument in SBATCH_OPTIONS:
            options += [SBATCH_OPTIONS[argument], next(rest)]
        elif argument == "-l":
            for resource in next(rest).split(","):
                name, _, value = resource.partition("=")
                if name == "walltime":
                    options += ["-t", value]
        elif argument == "-v":
            variables += next(rest).split(",")
        elif argument == "-V":
            everything = True
        elif argument.startswith("-"):
            refuse("qsub", f"illegal option -- {argument}", 2)
        else:
            script = argument
    everything = (
        everything or re.search(r"^#PBS\s+-V\b", read(script), re.M) is not None
    )
    done = slurm(
        *("sbatch", "--parsable", "--chdir", os.environ["HOME"], *options),
        f"--export={','.join(environment(everything) + variables)}",
        script,
    )
    if done.returncode:
        reason = re.search(r"failed: (.*)", done.stderr)
        refuse("qsub", reason[1] if reason else done.stderr.strip(), REFUSED)
    print(f"{done.stdout.partition(';')[0].strip()}.{SERVER}")
    return 0


def read(script: str) -> str:
    try:
        return Path(script).read_text()
    except OSError as error:
        refuse("qsub", f"script file:: {error.strerror}", 1)


def environment(everything: bool) -> list[str]:
    """Return what sbatch is to export: unless it is told, a job of PBS gets little."""
    kept = {"HOME": os.environ["HOME"], "PATH": "/usr/bin:/bin"}
    kept["SLURM_CONF"] = os.environ["SLURM_CONF"]  # There would be no job without it.
    told = {"PBS_ENVIRONMENT": "PBS_BATCH", "PBS_O_WORKDIR": os.getcwd()}
    pairs = told if everything else kept | told
    return ["ALL"] * everything + [f"{name}={value}" for name, value in pairs.items()]


Jobs = dict[str, dict[str, str]]


def qstat(arguments: list[str]) -> int:
    history = "-x" in arguments
    ids = [argument for argument in arguments if argument[0].isdigit()]
    if not ids:
        states = "all" if history else "PD,R,CF,CG,S,ST"
        ids = slurm("squeue", "-h", "-t", states, "-o", "%i").stdout.split()
    jobs, unknown = look_up(ids)
    for job in unknown:
        print(f"qstat: Unknown Job Id {job}", file=sys.stderr)
    finished = [] if history else [j for j in jobs if state(jobs[j]) == FINISHED]
    for job in finished:
        del jobs[job]
        told = "Job has finished, use -x or -H to obtain historical job information"
        print(f"qstat: {job} {told}", file=sys.stderr)
    if "json" in arguments:
        print(json.dumps(as_json(jobs), indent=4))
    elif jobs:
        print_table(jobs)
    return UNKNOWN_JOB if unknown else HAS_FINISHED if finished else 0


def look_up(ids: Iterable[str]) -> tuple[Jobs, list[str]]:
    """Return what Slurm says of jobs, and the ids that it does not know."""
    jobs: Jobs = {}
    unknown = []
    for job in ids:
        number = job.partition(".")[0]
        done = slurm("scontrol", "-o", "show", "job", number)
        if done.returncode:
            unknown.append(job)
        else:
            jobs[f"{number}.{SERVER}"] = dict(re.findall(r"(\S+?)=(\S*)", done.stdout))
    return jobs, unknown


def state(job: dict[str, str]) -> str:
    return HELD_STATES.get(job["JobState"], FINISHED)


def owner(job: dict[str, str]) -> str:
    return job["UserId"].partition("(")[0]


def as_json(jobs: Jobs) -> dict[str, object]:
    answer: dict[str, object] = {
        "timestamp": int(time.time()),
        "pbs_version": "23.06.06",
        "pbs_server": SERVER,
    }
    if jobs:
        answer["Jobs"] = {name: attributes(job) for name, job in jobs.items()}
    return answer


def attributes(job: dict[str, str]) -> dict[str, object]:
    described: dict[str, object] = {
        "Job_Name": job["JobName"],
        "Job_Owner": f"{owner(job)}@{SERVER}",
        "job_state": state(job),
        "queue": job["Partition"],
        "exec_host": job.get("NodeList", ""),
        "stime": job["StartTime"],
        "Resource_List": {
            "walltime": job["TimeLimit"],
            "nodect": int(job["NumNodes"].partition("-")[0]),
        },
    }
    if state(job) in ("R", "E"):
        described["resources_used"] = {"walltime": job["RunTime"]}
    if state(job) == FINISHED:
        status, signal = map(int, job["ExitCode"].split(":"))
        described["Exit_status"] = 256 + signal if signal else status
    return described


def print_table(jobs: Jobs) -> None:
    print("Job id            Name             User              Time Use S Queue")
    print("----------------  ---------------- ----------------  -------- - -----")
    for name, job in jobs.items():
        print(
            f"{name:<17.17} {job['JobName']:<16.16} {owner(job):<16.16} "
            f"{job['RunTime']:>9} {state(job)} {job['Partition']}"
        )


def qdel(arguments: list[str]) -> int:
    _, unknown = look_up(arguments)
    for job in arguments:
        if job in unknown:
            print(f"qdel: Unknown Job Id {job}", file=sys.stderr)
        else:
            slurm("scancel", job.partition(".")[0])
    return UNKNOWN_JOB if unknown else 0


def refuse(command: str, reason: str, status: int) -> NoReturn:
    print(f"{command}: {reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    command = {"qsub": qsub, "qstat": qstat, "qdel": qdel}[Path(sys.argv[0]).name]
    sys.exit(command(sys.argv[1:]))
