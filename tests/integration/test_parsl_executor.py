"""Parsl's real workers, interchanges and DataFlowKernels, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from parsl.executors.threads import ThreadPoolExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.providers import LocalProvider, SlurmProvider

from academy.executors.config import load_executors
from academy.executors.parsl import ParslExecutor, local_config
from academy.failure import AgentLostError, WorkerDiedError

# Workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# How long processes may take to end by themselves when their client was killed.
BOUND = 30.0


@pytest.fixture(scope="module")
def executor() -> Iterator[ParslExecutor]:
    """One that runs already, with one worker, for tests that do not end it."""
    with ParslExecutor.local(1) as executor:
        executor.submit(os.getpid).result()
        yield executor


def quick(label: str = "quick", **arguments: Any) -> Config:
    """Return a configuration whose losses are noticed within three seconds."""
    return Config(
        executors=[
            HighThroughputExecutor(
                label=label,
                address="127.0.0.1",
                max_workers_per_node=1,
                cores_per_worker=1e-6,
                heartbeat_period=1,
                heartbeat_threshold=3,
                provider=LocalProvider(min_blocks=1),  # type: ignore[no-untyped-call]
                block_error_handler=windowed_error_handler,
            )
        ],
        strategy_period=0.2,
        **arguments,
    )


# --- tasks


def test_functions_go_by_value_if_workers_cannot_import_them(
    executor: ParslExecutor,
) -> None:
    offset = 3
    assert executor.submit(lambda x: x + offset, 4).result() == 7


def test_the_specification_reaches_the_worker_and_not_the_function(
    executor: ParslExecutor,
) -> None:
    # Workers tell their tasks what they were submitted with.
    variable = "PARSL_PRIORITY"
    assert executor.submit(os.getenv, variable, priority=7).result() == "7"
    native = {"priority": 8}
    future = executor.submit(os.getenv, variable, parsl_resource_specification=native)
    assert future.result() == "8"


def test_a_task_that_fails_runs_once_whatever_the_config_says(tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def fail() -> None:
        with open(runs, "a") as file:
            file.write("run\n")
        raise ValueError("the first time")

    with ParslExecutor(quick(retries=3)) as executor:
        with pytest.raises(ValueError, match="the first time"):
            executor.submit(fail).result()
        # Whatever would run again has been queued before this.
        assert executor.submit(abs, -1).result() == 1
    assert runs.read_text() == "run\n"


# --- losses


def test_a_worker_that_dies_fails_its_task_and_is_replaced() -> None:
    with ParslExecutor.local(1) as executor:
        with pytest.raises(WorkerDiedError) as caught:
            executor.submit(os._exit, 1).result()
        assert isinstance(caught.value.__cause__, WorkerLost)
        assert caught.value.host == socket.gethostname()
        assert caught.value.job_id
        assert executor.submit(abs, -1).result() == 1


def test_a_worker_pool_that_dies_fails_its_tasks_and_is_replaced() -> None:
    with ParslExecutor(quick()) as executor:
        pool = executor.submit(os.getppid).result()
        future = executor.submit(time.sleep, 600)
        psutil.Process(pool).kill()
        with pytest.raises(AgentLostError, match="have not been heard of for 3 s") as e:
            future.result()
        assert isinstance(e.value.__cause__, ManagerLost)
        assert e.value.host == socket.gethostname()
        assert executor.submit(abs, -1).result() == 1


def test_an_interchange_that_dies_fails_its_tasks_and_is_replaced() -> None:
    before = psutil.Process().children()
    executor = ParslExecutor(quick())
    worker = psutil.Process(executor.submit(os.getpid).result())
    future = executor.submit(time.sleep, 600)
    (interchange,) = set(psutil.Process().children()) - set(before)
    interchange.kill()
    with pytest.raises(AgentLostError, match=r"interchange.* ended with st.* -9") as e:
        future.result()
    assert isinstance(e.value.__cause__, BadStateException)
    assert executor.submit(abs, -1).result() == 1
    executor.shutdown()
    worker.wait(timeout=BOUND)


def test_an_interchange_that_does_not_start_fails_the_task(tmp_path: Path) -> None:
    config = quick(run_dir=str(tmp_path / "run"))
    engine: Any = config.executors[0]
    engine.interchange_launch_cmd = ["no-such-interchange"]
    executor = ParslExecutor(config)
    with pytest.raises(FileNotFoundError, match="no-such-interchange"):
        executor.submit(abs, -1).result()
    before = threading.active_count()
    executor.shutdown()
    assert threading.active_count() < before


# --- what is left: conftest.py looks for processes, threads and sockets as well


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a name so short that sockets may be in it."""
    with tempfile.TemporaryDirectory(prefix="academy-") as directory:
        yield Path(directory)


