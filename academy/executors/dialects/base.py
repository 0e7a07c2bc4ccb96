"""How a scheduler is asked for the fields of a ResourceSpec, through its provider.

A field becomes an attribute of the provider, which Parsl writes into the script, or a
directive of our own. There is a module for each scheduler.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from academy.executors.resources import ResourceSpec

# What every job may have, for it needs no place: nothing.
_NOTHING: Mapping[str, object] = {"nodes": 1, "gpus_per_node": 0, "exclusive": False}


# What says more than one thing, in some scheduler's syntax.
_SEVERAL = re.compile(r"\s-.*\s-|\s-l\s.*,|\[.*[\[:]|=gpu.*,")


@dataclass(frozen=True)
class Table:
    """Where a scheduler and its provider have their places.

    Attributes:
        title: what people call the scheduler.
        provider: the name of Parsl's provider.
        directive: what a line for the scheduler begins with.
        attributes: the provider's attribute for a field, to be set as it is.
        lines: the directive for a field.
        absent: why there is no place for a field, and what to do.
        says: what in a user's own directives says a field, as a regular expression.
        scripted: fields that Parsl's template always says, so that no line may.
    """

    title: str
    provider: str
    directive: str
    attributes: Mapping[str, str]
    lines: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    scripted: Collection[str] = ("nodes", "walltime")


class Dialect:
    """A copy of a provider, on its way to asking for what a launch says.

    Attributes:
        table: the scheduler's; what is more than that, a subclass does.
        fresh: the copy.
        own: the lines which the user gave to the provider.
        raw: the lines which the launch brings.
    """

    table: ClassVar[Table]

    def __init__(self, provider: Any, spec: ResourceSpec, taker: str) -> None:
        self.fresh = copy.copy(provider)
        self.fresh.resources = {}
        self.spec = spec
        self.asked = spec.given()
        self.taker = taker
        self.own = self.own_lines()
        self.raw = self.raw_lines()

    def apply(self) -> Any:
        """Return the provider with everything that is asked for.

        Raises:
            ValueError: There is no place for something; says what there is.
        """
        for name, value in self.asked.items():
            if name in self.table.absent and _NOTHING.get(name) != value:
                raise self.no_place(name, self.table.absent[name])
        in_raw = self.fields_in_raw()
        self.drop_own(in_raw.union(self.asked))
        for name in in_raw:
            self.forget(name)
        for name, attribute in self.table.attributes.items():
            if name in self.asked:
                setattr(self.fresh, attribute, self.asked[name])
        added = [f"{self.table.directive} {line}" for line in self.directives()]
        self.write_lines([*added, *self.raw])
        if self.spec.worker_init is not None:
            before = str(self.fresh.worker_init).rstrip()
            self.fresh.worker_init = f"{before}\n{self.spec.worker_init}\n".lstrip("\n")
        if self.spec.launcher_options is not None:
            self.set_launcher(self.spec.launcher_options)
        return self.fresh

    # --- what a subclass may say otherwise

    def directives(self) -> list[str]:
        """Set what is no plain attribute, and return the directives to add."""
        return [
            line.format(self.asked[name])
            for name, line in self.table.lines.items()
            if name in self.asked and _NOTHING.get(name) != self.asked[name]
        ]

    def own_lines(self) -> list[str]:
        """Return the scheduler options that the user gave to the provider."""
        return str(self.fresh.scheduler_options).splitlines()

    def write_lines(self, added: list[str]) -> None:
        """Give the provider its own lines and these."""
        if self.own or added:
            self.fresh.scheduler_options = "\n".join([*self.own, *added])

    def forget(self, name: str) -> None:
        """Let a line that the launch brings say what the provider would."""
        if name in self.table.attributes:
            setattr(self.fresh, self.table.attributes[name], None)

    # --- tools

    @property
    def cores_per_node(self) -> int | None:
        """How many cores of a node are asked for; None if that is left open."""
        ranks, cpus = self.spec.ranks_per_node, self.spec.cpus_per_rank
        return None if cpus is None else cpus * (ranks or 1)

    def no_place(self, name: str, why: str) -> ValueError:
        return ValueError(
            f"{name}={self.asked[name]!r} has no place in {self.table.provider}: "
            f"{why} ({self.taker})."
        )

    def raw_lines(self) -> list[str]:
        """Return the lines of the launch, each of which is a directive.

        Raises:
            ValueError: One of them is none.
        """
        table = self.table
        lines = (self.spec.scheduler_options or "").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        for line in lines:
            if line.split(maxsplit=1)[0] != table.directive:
                raise ValueError(
                    f"scheduler_options has the line {line!r}: for {table.title}, each "
                    f"begins with {table.directive!r} ({self.taker})."
                )
        return lines

    def fields_in_raw(self) -> set[str]:
        """Find what the lines of the launch say.

        Raises:
            ValueError: They say what a field says as well, or what only a field can.
        """
        found = set()
        for name, line in self.saying(self.raw):
            if name in self.asked or name in self.table.scripted:
                raise ValueError(
                    f"scheduler_options has the line {line!r}, which {name}= is for: "
                    f"give one of them ({self.taker})."
                )
            found.add(name)
        return found

    def drop_own(self, fields: Collection[str]) -> None:
        """Drop the provider's own lines about what the launch says.

        Raises:
            ValueError: Such a line says other things, too.
        """
        for name, line in list(self.saying(self.own)):
            if name not in fields or line not in self.own:
                continue
            if _SEVERAL.search(line):
                raise ValueError(
                    f"{name} is also in the line {line!r} of the provider's "
                    f"scheduler_options, with other things: split it ({self.taker})."
                )
            self.own.remove(line)

    def saying(self, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
        for line in lines:
            for name, pattern in self.table.says.items():
                if re.search(rf"\s(?:{pattern})", line):
                    yield name, line

    def set_launcher(self, options: str) -> None:
        launcher = self.fresh.launcher
        if not hasattr(launcher, "overrides"):
            raise ValueError(
                f"launcher_options={options!r} has no place in "
                f"{type(launcher).__name__}, which runs no launch command: give the "
                f"provider a SrunLauncher, MpiExecLauncher or the like ({self.taker})."
            )
        launcher = copy.copy(launcher)
        launcher.overrides = f"{launcher.overrides} {options}".strip()
        self.fresh.launcher = launcher
