"""The demonstration as a user runs it, and the agents in it by themselves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from academy.demo import physics
from academy.demo.agents import Replica, starting_sampler, swap_accepted
from academy.demo.campaign import campaign
from academy.demo.records import Progress, Results
from academy.demo.settings import Settings, Simulation
from academy.exchange import LocalExchangeFactory
from academy.manager import Manager

SMALL = Simulation(atoms=7, replicas=4, steps=400, steps_per_round=20, seed=5)

INPUT = """
[simulation]
atoms = 7
replicas = 3
steps = 400
steps_per_round = 20
"""


def energies(results: Results) -> list[list[float]]:
    """The energies of every replica, round by round."""
    return [
        [record.energy for record in results.of_replica(replica)]
        for replica in range(results.simulation.replicas)
    ]


def serial_energies(simulation: Simulation) -> list[list[float]]:
    """What replica exchange gives without any agents."""
    samplers = [starting_sampler(simulation, i) for i in range(simulation.replicas)]
    found: list[list[float]] = [[] for _ in samplers]
    for round_number in range(simulation.rounds):
        for sampler, seen in zip(samplers, found, strict=True):
            acceptance, _ = sampler.sweep(simulation.steps_per_round)
            if round_number < simulation.equilibration_rounds:
                sampler.adapt(acceptance)
            seen.append(sampler.energy)
        for index in range(round_number % 2, simulation.replicas - 1, 2):
            cold, hot = samplers[index : index + 2]
            pair = (cold.energy, hot.energy)
            if swap_accepted(simulation, round_number, index, pair):
                colder, hotter = cold.positions.copy(), hot.positions.copy()
                cold.replace(hotter)
                hot.replace(colder)
    return found


async def run_in_this_loop(simulation: Simulation) -> Results:
    settings = Settings(simulation=simulation)
    shown: list[Progress] = []
    async with await Manager.from_exchange_factory(LocalExchangeFactory()) as manager:
        results = await campaign(manager, settings, shown.append)
    assert shown[-1].records == simulation.total_records
    return results


async def test_agents_give_the_energies_of_a_serial_run_however_they_are_timed() -> (
    None
):
    results = await run_in_this_loop(SMALL)
    assert energies(results) == serial_energies(SMALL)


async def test_every_walker_stays_in_the_ladder_once() -> None:
    results = await run_in_this_loop(SMALL)
    for round_number in range(SMALL.rounds):
        walkers = [r.walker for r in results.records if r.round_number == round_number]
        assert sorted(walkers) == list(range(SMALL.replicas))
    travelled = {record.walker for record in results.of_replica(0)}
    assert len(travelled) > 1


async def test_an_agent_that_ends_early_ends_the_campaign() -> None:
    settings = Settings(simulation=replace(SMALL, steps=1_000_000))
    ending: list[asyncio.Task[None]] = []

    async with await Manager.from_exchange_factory(LocalExchangeFactory()) as manager:

        async def end_one() -> None:
            replica, *_ = await manager.exchange_client.discover(Replica)
            await manager.shutdown(replica)

        def show(progress: Progress) -> None:
            if not ending:
                ending.append(asyncio.create_task(end_one()))

        with pytest.raises(RuntimeError, match="before all rounds were done"):
            await campaign(manager, settings, show)
        await ending[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demonstration is run; the Academy home is elsewhere."""
    folder = tmp_path / "campaign"
    folder.mkdir()
    return folder


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).with_name("academy"), "demo", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )


@pytest.mark.slow
def test_the_demonstration_finds_the_published_minimum_on_parsl_workers(
    folder: Path,
) -> None:
    (folder / "input.toml").write_text(INPUT)
    process = demo(folder, "input.toml", "--output", "found")
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "PASS" in printed
    assert "-16.505384 ε in the Cambridge Cluster Database" in printed
    summary = json.loads((folder / "found" / "summary.json").read_text())
    assert summary["reached"] is True
    assert summary["minimum"] == pytest.approx(-16.505384, abs=1e-3)
    assert summary["reports"] == 3 * 20
    assert summary["swap_calls"] == 20
    assert (folder / "found" / "energies.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "found" / "minimum.xyz").read_text().splitlines()
    positions = np.array([line.split()[1:] for line in lines[2:]], dtype=float)
    assert physics.energy(positions) == pytest.approx(summary["minimum"], abs=1e-5)
    assert {path.name for path in folder.iterdir()} == {"input.toml", "found"}


@pytest.mark.slow
def test_the_demonstration_fails_when_the_minimum_was_not_reached(
    folder: Path,
) -> None:
    (folder / "input.toml").write_text(
        "[simulation]\natoms = 38\nreplicas = 2\nsteps = 2\nsteps_per_round = 2"
    )
    process = demo(folder, "input.toml")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert "FAIL" in printed
    assert "the published minimum was missed by" in printed


def test_an_interrupted_demonstration_leaves_nothing_behind(folder: Path) -> None:
    (folder / "input.toml").write_text(
        "[simulation]\nreplicas = 2\nsteps = 10_000_000\nsteps_per_round = 20"
    )
    process = demo(folder, "input.toml")
    assert process.stdout is not None
    for line in process.stdout:
        if "sweeps" in line:
            break
    # As a terminal does it: everybody in the foreground hears of it.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [path.name for path in folder.iterdir()] == ["input.toml"]
