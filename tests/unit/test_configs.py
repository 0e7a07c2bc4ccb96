"""The configuration files that come with us: each loads, and says what it should.

Nothing is submitted. The machines' files were written from documentation, and this is
no claim that they have run there.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from academy.exchange.cloud.config import ExchangeServingConfig
from academy.executors import base
from academy.executors.config import load_executors
from academy.executors.parsl import ParslExecutor

# Parsl does not close the sockets with which it asks for this machine's addresses.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CONFIGS = Path(__file__).parents[2] / "configs"
PARSL = CONFIGS / "parsl"
MACHINES = PARSL / "machines"

# What an MPI agent has to say, since there is no default for it.
OF_MPI = {"nodes": 2, "ranks_per_node": 4}


def executors(path: Path) -> dict[str, ParslExecutor]:
    return ParslExecutor.from_config(path)


def directives(script: str) -> set[str]:
    return set(re.findall(r"^#(?:SBATCH|PBS) (.*)$", script, flags=re.MULTILINE))


def options_of_pool(script: str) -> str:
    [line] = re.findall(r"^process_worker_pool\.py .*$", script, flags=re.MULTILINE)
    return " ".join(line.split())


# --- all of them


@pytest.mark.parametrize(
    "path", sorted(PARSL.glob("**/*.py")), ids=lambda path: path.stem
)
def test_each_parsl_config_loads_and_previews_every_label(path: Path) -> None:
    made = executors(path)
    assert made
    for executor in made.values():
        script = executor.preview(**OF_MPI if "mpi" in path.stem else {})
        assert executor.max_workers
        assert "--cert_dir /" in options_of_pool(script), "its connections are open"


@pytest.mark.parametrize(
    "path", sorted(MACHINES.glob("*.py")), ids=lambda path: path.stem
)
def test_each_machine_names_its_sources_and_leaves_the_account_to_its_user(
    path: Path,
) -> None:
    text = path.read_text()
    assert len(re.findall(r"^ *# Source: https://\S+", text, flags=re.MULTILINE)) >= 3
    assert re.search(r"^(?:\w+_)?ACCOUNT = None", text, flags=re.MULTILINE)
    assert "never run there" in text
    for executor in executors(path).values():
        assert "account" not in executor.preview()


# --- generic ones


GENERIC: dict[str, tuple[dict[str, int], set[str], str]] = {
    "slurm": (
        {},
        {"--nodes=1", "--time=60", "--exclusive"},
        "srun --ntasks 1 -l --cpus-per-task=$SLURM_CPUS_ON_NODE bash",
    ),
    "slurm-gpu": (
        {},
        {"--nodes=1", "--gpus-per-node=4"},
        "--available-accelerators 0 1 2 3",
    ),
    "slurm-mpi": (
        OF_MPI,
        {"--nodes=4"},
        "--enable_mpi_mode --mpi-launcher=srun",
    ),
    "pbs": ({}, {"-l select=1:ncpus=8", "-l walltime=01:00:00"}, "# qsub "),
    "pbs-gpu": (
        {},
        {"-l select=1:ncpus=8:ngpus=4"},
        "--available-accelerators 0 1 2 3",
    ),
    "pbs-mpi": (
        OF_MPI,
        {"-l select=4:ncpus=8", "-l place=scatter"},
        "--enable_mpi_mode --mpi-launcher=mpiexec",
    ),
}


@pytest.mark.parametrize("name", GENERIC)
def test_a_generic_config_asks_for_what_it_says(name: str) -> None:
    asked, wanted, words = GENERIC[name]
    script = ParslExecutor(PARSL / f"{name}.py").preview(**asked)
    assert wanted <= directives(script)
    assert words in re.sub(" +", " ", script)


def filled_in(path: Path, tmp_path: Path, **settings: object) -> Path:
    """Copy a file and change what is in capitals, as its first line says."""
    text = path.read_text()
    for name, value in settings.items():
        text, count = re.subn(
            rf"^{name} = (?:\"[^\"]*\"|[^ \n]+)",
            f"{name} = {value!r}",
            text,
            flags=re.MULTILINE,
        )
        assert count == 1, name
    copy = tmp_path / path.name
    copy.write_text(text)
    return copy


def test_what_a_user_fills_in_is_in_the_script(tmp_path: Path) -> None:
    config = filled_in(
        PARSL / "slurm-gpu.py",
        tmp_path,
        PARTITION="a100",
        ACCOUNT="m1234",
        GRES="gpu:a100:4",
        NODES_PER_BLOCK=3,
    )
    found = directives(ParslExecutor(config).preview())
    wanted = {"--partition=a100", "--account=m1234", "--gres=gpu:a100:4", "--nodes=3"}
    assert wanted <= found
    assert not any(line.startswith("--gpus-per-node") for line in found)


def test_pbs_blocks_of_several_nodes_start_a_pool_on_each(tmp_path: Path) -> None:
    config = filled_in(
        PARSL / "pbs-gpu.py",
        tmp_path,
        QUEUE="gpuq",
        ACCOUNT="proj",
        NODES_PER_BLOCK=2,
        SELECT="mem=64gb",
        BIND="--cpu-bind",
    )
    script = ParslExecutor(config).preview()
    assert "-l select=2:ncpus=8:ngpus=4:mem=64gb" in directives(script)
    assert "mpiexec --cpu-bind none -ppn 1 -n $WORKERCOUNT" in script
    assert re.search(r"^# qsub .*-q gpuq.*-A proj", script, flags=re.MULTILINE)


def test_inside_of_a_slurm_job_workers_are_on_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PBS_NODEFILE", raising=False)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    executor = ParslExecutor(PARSL / "in-job.py")
    assert executor.max_workers == 24
    script = executor.preview()
    assert "srun --ntasks 3 -l --nodes=3 --ntasks-per-node=1" in script


def test_inside_of_a_pbs_job_workers_are_on_all_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodefile = tmp_path / "nodes"
    nodefile.write_text("n1\nn1\nn2\n")
    monkeypatch.setenv("PBS_NODEFILE", str(nodefile))
    executor = ParslExecutor(PARSL / "in-job.py")
    assert executor.max_workers == 16
    pool = 'pbsdsh -- /usr/bin/env "PATH=$PATH" process_worker_pool.py'
    assert pool in executor.preview()


def test_outside_of_a_job_they_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PBS_NODEFILE", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    executor = ParslExecutor(PARSL / "in-job.py")
    assert executor.max_workers == 8
    assert "srun" not in executor.preview()


# --- machines


SLURM_MACHINES = {
    ("perlmutter", "cpu"): ({"--constraint=cpu", "--qos=debug"}, 64, "-c 256"),
    ("perlmutter", "gpu"): (
        {"--constraint=gpu", "--qos=debug", "--gpus-per-node=4"},
        4,
        "-c 128",
    ),
    ("frontier", "frontier"): (
        {"--partition=batch", "--gpus-per-node=8"},
        8,
        "-c 56",
    ),
    ("delta", "cpu"): ({"--partition=cpu", "--constraint=scratch"}, 128, "-c 128"),
    ("delta", "gpu"): ({"--partition=gpuA100x4", "--gpus-per-node=4"}, 4, "-c 64"),
    ("anvil", "cpu"): (
        {"--partition=wholenode", "--cpus-per-task=128"},
        128,
        "--cpus-per-task=$SLURM_CPUS_ON_NODE",
    ),
    ("anvil", "gpu"): (
        {"--partition=gpu", "--gpus-per-node=1", "--cpus-per-task=4", "--mem=50g"},
        1,
        "--cpus-per-task=$SLURM_CPUS_ON_NODE",
    ),
    ("expanse", "cpu"): ({"--partition=compute"}, 128, "--cpus-per-task=128"),
    ("expanse", "gpu"): (
        {"--partition=gpu", "--gpus-per-node=4"},
        4,
        "--cpus-per-task=40",
    ),
    ("midway", "cpu"): (
        {"--partition=caslake", "--cpus-per-task=48"},
        48,
        "--cpus-per-task=48",
    ),
    ("midway", "gpu"): ({"--partition=gpu", "--gres=gpu:4"}, 4, "--cpus-per-task=48"),
}


@pytest.mark.parametrize(("machine", "label"), SLURM_MACHINES)
def test_a_machine_with_slurm_is_asked_as_its_documentation_says(
    machine: str, label: str
) -> None:
    wanted, workers, of_srun = SLURM_MACHINES[machine, label]
    script = executors(MACHINES / f"{machine}.py")[label].preview()
    found = directives(script)
    assert wanted <= found
    assert "# sbatch " in script
    assert f"srun --ntasks 1 -l {of_srun} bash" in script
    pool = options_of_pool(script)
    assert f"--max_workers_per_node={workers} " in pool
    has_gpus = any("gpus-per-node" in line or "gres" in line for line in found)
    numbers = " ".join(str(gpu) for gpu in range(workers)) if has_gpus else ""
    assert pool.endswith(f"--available-accelerators {numbers}".rstrip())


def test_polaris_is_asked_as_its_documentation_says() -> None:
    polaris = ParslExecutor(MACHINES / "polaris.py")
    script = polaris.preview()
    wanted = {"-l select=1:ncpus=64:ngpus=4", "-l filesystems=home:eagle"}
    assert wanted <= directives(script)
    assert "# qsub  -q debug " in script
    assert "mpiexec --cpu-bind none --depth=64 --ppn 1 -n $WORKERCOUNT" in script
    assert options_of_pool(script).endswith("--available-accelerators 0 1 2 3")


def test_aurora_has_a_worker_on_each_of_its_twelve_tiles() -> None:
    script = ParslExecutor(MACHINES / "aurora.py").preview()
    assert {
        "-l select=1:ncpus=208",
        "-l filesystems=home:flare",
        "-l place=scatter",
    } <= directives(script)
    pool = options_of_pool(script)
    assert "--max_workers_per_node=12 " in pool
    assert pool.endswith(
        "--available-accelerators 0.0 0.1 1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1 5.0 5.1"
    )
    assert "mpiexec --cpu-bind none --ppn 1 -n $WORKERCOUNT" in script


@pytest.mark.parametrize(
    ("machine", "label", "asked", "wanted", "words"),
    [
        (
            "polaris",
            "polaris",
            {"nodes": 2, "walltime": "00:30:00", "queue": "debug-scaling"},
            {"-l select=2:ncpus=64:ngpus=4", "-l walltime=00:30:00"},
            "-q debug-scaling",
        ),
        (
            "frontier",
            "frontier",
            {"nodes": 4, "walltime": "02:00:00", "account": "ABC123"},
            {"--nodes=4", "--time=120", "--account=ABC123", "--gpus-per-node=8"},
            "srun --ntasks 4",
        ),
        (
            "perlmutter",
            "gpu",
            {"nodes": 2, "qos": "regular", "gpus_per_node": 4},
            {"--nodes=2", "--qos=regular", "--constraint=gpu", "--gpus-per-node=4"},
            "srun --ntasks 2",
        ),
    ],
)
def test_launches_shape_the_jobs_of_a_machine(
    machine: str, label: str, asked: dict[str, object], wanted: set[str], words: str
) -> None:
    executor = executors(MACHINES / f"{machine}.py")[label]
    script = executor.preview(**asked)
    assert wanted <= directives(script)
    assert words in script


# --- executors.toml


def test_our_executors_toml_names_a_place_of_each_kind_and_previews_it() -> None:
    made = load_executors(CONFIGS / "executors.toml")
    shown = {name: base.preview(executor, {}) for name, executor in made.items()}
    assert list(made) == [
        *("laptop", "many", "slurm", "gpu", "pbs", "jobs", "ensemble", "elsewhere")
    ]
    assert "process_worker_pool.py" in shown["laptop"]
    assert "Up to 100 agents run in each worker." in shown["many"]
    assert {"--nodes=1", "--time=60"} <= directives(shown["slurm"])
    assert "--gpus-per-node=4" in directives(shown["gpu"])
    assert "-l select=1:ncpus=8" in directives(shown["pbs"])
    assert {"--time=120", "--cpus-per-task=4"} <= directives(shown["jobs"])
    assert {"--nodes=2", "--ntasks-per-node=8"} <= directives(shown["ensemble"])
    assert shown["ensemble"].count("academy.run --spec") == 16
    assert '"walltime": "00:30:00"' in shown["elsewhere"]


# --- the exchange as a service


def test_systemd_takes_the_unit_of_an_exchange(tmp_path: Path) -> None:
    unit = CONFIGS / "systemd" / "academy-exchange.service"
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as documented
    parser.read(unit)
    service = parser["Service"]
    config = ExchangeServingConfig()
    assert service["Type"] == "notify"
    assert service["User"] != "root"
    assert float(service["TimeoutStopSec"]) > config.operations.drain_seconds
    command = service["ExecStart"].split()
    assert command[1:3] == ["-m", "academy.exchange.cloud"]

    # It is checked as well that what it starts is there.
    text = unit.read_text().replace(command[0], sys.executable)
    here = tmp_path / unit.name
    here.write_text(text.replace("User=academy", "User=root"))
    if analyze := shutil.which("systemd-analyze"):
        checked = subprocess.run(
            [analyze, "verify", here], capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")
