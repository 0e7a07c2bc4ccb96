"""What jobs run, line by line."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from academy.executors.batch.script import Slots, Worker, alone, together
from academy.executors.resources import ResourceSpec

WORKER = Worker("/env/bin/python", "/home/ada/a campaign")
JOB = Path("/jobs/academy-1")


def spec(**asked: Any) -> ResourceSpec:
    return ResourceSpec.parse(asked, "a test")


def shared(scheduler: str, tasks: int, **asked: Any) -> str:
    directories = [JOB / str(number) for number in range(tasks)]
    script = together(Slots(spec(**asked)), scheduler, WORKER, directories)
    check_syntax(script)
    return script


def check_syntax(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def starts(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("run ")]


def test_a_lone_agent_takes_the_place_of_its_script() -> None:
    assert alone(spec(), "slurm", WORKER, JOB).splitlines() == [
        "cd '/home/ada/a campaign'",
        "exec /env/bin/python -m academy.run --spec /jobs/academy-1/spec",
    ]


@pytest.mark.parametrize(
    ("scheduler", "prefix"),
    [
        (
            "slurm",
            "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --mpi=pmix",
        ),
        ("pbs", "mpiexec -n 8 -ppn 4 --mpi=pmix"),
    ],
)
def test_an_agent_of_several_ranks_is_told_how_to_start_them(
    scheduler: str, prefix: str
) -> None:
    asked = spec(nodes=2, ranks_per_node=4, launcher_options="--mpi=pmix")
    script = alone(asked, scheduler, WORKER, JOB)
    check_syntax(script)
    assert script.splitlines()[1:-1] == [
        f"export PARSL_MPI_PREFIX='{prefix}'",
        "export PARSL_NUM_NODES=2",
        "export PARSL_RANKS_PER_NODE=4",
        "export PARSL_NUM_RANKS=8",
    ]


def test_slurm_gives_each_agent_of_a_shared_job_its_own_part() -> None:
    script = shared(
        "slurm",
        2,
        ranks_per_node=2,
        cpus_per_rank=4,
        gpus_per_node=2,
        memory_gb_per_node=16,
        launcher_options="--cpu-bind=cores",
    )
    step = (
        "srun --exact --nodes=1 --ntasks=1 --cpus-per-task=4 --gpus-per-node=1 "
        "--mem=8192M --cpu-bind=cores /env/bin/python -m academy.run --spec"
    )
    assert starts(script) == [
        f"run 0 {step} /jobs/academy-1/0/spec &",
        f"run 1 {step} /jobs/academy-1/1/spec &",
    ]


def test_on_one_node_without_srun_agents_divide_it_among_themselves() -> None:
    script = shared("pbs", 2, ranks_per_node=2, gpus_per_node=4)
    command = "/env/bin/python -m academy.run --spec /jobs/academy-1"
    assert starts(script) == [
        f"run 0 {command}/0/spec --slot 0/2 --gpus-per-node 4 &",
        f"run 1 {command}/1/spec --slot 1/2 --gpus-per-node 4 &",
    ]
    assert "pbsdsh" not in script


@pytest.mark.parametrize("scheduler", ["pbs", "torque"])
def test_pbs_starts_agents_on_the_other_nodes_with_the_job_s_environment(
    scheduler: str,
) -> None:
    script = shared(scheduler, 3, nodes=2, ranks_per_node=2)
    here, here_too, there = starts(script)
    assert "pbsdsh" not in here + here_too
    assert there == (
        "run 2 pbsdsh -n ${nodes[1]} -- /bin/bash -c "
        "'. /jobs/academy-1/environment; cd '\"'\"'/home/ada/a campaign'\"'\"'; exec "
        "/env/bin/python -m academy.run --spec /jobs/academy-1/2/spec --slot 0/2' &"
    )


def test_nodes_are_counted_by_the_lines_of_the_node_file(tmp_path: Path) -> None:
    (tmp_path / "nodefile").write_text("a\na\nb\nb\nc\nc\n")
    script = shared("pbs", 3, nodes=3, ranks_per_node=1)
    [line] = [line for line in script.splitlines() if line.startswith("nodes=")]
    show = f'{line}\necho "${{nodes[@]}}"'
    done = subprocess.run(
        ["bash", "-c", show],
        env={"PBS_NODEFILE": str(tmp_path / "nodefile"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0 2 4\n"


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpus_per_node=3 .* ranks_per_node=2"):
        Slots(spec(ranks_per_node=2, gpus_per_node=3)).check("slurm", "it")
    with pytest.raises(ValueError, match=r"several nodes of one lsf job.*share_job"):
        Slots(spec(nodes=2)).check("lsf", "it")


def test_more_agents_than_a_script_could_start_are_refused() -> None:
    Slots(spec(nodes=100, ranks_per_node=100)).check("slurm", "it")
    with pytest.raises(ValueError, match=r"at most 10000 .* nodes=1000000000 times"):
        Slots(spec(nodes=10**9)).check("slurm", "it")


def test_one_of_several_slots_is_that_part_of_the_resources() -> None:
    asked = spec(
        nodes=4,
        ranks_per_node=2,
        gpus_per_node=4,
        memory_gb_per_node=64,
        cpus_per_rank=8,
        queue="gpu",
    )
    assert Slots(asked).one().spec.given() == {
        "nodes": 1,
        "ranks_per_node": 1,
        "gpus_per_node": 2,
        "memory_gb_per_node": 32,
        "cpus_per_rank": 8,
        "queue": "gpu",
    }


SIGNALLED = """
job={job}
{run}
run 0 {agent} &
echo $! >"$job/starter"
{wait}
echo over >"$job/end"
"""


def test_a_signal_to_all_of_a_shared_job_lets_agents_end_in_order(
    tmp_path: Path,
) -> None:
    from academy.executors.batch import script

    (tmp_path / "0").mkdir()
    agent = tmp_path / "agent.sh"
    agent.write_text(
        f"trap 'trapped=1' TERM\nmkfifo {tmp_path}/up\necho >{tmp_path}/up\n"
        'while [ -z "$trapped" ]; do read -t 0.05 <> <(:); done\n'
        "read -t 0.3 <> <(:)\necho in order\nexit 5\n"
    )
    text = SIGNALLED.format(
        job=tmp_path, run=script._RUN, wait=script._WAIT, agent=f"bash {agent}"
    )
    process = subprocess.Popen(["bash", "-c", text], start_new_session=True)
    try:
        until_up(tmp_path / "up")
        subprocess.run(["kill", "-TERM", "--", f"-{process.pid}"], check=True)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "0" / "stdout").read_text() == "in order\n"
    assert (tmp_path / "0" / "status").read_text() == "5\n"
    assert (tmp_path / "end").exists()


def until_up(pipe: Path) -> None:
    """Wait until somebody writes to a named pipe that is being made."""
    while not pipe.exists():
        pass
    pipe.read_text()
