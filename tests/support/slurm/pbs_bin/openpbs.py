#!/usr/bin/env python3
"""qsub, qstat, qdel and pbsdsh with OpenPBS's command line, done by a Slurm.

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
    told["PBS_O_PATH"] = os.environ["PATH"]
    pairs = told if everything else kept | told
    return ["ALL"] * everything + [f"{name}={value}" for name, value in pairs.items()]


Jobs = dict[str, dict[str, str]]


def qstat(arguments: list[str]) -> int:
    if "-Q" in arguments or "-B" in arguments:
        print(json.dumps(queues() if "-Q" in arguments else server(), indent=4))
        return 0
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


def prologue() -> dict[str, object]:
    return {
        "timestamp": int(time.time()),
        "pbs_version": "23.06.06",
        "pbs_server": SERVER,
    }


def partitions() -> Iterable[list[str]]:
    """Return name, longest time and number of nodes of each; * marks the default."""
    shown = slurm("sinfo", "-h", "-a", "-o", "%P|%l|%D").stdout
    return (line.split("|") for line in shown.splitlines())


def queues() -> dict[str, object]:
    described: dict[str, object] = {}
    for name, longest, nodes in partitions():
        most = {"nodect": int(nodes)} | (
            {} if longest == "infinite" else {"walltime": clock(longest)}
        )
        described[name.rstrip("*")] = {
            "queue_type": "Execution",
            "resources_max": most,
            "enabled": "True",
            "started": "True",
        }
    return prologue() | {"Queue": described}


def server() -> dict[str, object]:
    default = next(name for name, *_ in partitions() if name.endswith("*"))
    return prologue() | {"Server": {SERVER: {"default_queue": default.rstrip("*")}}}


def clock(duration: str) -> str:
    """Write [D-][HH:]MM:SS as HH:MM:SS."""
    days, _, rest = duration.rpartition("-")
    hours, minutes, seconds = ["0", *rest.split(":")][-3:]
    return f"{24 * int(days or 0) + int(hours):02}:{minutes}:{seconds}"


def ctime(stamp: str) -> str:
    return time.asctime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))


def as_json(jobs: Jobs) -> dict[str, object]:
    answer = prologue()
    if jobs:
        answer["Jobs"] = {name: attributes(job) for name, job in jobs.items()}
    return answer


def attributes(job: dict[str, str]) -> dict[str, object]:
    described: dict[str, object] = {
        "Job_Name": job["JobName"],
        "Job_Owner": f"{owner(job)}@{SERVER}",
        "job_state": state(job),
        "queue": job["Partition"],
        "ctime": ctime(job["SubmitTime"]),
        "Output_Path": f"{SERVER}:{job.get('StdOut', '')}",
        "Error_Path": f"{SERVER}:{job.get('StdErr', '')}",
    }
    asked: dict[str, object] = {"nodect": int(job["NumNodes"].partition("-")[0])}
    if ":" in job["TimeLimit"]:  # There may be none.
        asked["walltime"] = clock(job["TimeLimit"])
    described["Resource_List"] = asked
    nodes = slurm("scontrol", "show", "hostnames", job.get("NodeList", "")).stdout
    if has_run := nodes.split() != [] and state(job) != "Q":
        cpus = int(job["NumCPUs"]) // len(nodes.split())
        each = f"/0*{cpus}" if cpus > 1 else "/0"
        described["exec_host"] = "+".join(node + each for node in nodes.split())
        described["stime"] = ctime(job["StartTime"])
        described["resources_used"] = {"walltime": clock(job["RunTime"])}
    return described | comment(job, has_run)


def comment(job: dict[str, str], has_run: bool) -> dict[str, object]:
    """Say what became of a job, with the numbers that tell it too."""
    if state(job) == "Q":
        never = job["Reason"].startswith("Partition")
        why = "Can Never Run" if never else "Not Running"
        return {"comment": f"{why}: {job['Reason']}"}
    ran = f"Job run at {job['StartTime']}" if has_run else "Job was not run"
    if state(job) != FINISHED:
        return {"comment": ran}
    told: dict[str, object] = {"obittime": ctime(job["EndTime"])} if has_run else {}
    status, signal = map(int, job["ExitCode"].split(":"))
    if has_run:
        told["Exit_status"] = 256 + signal if signal else status
    if job["JobState"] == "TIMEOUT":
        return told | {
            "Exit_status": -29,
            "comment": f"{ran} and failed",
            "substate": 93,
        }
    if job["JobState"] == "CANCELLED":
        return told | {"comment": f"{ran} and terminated", "substate": 91}
    how, number = ("failed", 93) if status or signal else ("finished", 92)
    return told | {"comment": f"{ran} and {how}", "substate": number}


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


def pbsdsh(arguments: list[str]) -> int:
    """Run a program on all nodes of the job, or on one of them."""
    where = ["--ntasks-per-node=1"]
    if arguments[:1] == ["-n"]:
        where = ["-N1", "-n1", f"--relative={arguments[1]}"]
        arguments = arguments[2:]
    program = arguments[arguments[:1] == ["--"] :]
    os.execvp("srun", ["srun", "--overlap", "--quiet", *where, *program])


def refuse(command: str, reason: str, status: int) -> NoReturn:
    print(f"{command}: {reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    commands = {"qsub": qsub, "qstat": qstat, "qdel": qdel, "pbsdsh": pbsdsh}
    sys.exit(commands[Path(sys.argv[0]).name](sys.argv[1:]))
