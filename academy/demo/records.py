"""What the agents of the demonstration tell each other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from academy.demo.physics import Array
from academy.demo.settings import Simulation


@dataclass(frozen=True)
class Configuration:
    """A configuration on its way from one temperature to another."""

    positions: Array
    energy: float
    walker: int
    """The replica this configuration started at; it stays with it."""


@dataclass
class Swap:
    """An attempted swap, as reported by the colder replica of the pair."""

    accepted: bool
    array_bytes: int
    """Bytes of the position arrays sent both ways, without envelopes."""


@dataclass
class RoundRecord:
    """One round of one replica; energies in ε."""

    replica: int
    round_number: int
    walker: int
    acceptance: float
    mean_energy: float
    energy: float
    """Energy of the configuration at the end of the round, before swapping."""
    minimum: float
    """Energy of the local minimum below that configuration."""
    positions: Array | None = None
    """Positions of that minimum if it is the lowest of this replica so far."""
    swap: Swap | None = None
    sampling_s: float = 0.0
    waiting_s: float = 0.0

    @property
    def rank(self) -> tuple[float, int, int]:
        """Sorts by depth of the minimum, then by who was first in the simulation.

        Rounded, since the same minimum is reached with different last digits.
        """
        return (round(self.minimum, 6), self.round_number, self.replica)


@dataclass(frozen=True)
class Progress:
    """How far the replicas are."""

    records: int
    lowest: RoundRecord | None

    @property
    def lowest_so_far(self) -> str:
        """The lowest minimum in words, empty as long as there is none."""
        return f"lowest {self.lowest.minimum:.6f} ε" if self.lowest else ""


@dataclass
class Results:
    """All records, and the one with the lowest minimum."""

    simulation: Simulation
    records: list[RoundRecord] = field(default_factory=list)
    lowest: RoundRecord | None = None
    started: float = 0.0
    seconds: float = 0.0
    """From the first record's arrival to the last one's."""

    def add(self, record: RoundRecord) -> None:
        """Keep a record, and note whether it holds the lowest minimum."""
        now = time.perf_counter()
        if not self.records:
            self.started = now
        self.seconds = now - self.started
        self.records.append(record)
        if self.lowest is None or record.rank < self.lowest.rank:
            self.lowest = record

    def of_replica(self, replica: int) -> list[RoundRecord]:
        """Records of one replica, in the order of its rounds."""
        mine = [record for record in self.records if record.replica == replica]
        return sorted(mine, key=lambda record: record.round_number)
