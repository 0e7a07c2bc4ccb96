"""Slurm clusters for tests: shared ones, left clean, and ones to be broken."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import STRICT, STRICT_PARTITIONS, NetnsLab, SlurmLab


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[SlurmLab]:
    _skip_without(SlurmLab)
    with SlurmLab(nodes=4, gpus=2) as lab:
        yield lab


@pytest.fixture(scope="session")
def strict_slurm_lab() -> Iterator[SlurmLab]:
    _skip_without(SlurmLab)
    with SlurmLab(nodes=3, extra=STRICT, partitions=STRICT_PARTITIONS) as lab:
        yield lab


@pytest.fixture(scope="session")
def hosts_lab(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[NetnsLab]:
    with _new_hosts(tmp_path_factory, pytestconfig) as lab:
        yield lab


@pytest.fixture
def slurm(slurm_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLab]:
    """The cluster that commands and providers of this test find; nothing is in it."""
    _enter(slurm_lab, monkeypatch)
    # Parsl's worker pools, when their job is cancelled, leave a directory in here.
    monkeypatch.setenv("TMPDIR", str(slurm_lab.directory / "tmp"))
    yield slurm_lab
    _check_no_job_is_left(slurm_lab)


@pytest.fixture
def strict_slurm(
    strict_slurm_lab: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmLab]:
    """A cluster that refuses, preempts, kills for memory, and misses nodes soon."""
    _enter(strict_slurm_lab, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(strict_slurm_lab.directory / "tmp"))
    yield strict_slurm_lab
    _check_no_job_is_left(strict_slurm_lab)


@pytest.fixture
def hosts(hosts_lab: NetnsLab, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetnsLab]:
    """The same, with nodes that are hosts of their own."""
    _enter(hosts_lab, monkeypatch)
    yield hosts_lab
    _check_no_job_is_left(hosts_lab)


@pytest.fixture
def breakable_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLab]:
    """A cluster of this test alone, which may power its nodes off."""
    _skip_without(SlurmLab)
    with SlurmLab(nodes=2) as lab:
        _enter(lab, monkeypatch)
        yield lab


@pytest.fixture
def breakable_strict_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmLab]:
    """The same, which misses a node without power within ten seconds."""
    _skip_without(SlurmLab)
    with SlurmLab(nodes=2, extra=STRICT, partitions=STRICT_PARTITIONS) as lab:
        _enter(lab, monkeypatch)
        yield lab


@pytest.fixture
def breakable_hosts(
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[NetnsLab]:
    """The same, with nodes that are hosts of their own."""
    with _new_hosts(tmp_path_factory, pytestconfig) as lab:
        _enter(lab, monkeypatch)
        yield lab


def _new_hosts(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> NetnsLab:
    _skip_without(NetnsLab)
    # What a cluster has on its shared file system: homes, and this package.
    shared = (tmp_path_factory.getbasetemp(), pytestconfig.rootpath, Path(sys.prefix))
    return NetnsLab(nodes=3, gpus=2, shared=shared)


def _skip_without(lab: type[SlurmLab]) -> None:
    if (reason := lab.missing()) is not None:
        pytest.skip(reason)


def _enter(lab: SlurmLab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, lab.env[name])


def _check_no_job_is_left(lab: SlurmLab) -> None:
    left = {job: state for job, state in lab.jobs().items() if state != "COMPLETING"}
    lab.cancel_all()
    assert left == {}, "jobs were left in the queue"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show what Slurm logged last beside a failure."""
    report = yield
    if report.failed:
        for lab in getattr(item, "funcargs", {}).values():
            if isinstance(lab, SlurmLab):
                report.sections += [
                    (f"{log} of {lab.directory}", words)
                    for log, words in lab.last_words().items()
                ]
    return report
