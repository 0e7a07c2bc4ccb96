"""What became of every call: files that outlive kill -9, and the verdict on them.

Callers write a line before a call is posted and one when it has ended; agents write a
line when a call runs. Each line is one write at the end of a file, which the kernel
keeps whatever happens to the process.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OK, INTERRUPTED = "ok", "interrupted"
SHOWN = 10
"""Faults of one kind that are shown."""


class Call(NamedTuple):
    """The `number`th call that a sender makes at an agent."""

    sender: int
    agent: int
    number: int


class Run(NamedTuple):
    """A call that an incarnation of an agent has begun."""

    incarnation: str
    sender: int
    number: int


def is_idempotent(number: int) -> bool:
    return number % 3 == 0


def is_stream(number: int) -> bool:
    return number % 20 in (6, 13)


def name_of(number: int) -> str:
    """Return which action a call asks for."""
    name = "again" if is_idempotent(number) else "once"
    return f"stream_{name}" if is_stream(number) else name


def reply(sender: int, number: int, blob: bytes) -> tuple[int, int, int, bytes]:
    """Return what an agent makes of a call, so that a wrong answer is known as such."""
    # Some answers are as large as their calls.
    echo = blob if number % 2 and not is_stream(number) else b""
    return sender, number, zlib.crc32(blob), echo


class Pen:
    """Writes lines at the end of a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: object) -> None:
        os.write(self._file, " ".join(map(str, words)).encode() + b"\n")


@dataclass
class Ledger:
    """What was written about one storm.

    Attributes:
        posted: the calls of each sender, in order.
        outcomes: how each call has ended, as often as it did.
        runs: what each agent has run, in order.
        killed_senders: those of whom nobody can say what they would have got.
        kills: how often each agent was killed.
        wanted: how many calls were to be made by senders that were not killed.
    """

    posted: dict[int, list[Call]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[Call, list[str]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))
    killed_senders: set[int] = field(default_factory=set)
    kills: Counter[int] = field(default_factory=Counter)
    wanted: dict[int, int] = field(default_factory=dict)

    def read_caller(self, sender: int, path: Path) -> None:
        """Read what a caller has written."""
        for what, agent, number, *rest in _lines(path):
            call = Call(sender, int(agent), int(number))
            if what == "posted":
                self.posted[sender].append(call)
            else:
                self.outcomes[call].append(" ".join(rest))

    def read_agent(self, agent: int, path: Path) -> None:
        """Read what an agent has written."""
        for incarnation, sender, number in _lines(path):
            self.runs[agent].append(Run(incarnation, int(sender), int(number)))

    def faults(self) -> list[str]:
        """Return what may not be, in words; nothing if all is well."""
        found = [*self._lost(), *self._wrong(), *self._doubled(), *self._reordered()]
        if len(found) > SHOWN:
            found[SHOWN:] = [f"and {len(found) - SHOWN} more"]
        return found

    def interrupted(self) -> int:
        """Return how many calls were interrupted."""
        return sum(outcomes == [INTERRUPTED] for outcomes in self.outcomes.values())

    def _lost(self) -> Iterator[str]:
        for sender, wanted in self.wanted.items():
            if (posted := len(self.posted[sender])) != wanted:
                yield f"sender {sender} has posted {posted} calls of {wanted}"
        for sender, calls in self.posted.items():
            if sender not in self.killed_senders:
                for call in calls:
                    if not self.outcomes.get(call):
                        yield f"{call} is lost: it has no outcome"
        yield from self._gaps()

    def _gaps(self) -> Iterator[str]:
        """A call that ran was posted, and so were those before it, which ran too."""
        for agent, runs in self.runs.items():
            ran = {(run.sender, run.number) for run in runs}
            last: dict[int, int] = {}
            for sender, number in ran:
                last[sender] = max(number, last.get(sender, 0))
            for sender, highest in last.items():
                for number in range(highest):
                    call = Call(sender, agent, number)
                    interrupted = INTERRUPTED in self.outcomes.get(call, ())
                    unknown = sender in self.killed_senders and self.kills[agent]
                    if (sender, number) not in ran and not interrupted and not unknown:
                        yield f"{call} is lost: later ones ran, it did not"

    def _wrong(self) -> Iterator[str]:
        posted = {call for calls in self.posted.values() for call in calls}
        ran = {
            Call(run.sender, agent, run.number)
            for agent, runs in self.runs.items()
            for run in runs
        }
        for call in ran - posted:
            yield f"{call} ran and nobody has posted it"
        for call, outcomes in self.outcomes.items():
            if len(outcomes) > 1:
                yield f"{call} has ended more than once: {outcomes}"
            for outcome in outcomes:
                if outcome == INTERRUPTED and not self.kills[call.agent]:
                    yield f"{call} was interrupted, and its agent never was killed"
                elif outcome == INTERRUPTED and is_idempotent(call.number):
                    yield f"{call} was interrupted, and could have run again"
                elif outcome == OK and call not in ran:
                    yield f"{call} was answered and never ran"
                elif outcome not in (OK, INTERRUPTED):
                    yield f"{call} has ended with {outcome}"

    def _doubled(self) -> Iterator[str]:
        for agent, runs in self.runs.items():
            times = Counter((run.sender, run.number) for run in runs)
            for (sender, number), count in times.items():
                allowed = 1 + (self.kills[agent] if is_idempotent(number) else 0)
                if count > allowed:
                    yield f"{Call(sender, agent, number)} ran {count} times"
            for run, count in Counter(runs).items():
                if count > 1:
                    yield f"{run} of agent {agent} ran {count} times in one incarnation"

    def _reordered(self) -> Iterator[str]:
        for agent, runs in self.runs.items():
            latest: dict[tuple[str, int], int] = {}
            newest: dict[int, int] = {}
            seen: set[tuple[int, int]] = set()
            for run in runs:
                before = latest.get(run[:2], -1)
                if run.number < before:
                    yield f"{run} of agent {agent} ran after {before}"
                latest[run[:2]] = run.number
                before = newest.get(run.sender, -1)
                if run[1:] not in seen and run.number < before:
                    yield f"{run} of agent {agent} ran first after {before} had"
                seen.add(run[1:])
                newest[run.sender] = max(run.number, before)


def _lines(path: Path) -> Iterator[list[str]]:
    if path.exists():
        yield from map(str.split, path.read_text().splitlines())
