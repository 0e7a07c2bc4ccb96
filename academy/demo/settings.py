"""The input of the demonstration: a TOML file, or these defaults."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from academy.demo import physics


@dataclass(frozen=True)
class Simulation:
    """What is simulated; reduced units (epsilon, sigma, epsilon/k)."""

    atoms: int = 13
    replicas: int = 6
    steps: int = 20_000
    """Monte Carlo sweeps per replica; one sweep tries to move every atom once."""
    seed: int = 2024
    steps_per_round: int = 100
    """Sweeps between two attempts to swap."""
    lowest_temperature: float = 0.15
    highest_temperature: float = 0.40
    equilibration: float = 0.2
    """Fraction of the rounds that tunes step sizes and is left out of averages."""

    def __post_init__(self) -> None:
        for name, least in (
            ("atoms", 2),
            ("replicas", 2),
            ("steps_per_round", 1),
            ("steps", self.steps_per_round),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, not {getattr(self, name)}"
                )
        if not 0 < self.lowest_temperature < self.highest_temperature:
            raise ValueError(
                "temperatures must satisfy 0 < lowest_temperature < "
                f"highest_temperature, not {self.lowest_temperature} and "
                f"{self.highest_temperature}"
            )
        if not 0 <= self.equilibration < 1:
            raise ValueError(
                f"equilibration must be in [0, 1), not {self.equilibration}"
            )

    @property
    def rounds(self) -> int:
        """Rounds of each replica."""
        return self.steps // self.steps_per_round

    @property
    def equilibration_rounds(self) -> int:
        """Rounds that do not count in averages."""
        return int(self.rounds * self.equilibration)

    @property
    def total_records(self) -> int:
        """Rounds of all replicas together."""
        return self.rounds * self.replicas

    def sweeps_after(self, records: int) -> float:
        """Sweeps per replica behind a number of records, on average."""
        return records * self.steps_per_round / self.replicas

    @property
    def temperatures(self) -> list[float]:
        """The ladder, coldest first."""
        return physics.temperature_ladder(
            self.lowest_temperature, self.highest_temperature, self.replicas
        )

    @property
    def radius(self) -> float:
        """Radius of the container."""
        return physics.container_radius(self.atoms)

    @property
    def published_minimum(self) -> float | None:
        """Published lowest energy for this number of atoms, if tabulated here."""
        return physics.PUBLISHED_MINIMA.get(self.atoms)


@dataclass(frozen=True)
class Workers:
    """Where the agents run."""

    parsl_config: Path | None = None
    """A Parsl configuration file; without one, workers on this machine."""
    agents_per_worker: int = 1
    """More than one packs agents into the event loop of one worker process."""

    def __post_init__(self) -> None:
        if self.agents_per_worker < 1:
            raise ValueError(
                f"agents_per_worker must be at least 1, not {self.agents_per_worker}"
            )


@dataclass(frozen=True)
class Exchange:
    """Where messages go through."""

    host: str | None = None
    """Address to start an exchange on, one that the workers can reach. Without
    one: loopback for workers on this machine, else this host's own address."""
    port: int = 0
    """Port to start it on; 0 takes a free one."""
    url: str | None = None
    """A running exchange to use instead of starting one."""


@dataclass(frozen=True)
class Settings:
    """One run of the demonstration."""

    simulation: Simulation = Simulation()
    executor: Workers = Workers()
    exchange: Exchange = Exchange()

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read a TOML file; relative Parsl files are beside it.

        Raises:
            ValueError: A key is unknown or a value does not fit; the message
                names the file, the key and the nearest known ones.
        """
        try:
            tables = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
        try:
            return cls._from_tables(tables, path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_tables(cls, tables: Mapping[str, Any], folder: Path) -> Settings:
        values = _checked(cls, tables, "")
        for name in ("simulation", "executor", "exchange"):
            table = values.get(name, {})
            if not isinstance(table, Mapping):
                raise ValueError(f"{name} must be a table: [{name}]")
            section = type(getattr(cls, name))
            values[name] = section(**_checked(section, table, f"{name}."))
        if values["executor"].parsl_config is not None:
            values["executor"] = replace(
                values["executor"],
                parsl_config=folder / values["executor"].parsl_config,
            )
        return cls(**values)


def _checked(cls: type[Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Refuse keys that ``cls`` has no field for and values of another type."""
    known = {field.name: field.type for field in fields(cls)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"unknown key {where}{key}; {hint or 'known: ' + ', '.join(known)}"
            )
        wanted = known[key].split(" | ")[0]
        if not _fits(value, wanted):
            raise ValueError(f"{where}{key} must be {wanted}, not {value!r}")
    return dict(table)


def _fits(value: object, wanted: str) -> bool:
    types: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "str": (str,),
        "Path": (str,),
    }
    if isinstance(value, bool):
        return False
    return wanted not in types or isinstance(value, types[wanted])
