"""Providers: what they are asked for, the scripts they write, and how they submit."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from parsl import providers
from parsl.jobs.states import JobState
from parsl.launchers import MpiExecLauncher, SimpleLauncher, SrunLauncher

from academy.executors.providers import (
    Script,
    clone,
    scheduler_of,
    script_of,
    submit_script,
    with_resources,
)
from academy.executors.resources import ResourceSpec
from tests.support.slurm import until

# Parsl's are not typed.
GridEngineProvider: Any = providers.GridEngineProvider
LocalProvider: Any = providers.LocalProvider
LSFProvider: Any = providers.LSFProvider
PBSProProvider: Any = providers.PBSProProvider
SlurmProvider: Any = providers.SlurmProvider
TorqueProvider: Any = providers.TorqueProvider

ONE = SimpleLauncher()


def asked(provider: Any, **submit_kwargs: Any) -> Any:
    spec = ResourceSpec.parse(submit_kwargs, "Executor 'x'")
    return with_resources(provider, spec, "Executor 'x'")


def shown(provider: Any, tasks_per_node: int = 1, **submit_kwargs: Any) -> Script:
    fresh = asked(provider, **submit_kwargs)
    return script_of(fresh, "run-it", tasks_per_node, "job-1", "/scratch/ada")


def directives(provider: Any, **submit_kwargs: Any) -> list[str]:
    text = shown(provider, **submit_kwargs).text
    return re.findall(r"^#(?:SBATCH|PBS|BSUB|\$) .*", text, re.M)


def refusal(provider: Any, **submit_kwargs: Any) -> str:
    with pytest.raises(ValueError, match=r"\(Executor 'x'\)") as caught:
        asked(provider, **submit_kwargs)
    return str(caught.value)


# --- each field, as each scheduler reads it

ALL: Mapping[str, Any] = {
    "nodes": 2,
    "ranks_per_node": 4,
    "cpus_per_rank": 8,
    "gpus_per_node": 3,
    "memory_gb_per_node": 64,
    "walltime": "01:30:00",
    "queue": "long",
    "account": "proj",
    "constraint": "bigmem",
    "reservation": "R17",
    "exclusive": True,
    "priority": 7,
    "worker_init": "module load python",
}


def test_slurm_is_asked_for_every_field() -> None:
    provider = SlurmProvider(launcher=SrunLauncher(), exclusive=False)
    script = shown(
        provider,
        4,
        **ALL,
        qos="high",
        scheduler_options="#SBATCH --nice=5",
        launcher_options="--cpu-bind=cores",
    )
    assert script.text.startswith("""\
#!/bin/bash

#SBATCH --job-name=job-1
#SBATCH --output=/scratch/ada/job-1.stdout
#SBATCH --error=/scratch/ada/job-1.stderr
#SBATCH --nodes=2
#SBATCH --time=90
#SBATCH --ntasks-per-node=4

#SBATCH --exclusive
#SBATCH --partition=long
#SBATCH --account=proj
#SBATCH --qos=high
#SBATCH --constraint=bigmem
#SBATCH --gpus-per-node=3
#SBATCH --reservation=R17
#SBATCH --priority=7
#SBATCH --nice=5
#SBATCH --mem=64g
#SBATCH --cpus-per-task=8

module load python
export PARSL_MEMORY_GB=64
export PARSL_CORES=8


export JOBNAME="job-1"

""")
    options = "-l --cpus-per-task=$SLURM_CPUS_PER_TASK --cpu-bind=cores"
    assert f"\nsrun --ntasks 8 {options} bash " in script.text
    assert script.command == "sbatch /scratch/ada/job-1"
    assert script.stdout == "/scratch/ada/job-1.stdout"
    assert script.stderr == "/scratch/ada/job-1.stderr"


def test_cores_that_the_user_gives_to_srun_are_left_alone() -> None:
    def srun(overrides: str = "", **submit_kwargs: Any) -> str:
        provider = SlurmProvider(launcher=SrunLauncher(overrides=overrides))
        text = shown(provider, cpus_per_rank=8, **submit_kwargs).text
        found = re.search(r"^srun --ntasks 1 -l (.*) bash ", text, re.M)
        assert found is not None
        return found[1]

    assert srun() == "--cpus-per-task=$SLURM_CPUS_PER_TASK"
    assert srun("-v -c 4") == "-v -c 4"
    assert srun(launcher_options="--cpus-per-task=4") == "--cpus-per-task=4"


def test_pbs_is_asked_for_every_field() -> None:
    # A reservation is a queue to PBS.
    fields = {k: v for k, v in ALL.items() if k != "queue"}
    fields["constraint"] = "system=polaris:tier=a"
    provider = PBSProProvider(launcher=ONE, select_options=":ngpus=1:a=b")
    script = shown(provider, 4, **fields, scheduler_options="#PBS -r n")
    assert (
        script.text
        == """\
