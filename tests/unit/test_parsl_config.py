"""Parsl configurations: what is read, refused, copied and shown. Nothing is started."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import parsl.configs
import pytest
from parsl import providers
from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer
from parsl.errors import OptionalModuleMissing
from parsl.executors import HighThroughputExecutor, MPIExecutor
from parsl.executors.threads import ThreadPoolExecutor as ParslThreads
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.providers import SlurmProvider

from academy.executors import base
from academy.executors.parsl import ParslExecutor, local_config, read_config
from academy.executors.parsl.config import fresh_config
from academy.executors.parsl.engine import fresh_executor
from academy.executors.parsl.tasks import run_task, task_specification
from academy.socket import reachable_addresses

# Parsl does not close the sockets with which it asks for this machine's addresses.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

CONFIGS = Path(__file__).parents[2] / "configs" / "parsl"
LOOPBACK = "127.0.0.1"
LOGIN = "192.0.2.7"


# Parsl's are not typed.
GridEngineProvider: Any = providers.GridEngineProvider
LocalProvider: Any = providers.LocalProvider
LSFProvider: Any = providers.LSFProvider
PBSProProvider: Any = providers.PBSProProvider
TorqueProvider: Any = providers.TorqueProvider


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def htex(**arguments: Any) -> HighThroughputExecutor:
    return HighThroughputExecutor(**{"label": "cpu", "address": LOGIN, **arguments})


def fresh(engine: Any) -> Any:
    return fresh_executor(engine)


def one(engine: Any) -> ParslExecutor:
    return ParslExecutor(Config(executors=[engine]))


# --- reading


PREAMBLE = "from parsl.config import Config\nfrom parsl.executors.threads import *\n"
MADE = "Config(executors=[ThreadPoolExecutor(label={!r})])\n"


@pytest.mark.parametrize(
    "body",
    [
        "config = " + MADE.format("x"),
        "mine = " + MADE.format("x"),
        f"other = {MADE.format('o')}config = {MADE.format('x')}",
        "def fresh_config():\n    return " + MADE.format("x"),
        "def config():\n    return " + MADE.format("x"),
        f"def config():\n    return {MADE.format('x')}def other():\n    return 1\n",
    ],
    ids=["config", "only-one", "config-of-two", "function", "config()", "of-functions"],
)
def test_the_config_of_a_file_is_found(tmp_path: Path, body: str) -> None:
    config = read_config(write(tmp_path / "my.py", PREAMBLE + body))
    assert [executor.label for executor in config.executors] == ["x"]


def test_a_file_without_a_config_says_what_was_found(tmp_path: Path) -> None:
    body = "pool = ThreadPoolExecutor()\nworkers = 4\ndef helper(x): ...\n"
    path = write(tmp_path / "my.py", PREAMBLE + body)
    with pytest.raises(ValueError, match=r"no parsl\.Config") as caught:
        read_config(path)
    message = str(caught.value)
    assert str(path) in message
    found = "pool (ThreadPoolExecutor), workers (int), helper (function)."
    assert found in message


def test_an_empty_file_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only no names at all"):
        read_config(write(tmp_path / "my.py", ""))


def test_several_configs_without_a_name_are_refused(tmp_path: Path) -> None:
    body = f"one = {MADE.format('x')}two = {MADE.format('y')}"
    with pytest.raises(ValueError, match=r"several .* \(one, two\)"):
        read_config(write(tmp_path / "my.py", PREAMBLE + body))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "polaris.py", "")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*/polaris\.py\?"):
        ParslExecutor(tmp_path / "polars.py")


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "my.py", "1 / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        read_config(path)
    assert caught.value.__notes__ == [f"This happened in the Parsl config file {path}."]


def test_reading_writes_nothing_beside_the_file(tmp_path: Path) -> None:
    read_config(write(tmp_path / "my.py", PREAMBLE + "config = " + MADE.format("x")))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["my.py"]
    assert not (tmp_path / "__pycache__").exists()


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="path of a Parsl config file, not 42"):
        ParslExecutor(42)  # type: ignore[arg-type]


SHIPPED = {path.stem: path for path in Path(parsl.configs.__file__).parent.glob("*.py")}
# They log in at Globus while they are read, or have a network interface of their
# machine (those are read in tests/hpc, where there is one).
ELSEWHERE = {"__init__", "gc_multisite", "gc_tutorial"}
ELSEWHERE |= {"bridges", "midway", "polaris", "stampede2", "summit"}
# What the others need, which is not installed here.
NEED = {
    "ASPIRE1": "No such device|sqlalchemy",
    "Azure": "azure",
    "ec2": "boto3",
    "kubernetes": "kubernetes",
    "toss3_llnl": "Flux",
    "vineex_local": "taskvine",
    "wqex_local": "work_queue",
}


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - ELSEWHERE - NEED.keys()))
def test_a_config_that_parsl_ships_loads_and_previews_unchanged(name: str) -> None:
    for label, executor in ParslExecutor.from_config(SHIPPED[name]).items():
        assert f"# Parsl executor {label!r}" in executor.preview()


@pytest.mark.parametrize("name", sorted(NEED))
def test_a_config_that_parsl_ships_says_what_it_needs(name: str) -> None:
    with pytest.raises((OSError, OptionalModuleMissing), match=NEED[name]) as caught:
        ParslExecutor.from_config(SHIPPED[name])
    assert f"in the Parsl config file {SHIPPED[name]}" in caught.value.__notes__[0]


def test_an_interface_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path,
) -> None:
    text = "from parsl.addresses import *\naddress_by_interface('none0')\n"
    with pytest.raises(OSError, match="No such device") as caught:
        read_config(write(tmp_path / "my.py", text))
    assert "this machine has " in caught.value.__notes__[1]


# --- labels


def test_a_label_chooses_one_of_several() -> None:
    config = Config(executors=[ParslThreads(label="a"), ParslThreads(label="b")])
    assert ParslExecutor(config, label="b").label == "b"
    assert list(ParslExecutor.from_config(config)) == ["a", "b"]
    with pytest.raises(ValueError, match="choose one with label=: a, b"):
        ParslExecutor(config)


def test_an_unknown_label_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'cpu'"):
        ParslExecutor(Config(executors=[htex()]), label="cpus")


# --- what an executor accepts per task


class WorkQueueExecutor:
    """Stands for Parsl's, which cannot be made without its library."""

    label = "wq"