def test_a_run_keeps_to_its_directory_and_leaves_this_process_as_it_was(
    tmp_path: Path,
    temporary: Path,
    academy_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(temporary))
    threads, environment = set(threading.enumerate()), dict(os.environ)
    with ParslExecutor.local(1) as executor:
        assert executor.submit(os.getcwd).result() == str(tmp_path)
        assert list(temporary.glob("pymp-*"))
    assert set(threading.enumerate()) == threads
    assert dict(os.environ) == environment
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {academy_home.name}
    (run,) = (academy_home / "parsl").iterdir()
    assert run.name.startswith("local-")
    assert run.stat().st_mode & 0o077 == 0
    assert (run / "000" / "local" / "interchange.log").exists()


def test_no_file_descriptor_is_left() -> None:
    def run() -> int:
        with ParslExecutor(Config(executors=[ThreadPoolExecutor()])) as executor:
            executor.submit(abs, -1).result()
        return psutil.Process().num_fds()

    run()
    assert run() == run()


def test_a_config_can_be_used_again(tmp_path: Path) -> None:
    config = quick(run_dir=str(tmp_path / "run"))
    before = repr(config)
    for _ in range(2):
        with ParslExecutor(config) as executor:
            assert executor.submit(abs, -1).result() == 1
    assert repr(config) == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["000", "001"]


# --- one kernel for several labels


def two_labels(tmp_path: Path) -> Config:
    return Config(
        executors=[ThreadPoolExecutor(label="a"), ThreadPoolExecutor(label="b")],
        run_dir=str(tmp_path / "run"),
    )


def runs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run").iterdir())


def test_the_labels_of_a_config_share_one_kernel(tmp_path: Path) -> None:
    executors = ParslExecutor.from_config(two_labels(tmp_path))
    for executor in executors.values():
        assert executor.submit(threading.get_ident).result() != threading.get_ident()
    assert runs(tmp_path) == ["000"]
    executors["a"].shutdown()
    assert executors["b"].submit(abs, -1).result() == 1
    executors["b"].shutdown()
    assert runs(tmp_path) == ["000"]


def test_a_label_used_after_the_others_have_ended_starts_anew(tmp_path: Path) -> None:
    executors = ParslExecutor.from_config(two_labels(tmp_path))
    for executor in executors.values():
        with executor:
            assert executor.submit(abs, -1).result() == 1
    assert runs(tmp_path) == ["000", "001"]


def test_tables_of_executors_toml_with_the_same_config_share_one_kernel(
    tmp_path: Path,
) -> None:
    (tmp_path / "two.py").write_text(
        textwrap.dedent(
            f"""
            from parsl import Config, ThreadPoolExecutor as Threads
            config = Config(
                executors=[Threads(label="a"), Threads(label="b")],
                run_dir={str(tmp_path / "run")!r},
            )
            """
        )
    )
    (tmp_path / "executors.toml").write_text(
        """
        [first]
        kind = "parsl"
        config = "two.py"
        label = "a"
        [second]
        kind = "parsl"
        config = "./two.py"
        label = "b"
        """
    )
    executors = load_executors(tmp_path / "executors.toml")
    with executors["first"] as first, executors["second"] as second:
        assert first.submit(abs, -1).result() == second.submit(abs, -1).result() == 1
    assert runs(tmp_path) == ["000"]


def test_executors_that_start_at_once_do_not_take_each_others_directory(
    tmp_path: Path,
) -> None:
    config = two_labels(tmp_path)
    executors = [ParslExecutor(config, label=label) for label in "abababab"]
    for future in [executor.submit(abs, -1) for executor in executors]:
        assert future.result() == 1
    for executor in executors:
        executor.shutdown()
    assert len(runs(tmp_path)) == len(executors)