#!/bin/bash

#PBS -S /bin/bash
#PBS -N job-1
#PBS -m n
#PBS -l walltime=01:30:00
#PBS -l select=2:ncpus=32:ngpus=3:a=b:mpiprocs=4:mem=65536mb:system=polaris:tier=a
#PBS -o /scratch/ada/job-1.stdout
#PBS -e /scratch/ada/job-1.stderr
#PBS -p 7
#PBS -l place=scatter:exclhost
#PBS -r n

module load python


export JOBNAME="job-1"

run-it

"""
    )
    command = "qsub -q R17 -A proj /scratch/ada/job-1"
    assert script.command.split() == command.split()


def test_torque_is_asked_for_every_field() -> None:
    provider = TorqueProvider(launcher=ONE)
    script = shown(provider, 4, **ALL, qos="high", scheduler_options="#PBS -r n")
    assert (
        script.text
        == """\
#!/bin/bash

#PBS -l qos=high
#PBS -l advres=R17
#PBS -p 7
#PBS -l mem=131072mb
#PBS -l naccesspolicy=singlejob
#PBS -r n
#PBS -S /bin/bash
#PBS -N job-1
#PBS -m n
#PBS -l walltime=01:30:00
#PBS -l nodes=2:ppn=32:gpus=3:bigmem
#PBS -o /scratch/ada/job-1.submit.stdout
#PBS -e /scratch/ada/job-1.submit.stderr

module load python


export JOBNAME="job-1"

run-it

"""
    )
    command = "qsub -q long -A proj /scratch/ada/job-1.submit"
    assert script.command.split() == command.split()
    assert script.stdout == "/scratch/ada/job-1.submit.stdout"


def test_lsf_is_asked_for_every_field() -> None:
    provider = LSFProvider(
        launcher=ONE,
        request_by_nodes=False,
        cores_per_block=1,
        cores_per_node=1,
        bsub_redirection=True,
    )
    script = shown(provider, 4, **ALL, scheduler_options="#BSUB -r")
    assert (
        script.text
        == """\
#!/bin/bash

#BSUB -W 90
#BSUB -J job-1
#BSUB -o /scratch/ada/job-1.submit.stdout
#BSUB -e /scratch/ada/job-1.submit.stderr

#BSUB -P proj
#BSUB -q long
#BSUB -n 64
#BSUB -R "span[ptile=32]"
#BSUB -gpu "num=3/host"
#BSUB -R "select[bigmem]"
#BSUB -U R17
#BSUB -x
#BSUB -sp 7
#BSUB -R "rusage[mem=65536MB/host]"
#BSUB -r


module load python


export JOBNAME="job-1"

run-it
"""
    )
    assert script.command == "bsub < /scratch/ada/job-1.submit"


def test_lsf_is_asked_for_whole_nodes() -> None:
    fields = {k: v for k, v in ALL.items() if k != "cpus_per_rank"}
    lines = directives(LSFProvider(launcher=ONE), **fields)
    assert "#BSUB -nnodes 2" in lines
    assert not any("-n " in line for line in lines)


def test_grid_engine_is_asked_for_every_field_but_nodes() -> None:
    fields = {k: v for k, v in ALL.items() if k != "nodes"}
    provider = GridEngineProvider(
        launcher=ONE, scheduler_options="#$ -pe smp 1\n#$ -notify"
    )
    script = shown(provider, 4, **fields, scheduler_options="#$ -r n")
    assert (
        script.text
        == """\
#!/bin/bash
#$ -S /bin/bash
#$ -o /scratch/ada/job-1.submit.stdout
#$ -e /scratch/ada/job-1.submit.stderr
#$ -cwd
#$ -l h_rt=01:30:00
#$ -notify
#$ -P proj
#$ -l gpu=3
#$ -l bigmem
#$ -ar R17
#$ -l exclusive=true
#$ -p 7
#$ -l mem_free=65536M
#$ -pe smp 32
#$ -r n

module load python


export JOBNAME="job-1"

