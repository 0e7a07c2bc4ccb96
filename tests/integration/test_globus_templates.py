"""The endpoint templates that we ship, through the endpoint's own code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy.executors.globus_compute import GlobusComputeExecutor
from academy.executors.resources import ResourceSpec
from tests.support.globus import VENV, ComputeLab

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
FOLDERS = ("slurm-cpu", "slurm-gpu", "pbs-cpu", "pbs-gpu")
SHIPPED = Path(__file__).parents[2] / "configs" / "globus-compute"

Render = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[subprocess.Popen[str]]:
    """A process of the endpoint's Python that renders."""
    if (reason := ComputeLab.missing()) is not None:
        pytest.skip(reason)
    program = Path(__file__).parents[1] / "support" / "globus" / "render.py"
    with subprocess.Popen(
        [VENV / "bin" / "python", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.communicate()


@pytest.fixture
def render(endpoint: subprocess.Popen[str]) -> Render:
    def render(folder: str, **submit_kwargs: Any) -> dict[str, Any]:
        """Return what a launch makes of a template."""
        preview = GlobusComputeExecutor(ENDPOINT).preview(**submit_kwargs)
        request = json.loads(preview[preview.index("{") :])
        variables = request.get("user_endpoint_config", {})
        assert endpoint.stdin is not None
        assert endpoint.stdout is not None
        line = json.dumps([str(SHIPPED / folder), variables])
        print(line, file=endpoint.stdin, flush=True)
        answer: dict[str, Any] = json.loads(endpoint.stdout.readline())
        return answer

    return render


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("folder", FOLDERS)
def test_without_any_wish_there_is_a_user_endpoint_for_agents(
    render: Render, folder: str
) -> None:
    made = render(folder)
    # It does not stop while agents run, and notices losses soon.
    assert made["idle_heartbeats_soft"] == 0
    assert made["executor"]["heartbeat_period"] == 5
    assert made["executor"]["heartbeat_threshold"] == 30
    assert made["yaml"]["engine"]["job_status_kwargs"]["strategy"] == "simple"
    assert made["yaml"]["engine"]["max_retries_on_system_failure"] == 0
    # There is no job before there is an agent.
    assert made["provider"]["init_blocks"] == made["provider"]["min_blocks"] == 0
    assert made["provider"]["walltime"] == "01:00:00"


EVERYTHING = {
    "nodes": 2,
    "ranks_per_node": 2,
    "cpus_per_rank": 4,
    "memory_gb_per_node": 1.5,
    "walltime": "02:00:00",
    "queue": "debug",
    "account": "physics",
    "exclusive": False,
    "worker_init": 'echo "it\'s \\ $HOME"\nexport X=1',
    "launcher_options": "--verbose",
    "priority": 3,
}
FOR_SLURM = {
    "qos": "high",
    "constraint": "a&b",
    "reservation": "r1",
    "scheduler_options": "#SBATCH --nice=5\n#SBATCH --comment=x",
}


def test_every_field_reaches_slurm(render: Render) -> None:
    asked = {**EVERYTHING, **FOR_SLURM}
    assert {*asked, "gpus_per_node"} == set(ResourceSpec.model_fields)
    made = render("slurm-cpu", **asked)
    provider = made["provider"]
    for name, value in {
        "nodes_per_block": 2,
        "cores_per_node": 8,
        "walltime": "02:00:00",
        "partition": "debug",
        "account": "physics",
        "qos": "high",
        "constraint": "a&b",
        "exclusive": False,
    }.items():
        assert provider[name] == value, name
    options = lines(provider["scheduler_options"])
    for option in (
        *("--mem=1536M", "--reservation=r1", "--nice=5", "--comment=x"),
        *("--partition=debug", "--qos=high", "--constraint=a&b"),
    ):
        assert f"#SBATCH {option}" in options
    assert lines(provider["worker_init"]) == EVERYTHING["worker_init"].splitlines()
    assert made["launcher"] == "SrunLauncher"
    assert made["overrides"] == "--cpus-per-task=$SLURM_CPUS_ON_NODE --verbose"
    assert made["executor"]["max_workers_per_node"] == 2


def test_every_field_reaches_pbs(render: Render) -> None:
    made = render(
        "pbs-cpu",
        **EVERYTHING,
        constraint="system=polaris",
        scheduler_options="#PBS -l filesystems=home",
    )
    provider = made["provider"]
    assert provider["nodes_per_block"] == 2
    assert provider["cpus_per_node"] == 8
    assert provider["walltime"] == "02:00:00"
    assert provider["queue"] == "debug"
    assert provider["account"] == "physics"
    assert provider["select_options"] == ":mem=1536mb:mpiprocs=2:system=polaris"
    assert lines(provider["scheduler_options"]) == [
        "#PBS -l place=scatter:shared",
        "#PBS -l filesystems=home",
    ]
    assert lines(provider["worker_init"]) == EVERYTHING["worker_init"].splitlines()
    assert made["launcher"] == "MpiExecLauncher"
    assert made["overrides"] == "--verbose"
    assert made["executor"]["max_workers_per_node"] == 2


def test_a_reservation_of_pbs_is_a_queue(render: Render) -> None:
    assert render("pbs-cpu", reservation="R17.server")["provider"]["queue"] == "R17"


GPUS = [
    ({}, ["0", "1", "2", "3"]),
    ({"gpus_per_node": 2}, ["0", "1"]),
    ({"gpus_per_node": 4, "ranks_per_node": 2}, ["0,1", "2,3"]),
    ({"ranks_per_node": 1}, ["0,1,2,3"]),
    ({"gpus_per_node": 2, "ranks_per_node": 4}, ["0", "1", "0", "1"]),
    ({"gpus_per_node": 0}, []),
]


@pytest.mark.parametrize(("asked", "shares"), GPUS)
@pytest.mark.parametrize("folder", ["slurm-gpu", "pbs-gpu"])
def test_agents_on_a_node_have_gpus_of_their_own(
    render: Render, folder: str, asked: dict[str, Any], shares: list[str]
) -> None:
    made = render(folder, **asked)
    assert made["executor"]["available_accelerators"] == shares
    assert made["executor"]["max_workers_per_node"] == max(1, len(shares))
    gpus = asked.get("gpus_per_node", 4)
    if folder == "slurm-gpu":
        assert made["provider"]["gpus_per_node"] == (gpus or None)
    else:
        select = made["provider"]["select_options"]
        assert (f":ngpus={gpus}" in select) == (gpus > 0), select


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_mpi_agent_has_a_block_for_itself(render: Render, folder: str) -> None:
    made = render(folder, nodes=2, user_endpoint_config={"mpi": True})
    assert made["engine"] == "GlobusMPIEngine"
    assert made["launcher"] == "SimpleLauncher"
    assert made["provider"]["nodes_per_block"] == 2


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"nodez": 2}, "'nodez' was unexpected"),
        ({"nodes": "2"}, "'2' is not of type 'integer'"),
        ({"walltime": "2 hours"}, "'2 hours' does not match"),
        ({"queue": "a\nb"}, "does not match"),
        ({"scheduler_options": "rm -rf /"}, "'rm -rf /' does not match"),
    ],
)
def test_the_schema_names_what_it_refuses(
    render: Render, folder: str, config: dict[str, Any], said: str
) -> None:
    made = render(folder, user_endpoint_config=config)
    assert said in made["error"]


def test_pbs_has_no_place_for_a_qos(render: Render) -> None:
    assert "'qos' was unexpected" in render("pbs-cpu", qos="high")["error"]


def test_an_account_cannot_change_the_configuration(render: Render) -> None:
    evil = 'x"\nidle_heartbeats_soft: 5 #'
    made = render("slurm-cpu", worker_init=evil)
    assert made["idle_heartbeats_soft"] == 0
    assert lines(made["provider"]["worker_init"]) == evil.splitlines()
