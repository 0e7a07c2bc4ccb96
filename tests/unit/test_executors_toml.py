"""executors.toml: what is made of it, and what is refused. Nothing is started."""

from __future__ import annotations

import re
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from academy.executors import base
from academy.executors.batch import BatchExecutor
from academy.executors.config import load_executors
from academy.executors.event_loop import EventLoopExecutor
from academy.executors.globus_compute import GlobusComputeExecutor
from academy.executors.parsl import ParslExecutor

# Parsl does not close the sockets with which it asks for this machine's addresses.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

TWO = """
from parsl.config import Config
from parsl.executors.threads import ThreadPoolExecutor
config = Config(executors=[ThreadPoolExecutor(label=x) for x in "ab"])
"""
SLURM = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import SlurmProvider
config = Config(executors=[HighThroughputExecutor(
    label="cpu", max_workers_per_node=4,
    provider=SlurmProvider(partition="debug"))])
"""


def load(tmp_path: Path, text: str) -> dict[str, Executor]:
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "slurm.py").write_text(SLURM)
    (tmp_path / "executors.toml").write_text(text)
    return load_executors(tmp_path / "executors.toml")


# --- what is made


def test_executors_are_loaded_by_name(tmp_path: Path) -> None:
    executors = load(
        tmp_path,
        """
        [first]
        kind = "parsl"
        config = "two.py"
        label = "a"
        [second]
        kind = "parsl"
        config = "./two.py"
        label = "b"
        [processes]
        kind = "process_pool"
        max_workers = 3
        [threads]
        kind = "thread_pool"
        """,
    )
    first, second = executors["first"], executors["second"]
    assert isinstance(first, ParslExecutor)
    assert isinstance(second, ParslExecutor)
    assert (first.label, second.label) == ("a", "b")
    assert isinstance(executors["processes"], ProcessPoolExecutor)
    assert base.max_workers(executors["processes"]) == 3
    assert isinstance(executors["threads"], ThreadPoolExecutor)


def test_agents_per_worker_packs_agents_into_the_workers_of_any_table(
    tmp_path: Path,
) -> None:
    executors = load(
        tmp_path,
        """
        [blocks]
        kind = "parsl"
        config = "slurm.py"
        agents_per_worker = 25
        [pool]
        kind = "process_pool"
        max_workers = 2
        agents_per_worker = 3
        """,
    )
    blocks, pool = executors["blocks"], executors["pool"]
    assert isinstance(blocks, EventLoopExecutor)
    assert isinstance(blocks.inner, ParslExecutor)
    assert (blocks.agents_per_worker, blocks.max_workers) == (25, 100)
    assert base.max_workers(pool) == 6


def test_paths_are_relative_to_the_file_wherever_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.py").write_text(SLURM)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "executors.toml").write_text(
        "[near]\nkind = 'parsl'\nconfig = 'slurm.py'\nrun_dir = 'runs'\n"
        "[mine]\nkind = 'parsl'\nconfig = '~/mine.py'\n"
    )
    (tmp_path / "sub" / "slurm.py").write_text(SLURM)
    executors = load_executors("sub/executors.toml")
    monkeypatch.chdir("/")
    assert f"{tmp_path}/sub/runs/000/" in base.preview(executors["near"], {})
    assert "#SBATCH --partition=debug" in base.preview(executors["mine"], {})


def test_resources_of_a_table_hold_for_launches_that_say_nothing_else(
    tmp_path: Path,
) -> None:
    executors = load(
        tmp_path,
        """
        [blocks]
        kind = "parsl"
        config = "slurm.py"
        max_pools = 2
        [blocks.resources]
        walltime = "00:40:00"
        account = "m1234"
        [jobs]
        kind = "batch"
        scheduler = "slurm"
        [jobs.resources]
        walltime = "00:40:00"
        account = "m1234"
        """,
    )
    assert isinstance(executors["jobs"], BatchExecutor)
    for executor in executors.values():
        script = base.preview(executor, {})
        assert "#SBATCH --time=40\n" in script
        assert "#SBATCH --account=m1234\n" in script
        other = base.preview(executor, {"walltime": "01:00:00"})
        assert "#SBATCH --time=60\n" in other
        assert "#SBATCH --account=m1234\n" in other


def test_batch_jobs_go_through_the_provider_of_a_config_or_of_a_scheduler(
    tmp_path: Path,
) -> None:
    executors = load(
        tmp_path,
        """
        [mine]
        kind = "batch"
        config = "slurm.py"
        label = "cpu"
        directory = "jobs"
        python = "../venv/bin/python"
        [theirs]
        kind = "batch"
        scheduler = "pbs"
        python = "python3"
        share_job = true
        [theirs.resources]
        nodes = 2
        """,
    )
    mine, theirs = executors["mine"], executors["theirs"]
    assert isinstance(mine, BatchExecutor)
    assert mine.directory == tmp_path / "jobs"
    script = mine.preview()
    assert "#SBATCH --partition=debug\n" in script
    assert f"{tmp_path}/../venv/bin/python -m academy.run --spec" in script
    assert isinstance(theirs, BatchExecutor)
    assert theirs.shares_jobs
    script = theirs.preview()
    assert "#PBS -l select=2:" in script
    assert re.search(r"\bpython3 -m academy\.run --spec", script)


def test_a_globus_compute_endpoint_gets_what_its_table_says(tmp_path: Path) -> None:
    endpoint = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
    executors = load(
        tmp_path,
        f"""
        [far]
        kind = "globus_compute"
        endpoint_id = "{endpoint}"
        directory = "tasks"
        [far.user_endpoint_config]
        account = "m1234"
        [far.resource_specification]
        priority = 3
        [far.resources]
        walltime = "00:40:00"
        """,
    )
    far = executors["far"]
    assert isinstance(far, GlobusComputeExecutor)
    assert far.endpoint_id == endpoint
    request = far.preview()
    for words in ('"account": "m1234"', '"walltime": "00:40:00"', '"priority": 3'):
        assert words in request


# --- what is refused

PARSL = "kind = 'parsl'\nconfig = 'slurm.py'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[a]\nkind = 'parsl'\nconfg = 'x.py'",
            "takes no 'confg'. Did you mean 'confi",
        ),
        ("[a]\nkind = 'parsel'", "takes no 'parsel'. Did you mean 'parsl'"),
        ("[a]\nkind = 'parsl'", "(parsl) needs config."),
        ("[a]\nkind = 'process_pool'\nmax_workers = 0", "at least 1, not 0"),
        ("[a]\nkind = 'process_pool'\nmax_workers = true", "at least 1, not True"),
        ("[a]\nkind = 'parsl'\nconfig = 3", "config in [a] of"),
        ("[a]\nkind = 'parsl'\nconfig = ''", "must be a string, a path, not ''"),
        ("[a]\nmax_workers = 3", "needs a kind: batch, event_loop, globus_compute, p"),
        ("a = 3", "[a] of"),
        ("[a", "is not valid TOML"),
        ("[a]\nkind = 'event_loop'\ninner = 'b'", "inner of [a]"),
        (
            "a = {kind='event_loop', inner='b'}\nb = {kind='event_loop', inner='a'}",
            "contain each other: a -> b -> a",
        ),
        ("[a]\nkind = 'batch'", "(batch) needs either scheduler = "),
        (
            "[a]\nkind = 'batch'\nscheduler = 'slurm'\nconfig = 'slurm.py'",
            "(batch) needs either scheduler = ",
        ),
        (
            "[a]\nkind = 'batch'\nscheduler = 'slurm'\nlabel = 'cpu'",
            "label in [a] of",
        ),
        (
            "[a]\nkind = 'batch'\nscheduler = 'slurm'\nshare_job = 1",
            "must be true or false, not 1",
        ),
        ("[a]\nkind = 'globus_compute'", "(globus_compute) needs endpoint_id."),
        (
            "[a]\nkind = 'globus_compute'\nendpoint_id = 'e'\nuser_endpoint_config = 1",
            "must be a table, not 1",
        ),
        (f"[a]\n{PARSL}resources = 'many'", "must be a table, not 'many'"),
    ],
)
def test_what_is_wrong_in_executors_toml_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path, text)
    assert "executors.toml" in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [
        PARSL,
        "kind = 'batch'\nscheduler = 'slurm'\n",
        "kind = 'globus_compute'\nendpoint_id = 'e'\n",
    ],
    ids=["parsl", "batch", "globus_compute"],
)
@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("waltime = '01:00:00'", "Did you mean 'walltime'?"),
        ("nodes = 0", "nodes must be a whole number of at least 1, not 0"),
    ],
)
def test_wrong_resources_are_found_at_load_with_the_name_of_their_table(
    tmp_path: Path, head: str, resources: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(tmp_path, f"[a]\n{head}[a.resources]\n{resources}")
    assert f"[a.resources] of {tmp_path / 'executors.toml'}" in str(caught.value)


def test_what_is_wrong_in_a_config_names_the_table_as_well(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path, "[a]\nkind = 'parsl'\nconfig = 'none.py'")
    table = f"This is [a] of {tmp_path / 'executors.toml'}."
    assert caught.value.__notes__ == [table]
