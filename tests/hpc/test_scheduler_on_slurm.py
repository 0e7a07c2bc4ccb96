"""What is known of jobs, each state of which a real Slurm has produced."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from academy import failure
from academy.scheduler.base import get_scheduler
from academy.scheduler.cause import cause_of
from academy.scheduler.job import JobInfo, JobState
from academy.scheduler.monitor import JobMonitor
from tests.support.slurm import SlurmLab, until

pytestmark = pytest.mark.hpc

Scheduler = get_scheduler("slurm")


def submit(lab: SlurmLab, script: str, *options: str) -> str:
    """Submit a script, and return the number of the job."""
    if not any(option.startswith("-o") for option in options):
        options = ("-o/dev/null", *options)
    return lab.run("sbatch", "--parsable", *options, f"--wrap={script}").strip()


def shown(job: str, is_so: Callable[[JobInfo], bool], timeout: float = 30) -> JobInfo:
    """Return what Slurm says of a job when it is so."""

    def look() -> JobInfo | None:
        info = Scheduler.job(job)
        return info if is_so(info) else None

    info = until(look, f"job {job} to be so", timeout)
    assert info is not None
    return info


def over(job: str, timeout: float = 30) -> JobInfo:
    return shown(job, lambda info: info.state.is_over, timeout)


def running(job: str) -> JobInfo:
    return shown(job, lambda info: info.state is JobState.RUNNING)


# --- states


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-N9",), "PartitionNodeLimit"),
        (("-t100",), "PartitionTimeLimit"),
        (("--dependency=afterok:{failed}",), "DependencyNeverSatisfied"),
    ],
)
def test_a_job_that_will_never_run_is_told_from_its_reason(
    slurm: SlurmLab, options: tuple[str, ...], reason: str
) -> None:
    failed = submit(slurm, "false")
    over(failed)
    options = tuple(option.format(failed=failed) for option in options)
    job = submit(slurm, "true", *options)
    info = shown(job, lambda info: info.reason == reason)
    assert info.state is JobState.PENDING
    assert info.started is None
    cause = cause_of(info, started=False)
    assert type(cause) is failure.NeverStartedError
    assert (cause.job_id, cause.reason) == (job, reason)
    Scheduler.cancel([job])


@pytest.mark.parametrize("option", ["--hold", "--begin=now+1hour"])
def test_a_job_that_waits_for_somebody_may_yet_run(
    slurm: SlurmLab, option: str
) -> None:
    job = submit(slurm, "true", option)
    info = shown(job, lambda info: info.reason != "")
    assert info.state is JobState.PENDING
    assert cause_of(info, started=False) is None
    Scheduler.cancel([job])


def test_a_job_that_runs_shows_where_since_when_and_until_when(
    slurm: SlurmLab, tmp_path: Path
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    path = f"-o{tmp_path}/%x-%j-%u-%4j.out"
    job = submit(slurm, "sleep 100", "-N2", "-t10", path, "-Jcensus of bees")
    info = running(job)
    assert (info.scheduler, info.job_id) == ("slurm", job)
    assert len(info.nodes) == 2
    assert info.submitted is not None
    assert info.started is not None
    assert before < info.submitted <= info.started < datetime.now(UTC)
    assert info.ends == info.started + timedelta(minutes=10)
    name = f"census of bees-{job}-{os.environ.get('USER', 'root')}-{job:0>4}.out"
    assert info.stdout == info.stderr == str(tmp_path / name)
    until(Path(info.stdout).exists, "its output to be where it shows")
    assert info.exit_code is None
    assert cause_of(info, started=True) is None
    Scheduler.cancel([job])
    info = over(job)
    assert info.state is JobState.CANCELLED
    assert type(cause_of(info, started=True)) is failure.JobCancelledError
    Scheduler.cancel([job])  # It is over, which is no error.


@pytest.mark.parametrize(
    ("script", "state", "code"),
    [
        ("true", JobState.COMPLETED, 0),
        ("exit 3", JobState.FAILED, 3),
        ("kill -SEGV $$", JobState.FAILED, 128 + 11),
    ],
)
def test_the_exit_code_of_a_job_is_that_of_its_script(
    slurm: SlurmLab, script: str, state: JobState, code: int
) -> None:
    info = over(submit(slurm, script))
    assert (info.state, info.exit_code) == (state, code)


@pytest.mark.slow
def test_a_job_that_reached_its_walltime_has_timed_out(
    slurm: SlurmLab, tmp_path: Path
) -> None:
    job = submit(slurm, "echo last words; sleep 100", f"-o{tmp_path}/output")
    running(job)
    slurm.expire(job)
    info = over(job, timeout=60)
    assert info.state is JobState.TIMEOUT
    cause = cause_of(info, host="n7", started=True)
    assert type(cause) is failure.WalltimeReachedError
    assert cause.host == "n7"
    # The words of Slurm itself may follow, now or a moment later.
    assert cause.output.splitlines()[0] == "last words"


def test_a_job_that_had_to_make_room_was_preempted(strict_slurm: SlurmLab) -> None:
    low = submit(strict_slurm, "sleep 100", "-plow", "-N3", "--exclusive")
    running(low)
    high = submit(strict_slurm, "true", "-phigh", "-N3", "--exclusive")
    info = over(low)
    assert info.state is JobState.PREEMPTED
    assert type(cause_of(info, started=True)) is failure.PreemptedError
    over(high)


def test_a_job_that_took_too_much_memory_ran_out_of_it(
    strict_slurm: SlurmLab, tmp_path: Path
) -> None:
    program = "import time; x = b'x' * 300_000_000; time.sleep(60)"
    job = submit(
        strict_slurm,
        f'{sys.executable} -c "{program}"',
        *("--mem=60", f"-o{tmp_path}/output"),
    )
    info = over(job)
    # Without cgroups Slurm says so in the output only.
    cause = cause_of(info, started=True)
    assert type(cause) is failure.OutOfMemoryError
    assert "xceeded" in cause.reason
    assert cause.host in {"n1", "n2", "n3"}


def test_a_process_that_ran_out_of_memory_is_seen_while_its_job_goes_on(
    strict_slurm: SlurmLab, tmp_path: Path
) -> None:
    program = "import time; x = b'x' * 300_000_000; time.sleep(60)"
    job = submit(
        strict_slurm,
        f'srun {sys.executable} -c "{program}"; sleep 100',
        *("--mem=60", f"-o{tmp_path}/output"),
    )
    running(job)
    error = ConnectionError("the worker is gone")
    cause = until(
        lambda: cause_of(Scheduler.job(job), started=True, error=error), "the cause"
    )
    assert type(cause) is failure.OutOfMemoryError
    Scheduler.cancel([job])
    over(job)


def test_a_node_without_power_has_failed_its_job_within_seconds(
    breakable_strict_slurm: SlurmLab,
) -> None:
    lab = breakable_strict_slurm
    job = submit(lab, "sleep 100", "--no-requeue", "-wn2")
    running(job)
    lab.power_off(2)
    info = over(job)
    assert info.state is JobState.NODE_FAIL
    cause = cause_of(info, started=True)
    assert type(cause) is failure.NodeFailedError
    assert cause.host == "n2"


def test_a_job_that_slurm_queues_again_is_not_over(strict_slurm: SlurmLab) -> None:
    lab = strict_slurm
    job = submit(lab, "sleep 100", "--requeue", "-wn3")
    running(job)
    lab.mark_down(3)
    info = shown(job, lambda info: info.state is not JobState.RUNNING)
    assert info.state is JobState.PENDING
    Scheduler.cancel([job])
    over(job)
    lab.wait_until_idle()


# --- jobs that end before their agent begins


@pytest.mark.parametrize(
    ("script", "error", "reason"),
    [
        ("exit 9", failure.StartupError, "it ended with status 9"),
        ("module load gcc || exit", failure.StartupError, "module: not found"),
        (
            "/no/such/python -m academy.run",
            failure.StartupError,
            "/no/such/python: not",
        ),
        ("nosuch --spec x", failure.StartupError, "a command was not found"),
        (f"{sys.executable} -c 'import nosuch.part'", failure.MissingModuleError, ""),
        (f"{sys.executable} -m nosuch", failure.MissingModuleError, "'nosuch'"),
        ("sleep 0.1", failure.StartupError, "it ended with status 0"),
    ],
)
def test_a_job_that_ended_before_its_agent_began_says_why(
    slurm: SlurmLab,
    tmp_path: Path,
    script: str,
    error: type[failure.AgentLostError],
    reason: str,
) -> None:
    job = submit(slurm, script, f"-o{tmp_path}/output", f"-e{tmp_path}/errors")
    cause = cause_of(over(job), started=False)
    assert type(cause) is error
    assert reason in cause.reason
    assert cause.job_id == job
    if error is failure.MissingModuleError:
        assert "nosuch" in cause.output


def test_an_output_that_cannot_be_opened_is_named(slurm: SlurmLab) -> None:
    job = submit(slurm, "true", "-o/nosuch/directory/output")
    cause = cause_of(over(job), started=False)
    assert type(cause) is failure.StartupError
    assert "/nosuch/directory/output could not be opened" in cause.reason


# --- many, and which


def counted(directory: Path, command: str) -> Path:
    """Put a command on the way to the real one that notes each call."""
    real = shutil.which(command)
    log = directory / f"{command}.log"
    fake = directory / command
    fake.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {real} "$@"\n')
    fake.chmod(0o755)
    log.touch()
    return log


def test_a_hundred_jobs_are_one_question(
    slurm: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = submit(slurm, "sleep 100", "--array=1-95%2")
    more = [submit(slurm, "true") for _ in range(5)]
    for job in more:
        over(job)
    log = counted(tmp_path, "squeue")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    wanted = [f"{array}_{task}" for task in range(1, 96)] + more
    found = Scheduler.jobs(wanted)
    assert list(found) == wanted
    assert JobState.UNKNOWN not in {info.state for info in found.values()}
    assert {found[job].state for job in more} == {JobState.COMPLETED}
    assert log.read_text().count("\n") == 1
    Scheduler.cancel([array])


def test_an_unknown_job_is_unknown_alone_and_among_others(slurm: SlurmLab) -> None:
    job = submit(slurm, "true")
    over(job)
    assert Scheduler.job("999999").state is JobState.UNKNOWN
    found = Scheduler.jobs(["999999", job])
    assert found["999999"].state is JobState.UNKNOWN
    assert found[job].state is JobState.COMPLETED


def test_a_job_that_left_the_queue_is_found_in_the_accounts(
    slurm: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(slurm, "exit 4")
    over(job)
    forgetful = tmp_path / "squeue"
    forgetful.write_text("#!/bin/sh\n")
    forgetful.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    info = Scheduler.job(job)
    assert (info.state, info.exit_code) == (JobState.FAILED, 4)


def test_settings_of_the_user_for_tables_do_not_matter(
    slurm: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(slurm, "sleep 100")
    for name, value in {
        "SQUEUE_FORMAT": "%i",
        "SQUEUE_PARTITION": "gpu",
        "SQUEUE_USERS": "nobody",
        "SLURM_TIME_FORMAT": "relative",
        "SINFO_FORMAT": "%N",
        "LC_ALL": "de_DE.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    assert running(job).started is not None
    limits = Scheduler.limits("gpu")
    assert limits is not None
    assert limits.walltime == 1800
    Scheduler.cancel([job])


TELLS_ITS_PLACE = (
    "import json; from academy.scheduler.here import place; p = place();"
    "print(json.dumps([p.host, p.scheduler, p.job_id]))"
)


@pytest.mark.parametrize("options", [(), ("--array=2-3",)])
def test_a_process_in_a_job_knows_by_which_id_to_ask_about_it(
    slurm: SlurmLab, tmp_path: Path, options: tuple[str, ...]
) -> None:
    script = f"srun {sys.executable} -c '{TELLS_ITS_PLACE}'"
    job = submit(slurm, script, f"-o{tmp_path}/%a", *options)
    ids = [f"{job}_{task}" for task in (2, 3)] if options else [job]
    for name in ids:
        info = over(name)
        assert info.state is JobState.COMPLETED
        assert info.stdout is not None
        host, scheduler, job_id = json.loads(Path(info.stdout).read_text())
        assert (scheduler, job_id) == ("slurm", name)
        assert host == os.uname().nodename


# --- limits


def test_limits_are_those_of_the_partition(slurm: SlurmLab) -> None:
    gpu, default = Scheduler.limits("gpu"), Scheduler.limits()
    assert gpu is not None
    assert default is not None
    assert (gpu.nodes, gpu.walltime, gpu.gpus_per_node) == (1, 1800, 2)
    assert (default.queue, default.nodes, default.walltime) == ("debug", 4, 3600)
    assert (default.cpus_per_node, default.memory_gb_per_node) == (8, 8000 / 1024)
    longest = Scheduler.limits("long")
    assert longest is not None
    assert longest.walltime is None
    with pytest.raises(ValueError, match=r"'debgu'\. Did you mean 'debug'"):
        Scheduler.limits("debgu")


def test_slurm_estimates_when_a_job_would_start_and_submits_nothing(
    slurm: SlurmLab,
) -> None:
    start = Scheduler.estimate("#!/bin/sh\n#SBATCH -N2\ntrue\n")
    assert start is not None
    assert start < datetime.now(UTC) + timedelta(minutes=5)
    assert slurm.jobs() == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--partition=nosuch", "nosuch"),
        ("--nodes=4", "[Nn]ode count|not available"),
        ("--time=100", "time limit"),
        ("--constraint=nosuch", "feature"),
    ],
)
def test_slurm_refuses_in_its_own_words(
    strict_slurm: SlurmLab, line: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Scheduler.estimate(f"#!/bin/sh\n#SBATCH {line}\ntrue\n")


# --- the monitor


def test_a_watched_job_tells_its_states_until_it_is_over(slurm: SlurmLab) -> None:
    monitor = JobMonitor(first=0.2)
    seen: dict[str, list[JobState]] = {}
    done = threading.Semaphore(0)

    def call(info: JobInfo) -> None:
        states = seen.setdefault(info.job_id, [])
        if info.state not in states:
            states.append(info.state)
        if info.state.is_over:
            done.release()

    held = submit(slurm, "sleep 1; exit 2", "--hold")
    quick = submit(slurm, "sleep 0.5")
    for job in (held, quick):
        monitor.watch("slurm", job, call)
    until(lambda: held in seen, "the first call")
    slurm.run("scontrol", "release", held)
    monitor.look_now("slurm", held)
    for _ in seen:
        assert done.acquire(timeout=60)
    assert seen[held] == [JobState.PENDING, JobState.RUNNING, JobState.FAILED]
    assert seen[quick][-1] is JobState.COMPLETED
    monitor.close()


def test_a_thousand_agents_in_a_job_are_one_question(
    slurm: SlurmLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(slurm, "sleep 100")
    running(job)
    log = counted(tmp_path, "squeue")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monitor = JobMonitor()
    threads = [
        threading.Thread(target=monitor.info, args=("slurm", job)) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(950):
        assert monitor.info("slurm", job).state is JobState.RUNNING
    assert log.read_text().count("\n") == 1
    Scheduler.cancel([job])
