"""The agents of the demonstration: replicas, and a coordinator that watches.

Replica *i* samples at temperature *i* of the ladder. After every round half of
the neighbouring pairs try to swap: the colder replica of a pair calls the
hotter one, which answers as soon as it has finished the same round. Which pairs
meet, and the random number that decides, follow from (seed, round, pair), so
the result does not depend on who is faster, where, or on how many nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np

from academy.agent import Agent, action, loop
from academy.demo import physics
from academy.demo.records import Configuration, Progress, Results, RoundRecord, Swap
from academy.demo.settings import Simulation
from academy.exception import ActionCancelledError, AgentTerminatedError
from academy.handle import Handle

logger = logging.getLogger(__name__)


def starting_sampler(simulation: Simulation, index: int) -> physics.Sampler:
    """Seed replica ``index`` of the ladder with its own random configuration."""
    rng = np.random.default_rng([simulation.seed, index])
    radius = simulation.radius
    return physics.Sampler(
        positions=physics.random_configuration(simulation.atoms, radius, rng),
        temperature=simulation.temperatures[index],
        radius=radius,
        rng=rng,
    )


def swap_accepted(
    simulation: Simulation,
    round_number: int,
    colder: int,
    energies: tuple[float, float],
) -> bool:
    """Decide the swap of replicas ``colder`` and ``colder + 1`` in a round."""
    temperatures = simulation.temperatures
    probability = physics.swap_probability(
        temperatures[colder], energies[0], temperatures[colder + 1], energies[1]
    )
    draw = np.random.default_rng([simulation.seed, round_number, colder, 1]).random()
    return bool(draw < probability)


class Replica(Agent):
    """One temperature of the ladder, holding one configuration at a time."""

    def __init__(
        self,
        index: int,
        simulation: Simulation,
        coordinator: Handle[Coordinator],
        hotter: Handle[Replica] | None,
    ) -> None:
        self.index = index
        self.simulation = simulation
        self.coordinator = coordinator
        self.hotter = hotter
        self.sampler = starting_sampler(simulation, index)
        self.walker = index
        self.lowest_rank = (float("inf"), 0, 0)
        self._turn = asyncio.Condition()
        self._open_round: int | None = None

    @loop
    async def sample(self, shutdown: asyncio.Event) -> None:
        """Sample, swap and report, round after round."""
        try:
            for round_number in range(self.simulation.rounds):
                if shutdown.is_set():
                    return
                await self._one_round(round_number)
        except (AgentTerminatedError, ActionCancelledError) as error:
            # It says itself why it left; without it there is nothing to do here.
            logger.info("stopping, since a neighbour has left: %s", error)
            self.agent_shutdown()

    @action
    async def swap(
        self, round_number: int, theirs: Configuration
    ) -> Configuration | None:
        """Take the colder neighbour's configuration for ours, or refuse (None).

        Waits until this replica has finished the same round.
        """
        async with self._turn:
            await self._turn.wait_for(lambda: self._open_round == round_number)
            ours = self._configuration()
            accepted = swap_accepted(
                self.simulation,
                round_number,
                self.index - 1,
                (theirs.energy, ours.energy),
            )
            if accepted:
                self._adopt(theirs)
            self._open_round = None
            self._turn.notify_all()
        return ours if accepted else None

    async def _one_round(self, round_number: int) -> None:
        started = time.perf_counter()
        record = await self.agent_run_sync(self._sample_round, round_number)
        sampled = time.perf_counter()
        record.swap = await self._meet_neighbour(round_number)
        record.sampling_s = sampled - started
        record.waiting_s = time.perf_counter() - sampled
        await self.coordinator.record(record)

    def _sample_round(self, round_number: int) -> RoundRecord:
        simulation, sampler = self.simulation, self.sampler
        acceptance, mean_energy = sampler.sweep(simulation.steps_per_round)
        if round_number < simulation.equilibration_rounds:
            sampler.adapt(acceptance)
        minimum, positions = physics.quench(sampler.positions)
        record = RoundRecord(
            replica=self.index,
            round_number=round_number,
            walker=self.walker,
            acceptance=acceptance,
            mean_energy=mean_energy,
            energy=sampler.energy,
            minimum=minimum,
        )
        if record.rank < self.lowest_rank:
            self.lowest_rank = record.rank
            record.positions = positions
        return record

    async def _meet_neighbour(self, round_number: int) -> Swap | None:
        """Do this replica's part in the swaps of a round, if it has one.

        The caller of each pair reports the swap, so that it is counted once.
        """
        if self.index % 2 != round_number % 2:
            if self.index > 0:
                await self._answer_colder(round_number)
            return None
        if self.hotter is None:
            return None
        ours = self._configuration()
        theirs = await self.hotter.swap(round_number, ours)
        if theirs is None:
            return Swap(accepted=False, array_bytes=ours.positions.nbytes)
        self._adopt(theirs)
        return Swap(accepted=True, array_bytes=2 * ours.positions.nbytes)

    async def _answer_colder(self, round_number: int) -> None:
        async with self._turn:
            self._open_round = round_number
            self._turn.notify_all()
            await self._turn.wait_for(lambda: self._open_round is None)

    def _configuration(self) -> Configuration:
        return Configuration(
            self.sampler.positions.copy(), self.sampler.energy, self.walker
        )

    def _adopt(self, configuration: Configuration) -> None:
        self.sampler.replace(configuration.positions)
        self.walker = configuration.walker


class Coordinator(Agent):
    """Collects what the replicas report and tells whoever asks how far they are."""

    def __init__(self, simulation: Simulation) -> None:
        self.results_so_far = Results(simulation)
        self._changed = asyncio.Condition()

    @action
    async def record(self, record: RoundRecord) -> None:
        """Keep one round of one replica."""
        async with self._changed:
            self.results_so_far.add(record)
            self._changed.notify_all()

    @action
    async def progress(self, seen: int) -> Progress:
        """Wait until about one more round than ``seen`` records exist."""
        results = self.results_so_far
        simulation = results.simulation
        wanted = min(seen + simulation.replicas, simulation.total_records)
        async with self._changed:
            await self._changed.wait_for(lambda: len(results.records) >= wanted)
        return Progress(len(results.records), results.lowest)

    @action
    async def results(self) -> Results:
        """Everything recorded so far."""
        return self.results_so_far
