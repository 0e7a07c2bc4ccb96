"""What only a Slurm with an accounting database knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from academy.executors.batch import BatchExecutor
from academy.scheduler.base import get_scheduler
from academy.scheduler.job import JobState
from tests.support.slurm import AccountingLab, until

pytestmark = pytest.mark.hpc


@pytest.fixture(scope="module")
def lab() -> Iterator[AccountingLab]:
    if (reason := AccountingLab.missing()) is not None:
        pytest.skip(reason)
    # Ended jobs leave slurmctld's memory at once, and are in the database only.
    with AccountingLab(nodes=1, extra="MinJobAge=2") as lab:
        yield lab


@pytest.fixture
def slurm(lab: AccountingLab, monkeypatch: pytest.MonkeyPatch) -> AccountingLab:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.env[name])
    return lab


async def test_a_job_has_the_quality_of_service_that_its_launch_asked_for(
    slurm: AccountingLab,
) -> None:
    asked: dict[str, Any] = {"qos": "high", "account": "physics", "walltime": 5}
    executor = BatchExecutor("slurm", resources=asked)
    later = {"scheduler_options": "#SBATCH --begin=now+1hour"}
    future = executor.submit(os.getpid, **later)
    job = until(lambda: executor.job(future), "the job")
    shown = slurm.job(job.job_id)
    assert (shown["QOS"], shown["Account"]) == ("high", "physics")
    assert future.cancel()
    executor.shutdown()
    assert slurm.jobs() == {}


def test_what_slurm_does_not_have_is_refused_in_its_words(slurm: AccountingLab) -> None:
    executor = BatchExecutor("slurm", resources={"walltime": 5})
    for asked in ({"qos": "highest"}, {"account": "chemistry"}):
        with pytest.raises(ValueError, match=r"(?i)invalid"):
            executor.ask_scheduler(**asked)
    executor.shutdown()


def test_a_job_that_slurm_has_forgotten_is_found_in_the_database(
    slurm: AccountingLab,
) -> None:
    job = slurm.run(
        *("sbatch", "--parsable", "-A", "physics", "-o", "/dev/null"), "--wrap=exit 3"
    ).strip()
    squeue = ("squeue", "-h", "--states=all", "-o", "%i")
    until(lambda: job not in slurm.run(*squeue).split(), "Slurm to forget", timeout=60)
    found = get_scheduler("slurm").job(job)
    assert (found.state, found.exit_code) == (JobState.FAILED, 3)
    assert found.started is not None