# --- a client that does not end in order


def start(program: str, **options: Any) -> subprocess.Popen[str]:
    """Run a program in an environment that nobody has activated."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": "/usr/bin:/bin", "CLIENT": str(uuid.uuid4())},
        **options,
    )


@contextlib.contextmanager
def client(program: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with start(program, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return what a client has started, also what has detached itself from it."""
    mark = next(
        entry
        for entry in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        if entry.startswith(b"CLIENT=")
    )
    found = []
    for other in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            environment = Path(f"/proc/{other.pid}/environ").read_bytes()
            if other.pid != process.pid and mark in environment.split(b"\0"):
                found.append(other)
    return found


BUSY = """
    import os, sys, time
    from academy.executors.parsl import ParslExecutor

    executor = ParslExecutor.local(1)
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 600)
    sys.stdin.read()
"""


def test_nothing_outlives_a_client_that_is_killed() -> None:
    with client(BUSY) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        left = descendants(process)
        assert len(left) > 3
        process.kill()
        _, alive = psutil.wait_procs(left, timeout=BOUND)
        assert alive == []


def test_nothing_outlives_a_client_that_forgets_to_shut_down() -> None:
    with client(BUSY) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        left = descendants(process)
        _, errors = process.communicate("")
        assert process.returncode == 0, errors
        _, alive = psutil.wait_procs(left, timeout=BOUND)
        assert alive == []


def test_ctrl_c_ends_a_client_and_all_it_has_started() -> None:
    # Ctrl-C reaches the whole process group, so the interchange as well.
    with client(BUSY, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        left = descendants(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
        assert "KeyboardInterrupt" in errors
        _, alive = psutil.wait_procs(left, timeout=BOUND)
        assert alive == []


# --- what is submitted


COMMANDS = {
    "sbatch": 'cp "$1" {folder}/submitted; echo Submitted batch job 17; '
    "echo submitted > {folder}/gate",
    "sacct": "exit 1",
    "squeue": "echo 17 PD",
    "scancel": "echo $* >> {folder}/cancelled",
}


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm whose jobs stay in the queue; what it is told is in its folder."""
    folder = tmp_path / "scheduler"
    folder.mkdir()
    os.mkfifo(folder / "gate")
    for name, text in COMMANDS.items():
        command = folder / name
        command.write_text(f"#!/bin/sh\n{text.format(folder=folder)}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def slurm(tmp_path: Path) -> ParslExecutor:
    engine = HighThroughputExecutor(
        label="cpu",
        address="0.0.0.0",  # Nobody ever connects.
        provider=SlurmProvider(partition="debug", account="proj", walltime="00:30:00"),
    )
    run_dir = str(tmp_path / "run")
    return ParslExecutor(Config([engine], run_dir=run_dir, strategy_period=0.1))


def test_the_script_that_is_submitted_is_the_one_previewed(
    scheduler: Path, tmp_path: Path
) -> None:
    executor = slurm(tmp_path)
    preview = executor.preview()
    future = executor.submit(abs, -1)
    assert (scheduler / "gate").read_text() == "submitted\n"
    submitted = (scheduler / "submitted").read_text()
    assert preview.count(submitted) == 1
    assert "#SBATCH --account=proj\n" in submitted
    assert ".block-1.std" in executor.preview()
    # A job that never starts does not keep anybody who is in a hurry.
    executor.shutdown(cancel_futures=True)
    assert (scheduler / "cancelled").read_text() == "17\n"
    assert future.cancelled()


def test_a_scheduler_that_does_not_cancel_a_job_is_asked_again(
    scheduler: Path, tmp_path: Path
) -> None:
    with open(scheduler / "scancel", "a") as command:
        command.write(f"test $(wc -l < {scheduler}/cancelled) -gt 1\n")
    executor = slurm(tmp_path)
    executor.submit(abs, -1)
    (scheduler / "gate").read_text()
    executor.shutdown(cancel_futures=True)
    assert (scheduler / "cancelled").read_text() == "17\n17\n"


def test_there_are_as_many_local_workers_as_cores_unless_told_otherwise() -> None:
    assert ParslExecutor.local().max_workers == len(os.sched_getaffinity(0))
    assert ParslExecutor(local_config("mine", workers=3)).max_workers == 3
