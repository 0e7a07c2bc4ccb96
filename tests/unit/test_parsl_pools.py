"""Pools of blocks by shape: what selects one, what it is, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from parsl import providers
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, MPIExecutor
from parsl.executors.threads import ThreadPoolExecutor as ParslThreads
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.providers import SlurmProvider

from academy.executors.parsl import ParslExecutor
from academy.executors.parsl.pinning import own_gpus, share_gpus
from academy.executors.parsl.shapes import Request, pool_label, read_request
from academy.executors.resources import ResourceSpec
from academy.socket import reachable_addresses

LOGIN = "192.0.2.7"
LocalProvider: Any = providers.LocalProvider
PBSProProvider: Any = providers.PBSProProvider


def htex(provider: Any = None, **arguments: Any) -> HighThroughputExecutor:
    given = {"label": "gpu", "address": LOGIN, **arguments}
    return HighThroughputExecutor(provider=provider or SlurmProvider(), **given)


def mpi(**provider: Any) -> MPIExecutor:
    given = {"nodes_per_block": 4, "launcher": SimpleLauncher(), **provider}
    return MPIExecutor(label="mpi", address=LOGIN, provider=SlurmProvider(**given))


def one(engine: Any, **options: Any) -> ParslExecutor:
    return ParslExecutor(Config(executors=[engine]), **options)


def spec(**fields: Any) -> ResourceSpec:
    return ResourceSpec.parse(fields, "a test")


def read(engine: Any, defaults: Any = None, **submit_kwargs: Any) -> Request:
    return read_request(engine, submit_kwargs, defaults or {})


# --- what goes with the task, and what shapes the block


@pytest.mark.parametrize(
    ("given", "specification", "block"),
    [
        ({}, {}, None),
        ({"priority": 1.5}, {"priority": 1.5}, None),
        ({"nodes": 2}, {}, {"nodes": 2}),
        (
            {"time": 30, "partition": "debug", "priority": 1},
            {"priority": 1},
            {"walltime": "00:30:00", "queue": "debug"},
        ),
        (
            {"parsl_resource_specification": {"priority": 2}, "gpus_per_node": 4},
            {"priority": 2},
            {"gpus_per_node": 4},
        ),
    ],
)
def test_what_only_the_scheduler_can_give_shapes_the_block(
    given: dict[str, Any], specification: dict[str, Any], block: dict[str, Any] | None
) -> None:
    request = read(htex(), **given)
    assert request.specification == specification
    assert (request.block and request.block.given()) == block


@pytest.mark.parametrize(
    ("given", "specification", "block"),
    [
        (
            {"nodes": 2, "ranks_per_node": 3},
            {"num_nodes": 2, "ranks_per_node": 3, "num_ranks": 6},
            None,
        ),
        (
            {"num_nodes": 4, "num_ranks": 8, "launcher_options": "--mpi=pmix"},
            {
                "num_nodes": 4,
                "ranks_per_node": 2,
                "num_ranks": 8,
                "launcher_options": "--mpi=pmix",
            },
            None,
        ),
        (
            {"nodes": 8, "ranks_per_node": 1},
            {"num_nodes": 8, "ranks_per_node": 1, "num_ranks": 8},
            {"nodes": 8, "ranks_per_node": 1},
        ),
        (
            {"nodes": 2, "ranks_per_node": 3, "walltime": "00:30:00"},
            {"num_nodes": 2, "ranks_per_node": 3, "num_ranks": 6},
            {"nodes": 2, "ranks_per_node": 3, "walltime": "00:30:00"},
        ),
    ],
    ids=["fits", "fits-natively-named", "larger-than-a-block", "with-a-walltime"],
)
def test_an_mpi_agent_has_a_block_of_its_own_unless_it_fits_into_a_usual_one(
    given: dict[str, Any], specification: dict[str, Any], block: dict[str, Any] | None
) -> None:
    request = read(mpi(), **given)
    assert request.specification == specification
    assert (request.block and request.block.given()) == block


def test_a_block_for_an_mpi_agent_has_cores_for_its_ranks() -> None:
    shape = {"nodes": 2, "ranks_per_node": 3, "queue": "debug"}
    few = mpi(exclusive=False)
    assert "#SBATCH --cpus-per-task=3" in one(few).preview(**shape)
    asked = one(few).preview(**shape, cpus_per_rank=4)
    assert "#SBATCH --cpus-per-task=12" in asked
    for enough in (mpi(), mpi(exclusive=False, cores_per_node=64)):
        assert "--cpus-per-task=3" not in one(enough).preview(**shape)


def test_a_native_dictionary_goes_to_mpi_executor_as_it_is() -> None:
    native = {"num_nodes": 2, "num_ranks": 4}
    request = read(mpi(), parsl_resource_specification=native)
    assert request.specification == {**native, "ranks_per_node": 2}
    assert request.block is None


def test_resources_of_the_executor_are_defaults() -> None:
    defaults = {"walltime": "01:00:00", "queue": "long", "priority": 3}
    request = read(htex(), defaults, queue="debug")
    assert request.specification == {"priority": 3}
    assert request.block == spec(walltime=60, queue="debug")
    assert read(htex(), defaults).block == spec(walltime=60, queue="long")


@pytest.mark.parametrize(
    ("engine", "given", "message"),
    [
        (htex(), {"nodez": 2}, "takes no 'nodez'. Did you mean 'nodes'?"),
        (htex(), {"priorty": 2}, "Did you mean 'priority'?"),
        (htex(), {"nodes": 0}, "nodes must be a whole number of at least 1, not 0"),
        (ParslThreads(label="t"), {"nodes": 2}, "takes no 'nodes'. It takes none."),
        (mpi(), {"nodes": 2, "walltime": 5}, "needs num_nodes and ranks_per_node"),
        (htex(LocalProvider()), {"queue": "debug"}, "no scheduler on this machine"),
        (
            htex(PBSProProvider()),
            {"nodes": 2},
            "nodes=2 needs a launcher that starts workers on each node",
        ),
        (
            htex(),
            {"gpus_per_node": 4, "ranks_per_node": 3},
            "gpus_per_node=4 cannot be divided among 3 workers of a node (Parsl execut",
        ),
    ],
)
def test_what_cannot_be_given_is_refused_before_anything_starts(
    engine: Any, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    executor = one(engine, run_dir=tmp_path / "runs")
    for call in (executor.validate, executor.preview):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(**given)
    with pytest.raises(ValueError, match=re.escape(message)):
        executor.submit(abs, -1, **given)
    assert not (tmp_path / "runs").exists()


def test_wrong_resources_are_refused_when_the_executor_is_made() -> None:
    with pytest.raises(ValueError, match="Did you mean 'walltime'"):
        one(htex(), resources={"waltime": 5})
    with pytest.raises(ValueError, match="max_pools is at least 1; it was 0"):
        one(htex(), max_pools=0)


def test_an_executor_that_cannot_be_copied_has_no_pools() -> None:
    class Forgetful(HighThroughputExecutor):
        def __init__(self, secret: str) -> None:
            super().__init__(label=secret, address=LOGIN, provider=SlurmProvider())

    with pytest.raises(ValueError, match="does not keep its argument secret"):
        one(Forgetful("x")).validate(nodes=2)


# --- pools


def test_a_label_is_readable_and_the_same_for_the_same_shape() -> None:
    shape = spec(nodes=2, gpus_per_node=4, walltime="00:30:00", queue="debug")
    label = pool_label("gpu", shape)
    assert re.fullmatch(r"gpu-2n-4gpu-00h30-debug-[0-9a-f]{6}", label)
    assert pool_label("gpu", spec(N=2, gpus_per_node=4, time=30, p="debug")) == label
    other = spec(nodes=2, gpus_per_node=4, walltime=30, queue="debug", qos="high")
    assert pool_label("gpu", other) != label


def script(executor: ParslExecutor, **submit_kwargs: Any) -> str:
    return executor.preview(**submit_kwargs)


def test_the_script_of_a_pool_asks_for_its_shape_and_the_usual_one_does_not() -> None:
    provider = SlurmProvider(partition="cpu", account="proj", exclusive=False)
    executor = one(htex(provider, max_workers_per_node=16))
    asked = script(executor, nodes=2, gpus_per_node=4, queue="gpu", walltime="90m")
    for line in ("--nodes=2", "--time=90", "--partition=gpu", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in asked
    assert "#SBATCH --account=proj\n" in asked
    assert "--partition=cpu" not in asked
    assert asked.startswith(
        "# Parsl executor 'gpu': HighThroughputExecutor\n# pool of blocks 'gpu-2n-4gpu-"
    )
    usual = script(executor)
    assert "#SBATCH --partition=cpu\n" in usual
    assert "--gpus-per-node" not in usual


def test_workers_of_blocks_that_were_only_looked_at_do_not_count() -> None:
    executor = one(htex(max_workers_per_node=8))
    usual = executor.max_workers
    assert usual == 8
    executor.preview(walltime=10)
    assert executor.max_workers == usual
    executor.validate(walltime=10)
    assert executor.max_workers == 2 * usual


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (
            {"ranks_per_node": 4, "cpus_per_rank": 2},
            "--max_workers_per_node=4 .* -c 2.0 ",
        ),
        ({"ranks_per_node": 40}, "--max_workers_per_node=40 .* -c 1e-06 "),
        (
            {"gpus_per_node": 4, "ranks_per_node": 2},
            "--max_workers_per_node=2 .*--available-accelerators 0,1 2,3$",
        ),
        (
            {"gpus_per_node": 4},
            "--max_workers_per_node=4 .*--available-accelerators 0 1 2 3$",
        ),
        ({"gpus_per_node": 0}, "--available-accelerators *$"),
    ],
)
def test_workers_of_a_node_follow_from_its_shape(
    given: dict[str, Any], command: str
) -> None:
    engine = htex(max_workers_per_node=8)
    assert re.search(f"(?m){command}", script(one(engine), **given))


def test_one_worker_of_a_node_gets_all_of_its_gpus() -> None:
    executor = one(htex(max_workers_per_node=1))
    assert "--available-accelerators 0,1,2,3" in script(executor, gpus_per_node=4)


def test_workers_are_started_on_all_nodes_of_a_block() -> None:
    executor = one(htex())
    assert "srun" not in script(executor, nodes=1)
    assert "\nsrun --ntasks 3 " in script(executor, nodes=3)
    # Where somebody has said how, it stays.
    own = one(htex(SlurmProvider(launcher=SrunLauncher(overrides="--mine"))))
    assert "\nsrun --ntasks 3 -l --mine bash" in script(own, nodes=3)


def test_the_gpus_of_this_machine_are_shared_out_without_a_scheduler() -> None:
    executor = one(htex(LocalProvider(), address="127.0.0.1", max_workers_per_node=2))
    assert "--available-accelerators 0,1 2,3" in script(executor, gpus_per_node=4)


def test_a_pool_has_no_block_that_nobody_asked_for() -> None:
    for strategy, blocks in (("simple", 0), ("none", 1)):
        engine = htex(SlurmProvider(init_blocks=2, min_blocks=2))
        executor = ParslExecutor(Config(executors=[engine], strategy=strategy))
        pool, _ = executor._pools.read({"nodes": 2})
        provider = pool.fresh().provider
        # Without a strategy, there are none but the initial ones.
        assert (provider.init_blocks, provider.min_blocks) == (blocks, 0)


def test_what_is_previewed_stays_what_it_is() -> None:
    executor = one(htex(SlurmProvider()))
    first, other = script(executor, nodes=2), script(executor, nodes=3)
    assert script(executor, nodes=2) == script(executor, N=2) == first

    def port(text: str) -> str:
        return text.partition("--port=")[2].split()[0]

    assert 54000 <= int(port(first)) < 55000
    assert len({port(first), port(other), port(script(executor))}) == 3


@pytest.mark.parametrize(
    ("walltime", "minutes"), [("00:00:30", 1), ("1-00:00:00", 1440), ("02:00:00", 120)]
)
def test_a_walltime_of_the_config_is_a_limit_in_whole_minutes(
    walltime: str, minutes: int
) -> None:
    executor = one(htex(SlurmProvider(walltime=walltime)))
    assert f"#SBATCH --time={minutes}\n" in executor.preview()


def test_a_pool_listens_on_a_port_of_its_own() -> None:
    executor = one(htex(worker_port=54321, worker_port_range=(40000, 40010)))
    assert "--port=54321 " in script(executor)
    assert "--port=400" in script(executor, nodes=2)


def test_pools_share_ports_only_when_there_are_no_others() -> None:
    def ports(pools: int) -> set[str]:
        engine = htex(worker_port_range=(31020, 31024))
        scripts = [script(one(engine), nodes=1 + n) for n in range(pools)]
        return {re.findall(r"--port=(\d+) ", text)[0] for text in scripts}

    assert len(ports(4)) == 4
    assert len(ports(1)) == 1


def test_runs_in_other_directories_have_jobs_of_other_names(tmp_path: Path) -> None:
    names = set()
    for run in ("a", "b"):
        text = one(htex(), run_dir=tmp_path / run).preview()
        names |= set(re.findall(r"#SBATCH --job-name=(\S+)", text))
    assert len(names) == 2
    assert all(re.fullmatch(r"parsl\.gpu\.\w{8}\.block-0", name) for name in names)


# --- addresses


def test_a_loopback_address_is_refused_where_workers_are_on_other_machines() -> None:
    executor = one(htex(address="127.0.0.1"))
    for call in (executor.validate, executor.preview):
        with pytest.raises(ValueError, match="Leave address= out") as caught:
            call()
        assert all(address in str(caught.value) for address in reachable_addresses())
    one(htex(LocalProvider(), address="127.0.0.1")).validate()


def test_reading_a_config_asks_nobody_for_addresses(tmp_path: Path) -> None:
    path = tmp_path / "anywhere.py"
    path.write_text(
        "from parsl.config import Config\n"
        "from parsl.executors import HighThroughputExecutor\n"
        "from parsl.providers import SlurmProvider\n"
        "def mine():\n"
        "    return Config([HighThroughputExecutor(provider=SlurmProvider())])\n"
    )
    # Parsl's own way leaves sockets open, which is an error in these tests.
    listed = ",".join(reachable_addresses() or ["127.0.0.1"])
    assert f" -a {listed} " in ParslExecutor(path).preview()


# --- GPUs


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        (4, None, ["0", "1", "2", "3"]),
        (4, 4, ["0", "1", "2", "3"]),
        (4, 2, ["0,1", "2,3"]),
        (4, 1, ["0,1,2,3"]),
        (1, None, ["0"]),
        (0, 8, []),
    ],
)
def test_gpus_are_divided_evenly(
    gpus: int, workers: int | None, shares: list[str]
) -> None:
    assert share_gpus(gpus, workers, "a test") == shares


@pytest.mark.parametrize("workers", [3, 8])
def test_gpus_that_cannot_be_divided_evenly_are_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="ask for ranks_per_node=1, 2 or 4"):
        share_gpus(4, workers, "a test")


CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("shares", "given", "mine", "expected"),
    [
        (["0", "1"], "2,3", "1", "3"),
        (["0,1", "2,3"], "4,5,6,7", "2,3", "6,7"),
        (["0", "1"], "0,1", "1", "1"),
        (["0", "1"], "GPU-5f,GPU-6a", "0", "GPU-5f"),
        (["0", "1"], None, "1", None),  # Its scheduler says nothing.
        (["2", "3"], "2,3", "3", None),  # As the node counts them.
        (["0", "1", "2"], "2,3", "1", None),
        (["GPU-5f"], "2,3", "GPU-5f", None),
    ],
)
def test_a_worker_takes_its_share_of_the_gpus_of_its_job(
    shares: list[str], given: str | None, mine: str, expected: str | None
) -> None:
    before = {} if given is None else {CUDA: given}
    now = {CUDA: mine, "ROCR_VISIBLE_DEVICES": mine}
    right = {} if expected is None else {CUDA: expected}
    assert own_gpus(shares, before, now) == right


# --- workers


def test_workers_load_no_parsl_for_our_part_of_a_task() -> None:
    program = (
        "import sys, academy.executors.parsl.tasks\n"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('parsl', 'pydantic')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout.split() == []
