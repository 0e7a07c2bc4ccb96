"""The verdict on a storm finds each kind of fault that is put into its ledgers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.chaos.ledger import INTERRUPTED, OK, Call, Ledger, Pen, Run

SURVIVOR, KILLED = 0, 1
ONCE, AGAIN = 7, 9
"""Numbers of calls; those that 3 divides may run again."""


def calm() -> Ledger:
    """Two senders made ten calls at each of two agents, of whom one was killed."""
    ledger = Ledger()
    ledger.wanted[SURVIVOR] = 20
    ledger.killed_senders.add(KILLED)
    ledger.kills[1] = 1
    for sender in (SURVIVOR, KILLED):
        for number in range(10):
            for agent in (0, 1):
                call = Call(sender, agent, number)
                ledger.posted[sender].append(call)
                incarnation = "first" if number < 5 or not agent else "second"
                ledger.runs[agent].append(Run(incarnation, sender, number))
                if sender == SURVIVOR or number < 7:
                    ledger.outcomes[call] = [OK]
    return ledger


def runs_again(ledger: Ledger, agent: int, number: int, incarnation: str) -> None:
    ledger.runs[agent].append(Run(incarnation, SURVIVOR, number))


def does_not_run(ledger: Ledger, sender: int, agent: int, number: int) -> None:
    runs = ledger.runs[agent]
    ledger.runs[agent] = [run for run in runs if run[1:] != (sender, number)]


def ends(ledger: Ledger, agent: int, number: int, *outcomes: str) -> None:
    ledger.outcomes[Call(SURVIVOR, agent, number)] = list(outcomes)


def swapped(ledger: Ledger, agent: int, at: int) -> None:
    runs = ledger.runs[agent]
    runs[at], runs[at + 1] = runs[at + 1], runs[at]


FAULTS: dict[str, tuple[Callable[[Ledger], object], str]] = {
    "no outcome": (lambda it: ends(it, 0, ONCE), "is lost: it has no outcome"),
    "not made": (lambda it: it.wanted.update({SURVIVOR: 21}), "20 calls of 21"),
    "two outcomes": (lambda it: ends(it, 0, ONCE, OK, OK), "ended more than once"),
    "an error": (lambda it: ends(it, 0, ONCE, "an error: no"), "with an error: no"),
    "answered only": (
        lambda it: does_not_run(it, SURVIVOR, 0, 9),
        "was answered and never ran",
    ),
    "left out": (
        lambda it: (does_not_run(it, SURVIVOR, 1, 4), ends(it, 1, 4)),
        "is lost: later ones ran, it did not",
    ),
    "left out of a killed sender's": (
        lambda it: does_not_run(it, KILLED, 0, 8),
        "is lost: later ones ran, it did not",
    ),
    "run for nobody": (
        lambda it: it.runs[0].append(Run("first", SURVIVOR, 10)),
        "nobody has posted it",
    ),
    "interrupted for nothing": (
        lambda it: ends(it, 0, ONCE, INTERRUPTED),
        "its agent never was killed",
    ),
    "interrupted but idempotent": (
        lambda it: ends(it, 1, AGAIN, INTERRUPTED),
        "could have run again",
    ),
    "run twice": (lambda it: runs_again(it, 1, ONCE, "third"), "ran 2 times"),
    "run twice without a kill": (
        lambda it: runs_again(it, 0, AGAIN, "second"),
        "ran 2 times",
    ),
    "run twice at once": (
        lambda it: runs_again(it, 1, AGAIN, "second"),
        "2 times in one incarnation",
    ),
    "run more often than killed": (
        lambda it: [runs_again(it, 1, AGAIN, name) for name in ("third", "fourth")],
        "ran 3 times",
    ),
    "reordered": (lambda it: swapped(it, 0, 3), "ran after 4"),
    "reordered across incarnations": (lambda it: swapped(it, 1, 4), "after 5 had"),
}


def test_a_calm_ledger_has_no_faults() -> None:
    assert calm().faults() == []


def test_what_a_kill_excuses_is_no_fault() -> None:
    ledger = calm()
    runs_again(ledger, 1, AGAIN, "third")
    ends(ledger, 1, ONCE, INTERRUPTED)
    does_not_run(ledger, SURVIVOR, 1, 8)
    ends(ledger, 1, 8, INTERRUPTED)
    does_not_run(ledger, KILLED, 0, 9)
    del ledger.outcomes[Call(KILLED, 1, 3)]
    does_not_run(ledger, KILLED, 1, 3)

    assert ledger.faults() == []


@pytest.mark.parametrize(("spoil", "words"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found_and_named(
    spoil: Callable[[Ledger], object], words: str
) -> None:
    ledger = copy.deepcopy(calm())
    spoil(ledger)

    assert any(words in fault for fault in ledger.faults()), ledger.faults()


def test_ledgers_are_read_as_they_were_written(tmp_path: Path) -> None:
    caller, agent = Pen(tmp_path / "caller"), Pen(tmp_path / "agent")
    caller.write("posted", 2, 0)
    caller.write("ended", 2, 0, "an error: of two words")
    agent.write("first", 5, 0)
    ledger = Ledger()
    ledger.read_caller(5, tmp_path / "caller")
    ledger.read_agent(2, tmp_path / "agent")
    ledger.read_agent(3, tmp_path / "never written")

    assert ledger.posted == {5: [Call(5, 2, 0)]}
    assert ledger.outcomes == {Call(5, 2, 0): ["an error: of two words"]}
    assert ledger.runs == {2: [Run("first", 5, 0)]}