run-it
"""
    )
    assert script.command == "qsub -q long -terse /scratch/ada/job-1.submit"


def test_this_machine_is_asked_for_an_environment_and_a_launcher() -> None:
    provider = LocalProvider(launcher=MpiExecLauncher(overrides="-v"))
    script = shown(
        provider,
        3,
        nodes=1,
        ranks_per_node=3,
        gpus_per_node=0,
        exclusive=False,
        worker_init="module load python",
        launcher_options="-x",
    )
    begin = "module load python\n\nexport JOBNAME=job-1\nset -e\n"
    assert script.text.startswith(begin)
    assert "\nmpiexec --bind-to none -v -x -n $WORKERCOUNT " in script.text
    assert script.command == "bash /scratch/ada/job-1.sh"


# --- what a provider has already

EVERY: Mapping[str, Any] = {
    "slurm": SlurmProvider(launcher=ONE),
    "pbs": PBSProProvider(launcher=ONE),
    "torque": TorqueProvider(launcher=ONE),
    "lsf": LSFProvider(launcher=ONE),
    "grid_engine": GridEngineProvider(launcher=ONE),
    "local": LocalProvider(launcher=ONE),
}


@pytest.mark.parametrize("scheduler", EVERY)
def test_nothing_asked_for_is_nothing_changed(scheduler: str) -> None:
    provider = EVERY[scheduler]
    before = dict(vars(provider))
    assert scheduler_of(provider) == scheduler
    assert shown(provider) == script_of(provider, "run-it", 1, "job-1", "/scratch/ada")
    shown(provider, worker_init="module load python")
    assert dict(vars(provider)) == before, "the provider itself was changed"


def test_directives_that_parsl_made_of_arguments_are_replaced() -> None:
    provider = SlurmProvider(
        partition="debug",
        account="old",
        constraint="a",
        gpus_per_node=1,
        mem_per_node=4,
        cores_per_node=2,
        scheduler_options="#SBATCH --nice=5\n#SBATCH --comment=mine",
    )
    lines = directives(
        provider, queue="long", account="new", exclusive=False, memory_gb_per_node=0.5
    )
    assert lines[6:] == [
        "#SBATCH --nice=5",
        "#SBATCH --comment=mine",
        "#SBATCH --partition=long",
        "#SBATCH --account=new",
        "#SBATCH --constraint=a",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --mem=512M",
        "#SBATCH --cpus-per-task=2",
    ]


def test_directives_of_the_user_that_say_the_same_are_replaced() -> None:
    provider = SlurmProvider(
        scheduler_options="#SBATCH -C old\n#SBATCH --mem-per-cpu=3G\n#SBATCH -Aold\n"
        "#SBATCH --gres=gpu:4\n#SBATCH -s\n#SBATCH --reservation=old\n#SBATCH -d 7"
    )
    assert directives(
        provider,
        constraint="new",
        memory_gb_per_node=1,
        account="new",
        gpus_per_node=2,
        exclusive=False,
        reservation="new",
    )[6:] == [
        "#SBATCH -d 7",
        "#SBATCH --account=new",
        "#SBATCH --constraint=new",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --reservation=new",
        "#SBATCH --mem=1g",
    ]


def test_directives_of_the_user_do_not_win_over_what_parsl_writes() -> None:
    own = "#SBATCH --nodes=7\n#SBATCH --ntasks-per-node=7\n#SBATCH -t 7\n#SBATCH -c7"
    lines = directives(
        SlurmProvider(scheduler_options=own),
        nodes=2,
        ranks_per_node=1,
        walltime=5,
        cpus_per_rank=3,
    )
    assert not any("7" in line for line in lines)
    assert "#SBATCH --nodes=2" in lines


def test_several_chunks_of_pbs_are_not_guessed_at() -> None:
    provider = PBSProProvider(select_options="ngpus=1+1:ncpus=2")
    message = refusal(provider, gpus_per_node=2)
    assert "several chunks, so there is no place for {'ngpus': '2'}" in message
    assert "#PBS -l select=1:ncpus=1:ngpus=1+1:ncpus=2" in directives(provider)


@pytest.mark.parametrize(
    "line", ["#SBATCH -A old -p debug", "#SBATCH --gres=gpu:4,nvme:1"]
)
def test_a_directive_that_says_the_same_and_more_is_not_guessed_at(line: str) -> None:
    provider = SlurmProvider(scheduler_options=line)
    assert "split it" in refusal(provider, account="new", gpus_per_node=1)


def test_the_kind_of_gpus_stays() -> None:
    provider = SlurmProvider(gres="nvme:1,gpu:a100:4")
    assert "#SBATCH --gres=nvme:1,gpu:a100:2" in directives(provider, gpus_per_node=2)
    assert "#SBATCH --gres=nvme:1" in directives(provider, gpus_per_node=0)


def test_options_that_were_changed_after_construction_are_kept() -> None:
    provider = SlurmProvider(partition="debug")
    provider.scheduler_options += "#SBATCH --nice=5\n"
    assert directives(provider, queue="long")[6:] == [
        "#SBATCH --nice=5",
        "#SBATCH --exclusive",
        "#SBATCH --partition=long",
    ]


def test_lines_of_a_launch_come_last_and_go_over_what_the_provider_has() -> None:
    provider = SlurmProvider(
        partition="debug", mem_per_node=4, gpus_per_node=1, gres="nvme:1,gpu:2"
    )
    raw = ["#SBATCH -p long", "#SBATCH --mem-per-cpu=2G", "#SBATCH --gpus=3"]
    raw.append("#SBATCH --exclusive=user")
    lines = directives(provider, scheduler_options=raw)
    assert lines[6:] == ["#SBATCH --gres=nvme:1", *raw]


@pytest.mark.parametrize(
    ("scheduler", "line", "reason"),
    [
        ("slurm", "#PBS -q debug", "for Slurm, each begins with '#SBATCH'"),
        ("slurm", "--nice=5", "for Slurm, each begins with '#SBATCH'"),
        ("slurm", "#SBATCHES --x", "for Slurm, each begins with '#SBATCH'"),
        ("pbs", "#SBATCH -p debug", "for PBS, each begins with '#PBS'"),
        ("torque", "-q debug", "for Torque, each begins with '#PBS'"),
        ("lsf", "#PBS -q debug", "for LSF, each begins with '#BSUB'"),
        ("grid_engine", "-q x", "for Grid Engine, each begins with '#$'"),
        ("slurm", "#SBATCH --time=5", "which walltime= is for"),
        ("slurm", "#SBATCH -n5", "which ranks_per_node= is for"),
        ("slurm", "#SBATCH --qos=x", "which qos= is for"),
        ("pbs", "#PBS -l select=1", "which nodes= is for"),
        ("pbs", "#PBS -l walltime=1", "which walltime= is for"),
        ("local", "#SBATCH --x", "there is no scheduler on this machine"),
    ],
)
def test_a_line_that_its_scheduler_would_not_read_is_refused(
    scheduler: str, line: str, reason: str
) -> None:
    options: dict[str, Any] = {"scheduler_options": f"\n{line}\n"}
    if scheduler == "slurm":
        options["qos"] = "high"
    message = refusal(EVERY[scheduler], **options)
    assert reason in message
    assert line in message


def test_nodes_of_pbs_are_different_ones_unless_the_user_says_otherwise() -> None:
    def places(options: str = "", **submit_kwargs: Any) -> list[str]:
        provider = PBSProProvider(scheduler_options=options)
        lines = directives(provider, **submit_kwargs)
        return [line.partition("place=")[2] for line in lines if "place=" in line]

    assert places(nodes=1) == []
    assert places(nodes=2) == ["scatter"]
    assert places(exclusive=True) == ["exclhost"]
    assert places(exclusive=False, nodes=2) == ["scatter:shared"]
    assert places("#PBS -l place=pack", nodes=2) == ["pack"]
    assert places("#PBS -l place=vscatter:shared", exclusive=True) == [
        "vscatter:exclhost"
    ]
    own = "#PBS -l place=free"
    assert places(scheduler_options=own, nodes=2) == ["free"]


def test_ranks_alone_get_a_core_each() -> None:
    def cores(provider: Any) -> str:
        text = "\n".join(directives(provider, ranks_per_node=4))
        found = re.search(r"ncpus=\d+|ppn=\d+|-pe .*", text)
        assert found is not None
        return found[0]

    assert cores(PBSProProvider()) == "ncpus=4"
    assert cores(PBSProProvider(cpus_per_node=64)) == "ncpus=64"
    assert cores(TorqueProvider()) == "ppn=4"
    assert cores(GridEngineProvider(scheduler_options="#$ -pe mpi 1")) == "-pe mpi 4"


class SiteProvider(SlurmProvider):  # type: ignore[misc]  # Parsl's are not typed.
    """What a site may make of a provider."""

    def __init__(self, project: str) -> None:
        super().__init__(account=project, scheduler_options="#SBATCH --nice=5")


def test_a_provider_of_a_sites_own_class_stays_one() -> None:
    fresh = asked(SiteProvider("mine"), nodes=3)
    assert type(fresh) is SiteProvider
    lines = directives(fresh)
    assert "#SBATCH --nodes=3" in lines
    assert lines[6:] == [
        "#SBATCH --nice=5",
        "#SBATCH --exclusive",
        "#SBATCH --account=mine",
    ]


def test_a_torque_template_of_a_sites_own_may_have_no_place() -> None:
    provider = TorqueProvider()
    provider.template_string = provider.template_string.replace("ppn", "procs")
    assert "template_string of TorqueProvider" in refusal(provider, cpus_per_rank=2)
    assert "#PBS -l nodes=2:procs=1" in directives(provider, nodes=2)


# --- what has no place


@pytest.mark.parametrize(
    ("scheduler", "field", "value", "reason"),
    [
        ("pbs", "qos", "high", "PBS has queues instead, so say queue"),
        ("lsf", "qos", "high", "LSF has queues instead, so say queue"),
        ("grid_engine", "qos", "high", "has queues instead, so say queue"),
        ("pbs", "constraint", "bigmem", "PBS reads name=value"),
        ("pbs", "constraint", "ngpus=8", "there is a field for ngpus"),
        ("torque", "constraint", "a|b", "Torque reads properties"),
        ("lsf", "cpus_per_rank", 4, "request_by_nodes=False"),
        ("grid_engine", "nodes", 2, "#$ -pe mpi 64"),
        ("grid_engine", "cpus_per_rank", 4, '"#$ -pe smp 1"'),
        ("grid_engine", "ranks_per_node", 4, '"#$ -pe smp 1"'),
        ("local", "nodes", 2, "this machine is one node"),
        ("local", "gpus_per_node", 1, "share the GPUs of this machine"),
        ("local", "cpus_per_rank", 1, "share the cores of this machine"),
        ("local", "memory_gb_per_node", 1, "share the memory of this machine"),
        ("local", "walltime", "1h", "it takes nodes=1, ranks_per_node, worker_init"),
        ("local", "queue", "debug", "there is no scheduler on this machine"),
        ("local", "priority", 1, "there is no scheduler on this machine"),
        ("slurm", "launcher_options", "-v", "no place in SimpleLauncher"),
    ],
)
def test_what_a_provider_has_no_place_for_is_refused(
    scheduler: str, field: str, value: Any, reason: str
) -> None:
    message = refusal(EVERY[scheduler], **{field: value})
    assert message.startswith(f"{field}=")
    assert "has no place in" in message
    assert reason in message


def test_a_reservation_and_a_queue_are_one_thing_to_pbs() -> None:
    message = refusal(EVERY["pbs"], reservation="R17.pbs01", queue="debug")
    assert "say queue='R17' alone" in message


def test_providers_of_machines_that_are_rented_are_refused() -> None:
    condor: Any = providers.CondorProvider
    provider = condor()
    assert "CondorProvider cannot be asked" in refusal(provider, nodes=1)
    with pytest.raises(ValueError, match="these providers can: SlurmProvider"):
        scheduler_of(provider)
    with pytest.raises(ValueError, match="CondorProvider submits no script"):
        script_of(provider, "run-it", 1, "job-1", "/scratch/ada")


# --- submitting

ACCEPTING = """#!/bin/sh
echo "$(basename $0) $*" >> {log}
for last; do :; done
[ -e "$last" ] && cat "$last" > {log}.script || cat > {log}.script
echo '{answer}'
"""

ANSWERS = {
    "slurm": ("sbatch", "Submitted batch job 17", "17"),
    "pbs": ("qsub", "17.pbs01", "17.pbs01"),
    "torque": ("qsub", "17.torque", "17.torque"),
    "lsf": ("bsub", "Job <17> is submitted to queue <long>.", "17"),
    "grid_engine": ("qsub", "17", "17"),
}


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, **texts: str) -> Path:
    """Put commands of these names before all others; return what they log to."""
    commands = directory / "commands"
    commands.mkdir()
    for name, text in texts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return directory / "log"


@pytest.mark.parametrize("scheduler", ANSWERS)
def test_the_script_that_is_shown_is_the_one_that_is_submitted(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, answer, job_id = ANSWERS[scheduler]
    log = tmp_path / "log"
    install(
        tmp_path, monkeypatch, **{command: ACCEPTING.format(log=log, answer=answer)}
    )
    provider = asked(EVERY[scheduler], queue="long", walltime=5)
    directory = tmp_path / "scripts"
    script = script_of(provider, "run-it", 1, "job-1", str(directory))
    assert not directory.exists(), "looking leaves no trace"
    assert submit_script(provider, "run-it", 1, "job-1", str(directory)) == job_id
    assert (tmp_path / "log.script").read_bytes() == script.text.encode()
    assert log.read_text().split() == script.command.split()
    [file] = directory.iterdir()
    assert str(file) == script.path
    assert file.read_text() == script.text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    known = provider.resources[job_id]
    assert known.get("job_stdout_path", script.stdout) == script.stdout
    assert EVERY[scheduler].resources == {}


@pytest.mark.parametrize("scheduler", ANSWERS)
def test_a_refusal_comes_in_the_words_of_the_scheduler(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *_ = ANSWERS[scheduler]
    refuse = "#!/bin/sh\necho 'error: invalid account' >&2; exit 1\n"
    install(tmp_path, monkeypatch, **{command: refuse})
    with pytest.raises(ValueError, match="refused: error: invalid account") as caught:
        submit_script(asked(EVERY[scheduler]), "x", 1, "job-1", str(tmp_path))
    assert f"({command} " in str(caught.value)


@pytest.mark.parametrize("scheduler", ["slurm", "lsf"])
def test_an_answer_without_a_job_id_is_told(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *_ = ANSWERS[scheduler]
    install(tmp_path, monkeypatch, **{command: "#!/bin/sh\necho hello\n"})
    with pytest.raises(ValueError, match="answered with no job id: hello"):
        submit_script(asked(EVERY[scheduler]), "x", 1, "job-1", str(tmp_path))


def test_a_scheduler_that_is_not_here_is_an_error_of_the_system(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError, match=r"bsub.*could not be run"):
        submit_script(EVERY["lsf"], "x", 1, "job-1", str(tmp_path))


# Parsl leaves the command to itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_scheduler_that_says_nothing_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    install(tmp_path, monkeypatch, qsub=f"#!/bin/sh\nread line < {go_on}\n")
    provider = PBSProProvider(cmd_timeout=0.1)
    with pytest.raises(TimeoutError, match=r"said nothing for 0\.1 s.*cmd_timeout"):
        submit_script(provider, "x", 1, "job-1", str(tmp_path / "scripts"))
    go_on.write_text("now\n")


@pytest.mark.parametrize("name", ["", "a b", "a;b", "a\nb", "$(id)", "%j"])
def test_a_name_that_a_shell_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="A job script's name must consist of"):
        script_of(EVERY["slurm"], "x", 1, name, "/scratch")
    with pytest.raises(ValueError, match="A job script's directory must consist of"):
        script_of(EVERY["slurm"], "x", 1, "job-1", f"/scratch/{name} ")


# --- on this machine


def test_a_job_on_this_machine_leaves_its_outputs_and_status(tmp_path: Path) -> None:
    provider = asked(LocalProvider(launcher=ONE), worker_init="WHO=ada")
    command = "echo hello $WHO; echo oh >&2; exit 3"
    script = script_of(provider, command, 1, "job-1", str(tmp_path))
    job_id = submit_script(provider, command, 1, "job-1", str(tmp_path))
    until(lambda: provider.status([job_id])[0].terminal, "the end of the job")
    [status] = provider.status([job_id])
    assert (status.state, status.exit_code) == (JobState.FAILED, 3)
    assert Path(script.path).read_text() == script.text
    assert Path(script.stdout).read_text() == "hello ada\n"
    assert Path(script.stderr).read_text() == "oh\n"


def test_a_job_on_this_machine_is_cancelled_with_all_its_processes(
    tmp_path: Path,
) -> None:
    provider = asked(LocalProvider(launcher=ONE))
    command = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    job_id = submit_script(provider, command, 1, "job-1", str(tmp_path))
    pid = until(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it"
    )
    assert os.getsid(int(job_id)) != os.getsid(0)
    provider.cancel([job_id])
    until(lambda: not psutil.pid_exists(int(pid)), "the end of its process")
    until(lambda: not psutil.pid_exists(int(job_id)), "the end of the job")


# --- copies


def test_a_copy_finds_this_environment_and_has_no_jobs() -> None:
    provider = SlurmProvider(worker_init="module load python")
    provider.resources["17"] = {}
    fresh = clone(provider)
    assert fresh.resources == {}
    assert fresh.worker_init.startswith("module load python\nexport PATH=")
    done = subprocess.run(["bash", "-n", "-c", fresh.worker_init], check=True)
    assert done.returncode == 0
