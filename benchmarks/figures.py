"""Figures beside their limits, as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured value.

    Attributes:
        name: what was measured.
        value: how much; None where it could not be measured.
        unit: of what.
        limit: what is aimed at: ("<=", most) or (">=", least); None for no aim.
    """

    name: str
    value: float | None
    unit: str = ""
    limit: tuple[str, float] | None = None

    def met(self) -> bool | None:
        """Whether the aim is reached; None without one, or without a value."""
        if self.limit is None or self.value is None:
            return None
        sign, bound = self.limit
        return self.value <= bound if sign == "<=" else self.value >= bound


def table(title: str, figures: Iterable[Figure]) -> str:
    """Lay figures out in columns under a title."""
    rows = [("", "measured", "", "aim", "")]
    for figure in figures:
        limit = ""
        if figure.limit is not None:
            limit = f"{figure.limit[0]} {_short(figure.limit[1])}"
        verdict = {None: "", True: "reached", False: "missed"}[figure.met()]
        rows.append((figure.name, _short(figure.value), figure.unit, limit, verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{a:{widths[0]}}  {b:>{widths[1]}} {c:{widths[2]}}  {d:>{widths[3]}}  {e}"
        for a, b, c, d, e in rows
    ]
    return "\n".join([title, *(line.rstrip() for line in lines)])


def _short(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
