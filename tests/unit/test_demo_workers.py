"""The workers of the demonstration: one for each agent, wherever they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from academy.demo.settings import Settings, Simulation, Workers
from academy.demo.workers import make_executor
from academy.executors.base import max_workers
from academy.executors.parsl import ParslExecutor

# Parsl leaves sockets open when it looks for this machine's addresses.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

SLURM = Path(__file__).parents[2] / "examples" / "hpc" / "slurm.py"

ON_SLURM = Settings(executor=Workers(parsl_config=SLURM))


def test_the_slurm_example_has_a_worker_for_each_agent_of_the_example_input() -> None:
    with make_executor(ON_SLURM) as executor:
        assert max_workers(executor) == ON_SLURM.simulation.replicas + 1


def test_fewer_workers_than_agents_are_refused_before_anything_is_submitted() -> None:
    settings = replace(ON_SLURM, simulation=Simulation(replicas=7))
    with pytest.raises(ValueError, match=r"8 agents .*slurm\.py has 7 workers"):
        make_executor(settings)


def test_fewer_workers_suffice_when_agents_share_them() -> None:
    shared = replace(ON_SLURM.executor, agents_per_worker=2)
    settings = Settings(simulation=Simulation(replicas=13), executor=shared)
    make_executor(settings).shutdown()


def test_this_machine_gets_a_worker_for_each_agent() -> None:
    with make_executor(Settings(simulation=Simulation(replicas=3))) as executor:
        assert isinstance(executor, ParslExecutor)
        assert max_workers(executor) == 4