class FluxExecutor:
    """Stands for Parsl's, which cannot be made without Flux."""

    label = "flux"


class SomebodysExecutor:
    """An executor that we have never heard of."""

    label = "theirs"


def mpi(nodes_per_block: int = 4) -> MPIExecutor:
    provider = LocalProvider(nodes_per_block=nodes_per_block, launcher=SimpleLauncher())
    return MPIExecutor(label="mpi", address=LOOPBACK, provider=provider)


THREADS = ParslThreads(label="threads")
ENGINES = {
    "htex": htex(),
    "mpi": mpi(),
    "threads": THREADS,
    "wq": WorkQueueExecutor(),
    "flux": FluxExecutor(),
    "theirs": SomebodysExecutor(),
}


@pytest.mark.parametrize(
    ("engine", "given", "expected"),
    [
        ("htex", {}, {}),
        ("htex", {"priority": -1.5}, {"priority": -1.5}),
        ("htex", {"parsl_resource_specification": {"priority": 1}}, {"priority": 1}),
        ("htex", {"parsl_resource_specification": None}, {}),
        (
            "mpi",
            {"num_nodes": 2, "ranks_per_node": 3, "launcher_options": "--mpi=pmix"},
            {
                "num_nodes": 2,
                "ranks_per_node": 3,
                "num_ranks": 6,
                "launcher_options": "--mpi=pmix",
            },
        ),
        (
            "mpi",
            {"num_nodes": 2, "num_ranks": 8},
            {"num_nodes": 2, "ranks_per_node": 4, "num_ranks": 8},
        ),
        ("threads", {}, {}),
        (
            "wq",
            {"parsl_resource_specification": {"cores": 2, "memory": 100}, "disk": 5.5},
            {"cores": 2, "memory": 100, "disk": 5.5},
        ),
        ("flux", {"num_tasks": 4, "gpus_per_task": 0}, None),
        (
            "theirs",
            {"parsl_resource_specification": {"any": "thing"}},
            {"any": "thing"},
        ),
    ],
)
def test_a_task_gets_what_its_parsl_executor_accepts(
    engine: str, given: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    specification = task_specification(ENGINES[engine], given)
    assert specification == (given if expected is None else expected)


@pytest.mark.parametrize(
    ("engine", "given", "message"),
    [
        ("htex", {"priorty": 1}, "takes no 'priorty'. Did you mean 'priority'? It ta"),
        ("htex", {"nodes": 2}, "Nodes, walltime, queue and the like belong to the bl"),
        ("htex", {"priority": "high"}, "priority must be a number, not 'high'"),
        ("htex", {"priority": True}, "priority must be a number, not True"),
        ("htex", {"priority": float("nan")}, "priority must be a number, not nan"),
        ("htex", {"parsl_resource_specification": 1}, "must be a dictionary, not 1"),
        (
            "htex",
            {"parsl_resource_specification": {"priority": 1}, "priority": 2},
            "given 'priority' twice",
        ),
        (
            "htex",
            {"parsl_resource_specification": {"cores": 1}},
            "Parsl executor 'cpu' (HighThroughputExecutor), for one task, takes no",
        ),
        ("threads", {"cores": 1}, "takes no 'cores'. It takes none."),
        ("mpi", {}, "needs num_nodes and ranks_per_node"),
        ("mpi", {"num_nodes": 2}, "needs num_nodes and ranks_per_node"),
        ("mpi", {"num_nodes": 0, "ranks_per_node": 1}, "a whole number of at least 1"),
        ("mpi", {"num_nodes": 5, "ranks_per_node": 1}, "more than the 4 of a block"),
        ("mpi", {"num_nodes": 2, "num_ranks": 3}, "does not divide by num_nodes=2"),
        (
            "mpi",
            {"num_nodes": 2, "num_ranks": 3, "ranks_per_node": 2},
            "num_ranks=3 is not num_nodes * ranks_per_node = 2 * 2",
        ),
        ("wq", {"core": 1}, "Did you mean 'cores'?"),
        ("wq", {"memory": -1}, "memory must be a number, 0 or more, not -1"),
        ("flux", {"num_tasks": 1.5}, "num_tasks must be a whole number"),
        ("theirs", {"cores": 1}, "It takes parsl_resource_specification."),
    ],
)
def test_what_it_does_not_accept_is_refused_with_what_would_be_right(
    engine: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        task_specification(ENGINES[engine], given)


def test_the_callers_dictionary_stays_as_it_is() -> None:
    given = {"num_nodes": 2, "ranks_per_node": 3}
    one(mpi()).validate(parsl_resource_specification=given)
    assert given == {"num_nodes": 2, "ranks_per_node": 3}


def test_a_pool_of_the_standard_library_takes_no_submit_kwargs() -> None:
    with ThreadPoolExecutor(3) as pool:
        base.validate(pool, {})
        with pytest.raises(ValueError, match="ThreadPoolExecutor takes no submit_kw"):
            base.validate(pool, {"nodes": 2})
        assert base.max_workers(pool) == 3
        assert base.preview(pool, {}) == "ThreadPoolExecutor, 3 workers\n"


def test_workers_import_no_parsl_to_run_a_task() -> None:
    assert run_task.__module__ == "academy.executors.parsl.tasks"
    assert "parsl" not in vars(sys.modules[run_task.__module__])


# --- how many workers


@pytest.mark.parametrize(
    ("engine", "workers"),
    [
        (local_config(workers=7).executors[0], 7),
        (htex(max_workers_per_node=10**6), os.cpu_count()),
        (htex(), os.cpu_count()),
        (htex(available_accelerators=1), 1),
        (htex(provider=SlurmProvider(max_blocks=3)), None),
        (
            htex(
                max_workers_per_node=8,
                provider=SlurmProvider(nodes_per_block=2, max_blocks=3),
            ),
            48,
        ),
        (htex(provider=SlurmProvider(cores_per_node=16), cores_per_worker=4), 4),
        (mpi(), 1),
        (ParslThreads(max_threads=5), 5),
    ],
)
def test_the_number_of_workers_follows_from_the_config(
    engine: Any, workers: int | None
) -> None:
    assert one(engine).max_workers == workers


# --- copies


def test_the_config_that_was_given_stays_as_it_is() -> None:
    config = Config(executors=[htex(provider=SlurmProvider(partition="debug"))])
    before = repr(config)
    executor = ParslExecutor(config)
    executor.preview(priority=1)
    copied = fresh_config(config, [fresh(config.executors[0])], "elsewhere")
    assert repr(config) == before
    assert copied.executors[0] is not config.executors[0]


def test_a_copy_tracks_no_usage_touches_no_logging_and_retries_nothing() -> None:
    config = Config(
        executors=[THREADS],
        usage_tracking=3,
        retries=2,
        memoizer=BasicMemoizer(),
        strategy="none",
        project_name="mine",
    )
    copied = fresh_config(config, [fresh(THREADS)], "/run")
    assert (copied.usage_tracking, copied.initialize_logging) == (0, False)
    assert (copied.strategy, copied.run_dir) == ("none", "/run")
    assert (copied.memoizer, copied.retries) == (None, 0)


def test_a_copied_executor_keeps_what_was_set() -> None:
    engines: list[Any] = [
        htex(heartbeat_period=3, encrypted=False, worker_debug=True),
        htex(max_workers_per_node=3, available_accelerators=["a", "b"]),
        mpi(),
        ParslThreads(label="t", max_threads=7, thread_name_prefix="mine"),
    ]
    for engine in engines:
        engine.worker_init = "kept by nobody"
        copied = fresh(engine)
        assert copied is not engine
        ours = r"(interchange_launch_cmd|worker_init)=.*"
        assert re.sub(ours, "", repr(copied)) == re.sub(ours, "", repr(engine))


def test_a_subclass_that_passes_arguments_on_is_copied() -> None:
    class Mine(HighThroughputExecutor):
        def __init__(self, extra: int, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.extra = extra

    copied = fresh(Mine(3, label="mine", address=LOOPBACK))
    assert (copied.extra, copied.label) == (3, "mine")


def test_an_executor_that_does_not_keep_its_arguments_is_used_itself() -> None:
    class Forgetful(ParslThreads):
        def __init__(self, secret: str) -> None:
            super().__init__(label=secret[:1])

    engine = Forgetful("x")
    assert fresh(engine) is engine


def test_directives_of_the_provider_are_not_repeated() -> None:
    provider = SlurmProvider(partition="debug", scheduler_options="#SBATCH --foo")
    script = one(htex(provider=provider)).preview()
    for line in ("--partition=debug", "--foo", "--exclusive"):
        assert script.count(f"#SBATCH {line}\n") == 1


def test_only_this_machine_reaches_workers_on_it() -> None:
    on_all = htex(address=None)
    assert fresh(on_all).address == LOOPBACK
    # A provider of this name may as well spread workers over the nodes of its job.
    provider = LocalProvider(nodes_per_block=2, launcher=SrunLauncher())
    spread = htex(address=None, provider=provider)
    assert fresh(spread).address is None
    assert fresh(spread).all_addresses == (reachable_addresses() or [LOOPBACK])
    assert fresh(htex(address=LOGIN)).all_addresses == [LOGIN]


def test_an_interchange_of_the_users_own_is_left_alone() -> None:
    own = ["nice", "interchange.py"]
    assert fresh(htex(interchange_launch_cmd=own)).interchange_launch_cmd == own


def test_workers_find_this_environment_unless_another_was_activated() -> None:
    scripts = os.path.dirname(sys.executable)

    def exported(worker_init: str) -> str:
        provider = LocalProvider(worker_init=worker_init)
        return str(fresh(htex(provider=provider)).provider.worker_init)

    assert exported("") == f'export PATH={scripts}:"$PATH"\n'
    other = "source other/bin/activate"
    assert exported(other) == f'{other}\nexport PATH="$PATH":{scripts}\n'


# --- previews


@pytest.mark.parametrize(
    ("provider", "command", "directive"),
    [
        (SlurmProvider(account="me"), "sbatch /", "#SBATCH --account=me"),
        (
            PBSProProvider(account="me", queue="debug", select_options="ngpus=4"),
            "qsub  -q debug -A me /",
            "#PBS -l select=1:ncpus=1:ngpus=4",
        ),
        (TorqueProvider(queue="debug"), "qsub  -q debug /", "#PBS -l nodes=1:ppn=1"),
        (LSFProvider(project="me"), "bsub /", "#BSUB -P me"),
        (
            GridEngineProvider(queue="debug"),
            "qsub -q debug -terse /",
            "#$ -S /bin/bash",
        ),
        (LocalProvider(), "bash /", "export JOBNAME=parsl.cpu."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_preview_shows_script_and_command_and_runs_neither(
    provider: Any,
    command: str,
    directive: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("sbatch", "qsub", "bsub", "bash"):
        write(tmp_path / name, f"#!/bin/sh\ntouch {tmp_path}/ran\n").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    preview = ParslExecutor(
        Config(executors=[htex(provider=provider)]), run_dir=tmp_path / "runs"
    ).preview(priority=4)
    assert f"\n# {command}" in preview
    assert directive in preview
    assert f"--logdir={tmp_path}/runs/000/cpu " in preview
    assert "PORT" not in preview
    assert preview.endswith(
        "\n# with each task: parsl_resource_specification={'priority': 4}\n"
    )
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "runs").exists()


def test_a_preview_of_threads_shows_what_goes_with_a_task() -> None:
    assert one(ParslThreads(label="t")).preview() == (
        "# Parsl executor 't': ThreadPoolExecutor\n"
        "# with each task: parsl_resource_specification={}\n"
    )


def test_a_preview_refuses_what_submit_would() -> None:
    with pytest.raises(ValueError, match="Did you mean 'priority'"):
        one(htex()).preview(priorty=1)
