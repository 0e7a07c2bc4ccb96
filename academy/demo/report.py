"""What the demonstration leaves behind: a table, a picture, the structure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from academy.demo.records import Results, RoundRecord
from academy.demo.settings import Simulation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

TOLERANCE = 1e-3
"""How close in ε to a published minimum counts as having reached it."""


@dataclass(frozen=True)
class ReplicaSummary:
    """One temperature after the run; energies in ε, averages after equilibration."""

    replica: int
    temperature: float
    mean_energy: float
    minimum: float
    acceptance: float
    swaps_tried: int
    """Attempts to swap with the next hotter replica."""
    swaps_accepted: int
    busy: float
    """Fraction of the time spent sampling, not waiting for a neighbour."""


@dataclass(frozen=True)
class Summary:
    """One run in numbers; every count is of what the coordinator was told."""

    simulation: Simulation
    replicas: list[ReplicaSummary]
    minimum: float
    published: float | None
    found_by: int
    found_in_round: int
    seconds: float
    reports: int
    swap_calls: int
    array_bytes: int
    """Position arrays in swap calls and their answers, without envelopes."""

    @property
    def reached(self) -> bool | None:
        """Whether the published minimum was reached; None if none is tabulated."""
        if self.published is None:
            return None
        return abs(self.minimum - self.published) < TOLERANCE

    @property
    def actions_per_second(self) -> float:
        """Actions that agents ran for each other, per second of sampling."""
        return (self.reports + self.swap_calls) / self.seconds if self.seconds else 0.0


def summarise(results: Results) -> Summary:
    """Count and average the records of a finished run."""
    simulation = results.simulation
    lowest = results.lowest
    if lowest is None:
        raise ValueError("no replica reported anything")
    swaps = [record.swap for record in results.records if record.swap is not None]
    return Summary(
        simulation=simulation,
        replicas=[
            _summarise_replica(simulation, index, results.of_replica(index))
            for index in range(simulation.replicas)
        ],
        minimum=lowest.minimum,
        published=simulation.published_minimum,
        found_by=lowest.replica,
        found_in_round=lowest.round_number,
        seconds=results.seconds,
        reports=len(results.records),
        swap_calls=len(swaps),
        array_bytes=sum(swap.array_bytes for swap in swaps),
    )


def _summarise_replica(
    simulation: Simulation, index: int, records: list[RoundRecord]
) -> ReplicaSummary:
    counted = records[simulation.equilibration_rounds :]
    swaps = [record.swap for record in records if record.swap is not None]
    sampling = sum(record.sampling_s for record in records)
    waiting = sum(record.waiting_s for record in records)
    return ReplicaSummary(
        replica=index,
        temperature=simulation.temperatures[index],
        mean_energy=float(np.mean([record.mean_energy for record in counted])),
        minimum=min(record.minimum for record in records),
        acceptance=float(np.mean([record.acceptance for record in counted])),
        swaps_tried=len(swaps),
        swaps_accepted=sum(swap.accepted for swap in swaps),
        busy=sampling / (sampling + waiting) if sampling else 0.0,
    )


def results_table(summary: Summary) -> Table:
    """One line per replica, coldest first."""
    from rich.table import Table

    table = Table(
        title=f"Lennard-Jones cluster of {summary.simulation.atoms} atoms, "
        f"{summary.simulation.steps:,} sweeps per replica",
        title_justify="left",
        caption="busy: sampling, not waiting for a neighbour",
        caption_justify="left",
    )
    for heading in (
        "replica",
        "T\n[ε/k]",
        "mean\nenergy [ε]",
        "lowest\nminimum [ε]",
        "moves\naccepted",
        "swaps with\nthe next",
        "time\nbusy",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.replicas:
        table.add_row(
            str(row.replica),
            f"{row.temperature:.4f}",
            f"{row.mean_energy:.3f}",
            f"{row.minimum:.6f}",
            f"{row.acceptance:.0%}",
            _ratio(row.swaps_accepted, row.swaps_tried),
            f"{row.busy:.0%}",
        )
    return table


def _ratio(part: int, whole: int) -> str:
    return f"{part / whole:.0%} of {whole}" if whole else "-"


def closing_lines(summary: Summary) -> Table:
    """Say what was sent, what was found, and whether others found the same."""
    from rich.table import Table

    lines = Table.grid(padding=(0, 2))
    lines.add_row(
        "traffic",
        f"{summary.reports:,} reports and {summary.swap_calls:,} swaps in "
        f"{summary.seconds:.1f} s, [bold]{summary.actions_per_second:.0f} actions/s[/]",
    )
    lines.add_row("", f"[bold]{summary.array_bytes:,} bytes[/] of positions in swaps")
    lines.add_row(
        "found",
        f"[bold]{summary.minimum:.6f} ε[/] by replica {summary.found_by} in round "
        f"{summary.found_in_round + 1} of {summary.simulation.rounds}",
    )
    if summary.published is not None:
        lines.add_row(
            "published",
            f"[bold]{summary.published:.6f} ε[/] in the Cambridge Cluster Database",
        )
    lines.add_row(*_verdict(summary))
    return lines


def _verdict(summary: Summary) -> tuple[str, str]:
    if summary.published is None:
        return "check", "none: no minimum of this size is tabulated here"
    off = summary.minimum - summary.published
    if summary.reached:
        return "[bold green]PASS[/]", f"they differ by {abs(off):.0e} ε"
    if off > 0:
        return "[bold red]FAIL[/]", f"the published minimum was missed by {off:.6f} ε"
    return "[bold red]FAIL[/]", f"{-off:.6f} ε below the published minimum is wrong"


def write_all(results: Results, summary: Summary, folder: Path) -> list[Path]:
    """Write energies.png, minimum.xyz and summary.json; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "energies.png"
    draw_energies(results, summary, picture)
    structure = folder / "minimum.xyz"
    structure.write_text(xyz(results.lowest))
    numbers = folder / "summary.json"
    document = asdict(summary) | {
        "reached": summary.reached,
        "actions_per_second": summary.actions_per_second,
    }
    numbers.write_text(json.dumps(document, indent=2) + "\n")
    return [picture, structure, numbers]


def xyz(record: RoundRecord | None) -> str:
    """Format the structure of a record for molecular viewers, in sigma."""
    if record is None or record.positions is None:
        raise ValueError("the record has no positions")
    lines = [str(len(record.positions)), f"Lennard-Jones, {record.minimum:.6f} epsilon"]
    lines += [f"Ar {x:.8f} {y:.8f} {z:.8f}" for x, y, z in record.positions.tolist()]
    return "\n".join(lines) + "\n"


def draw_energies(results: Results, summary: Summary, path: Path) -> None:
    """Draw energies over sweeps, and how often each temperature visits them."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    simulation = results.simulation
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    trace, visits = figure.subplots(
        1, 2, sharey=True, gridspec_kw={"width_ratios": [3, 1]}
    )
    colours = colormaps["plasma"](np.linspace(0.0, 0.85, simulation.replicas))
    bins = np.histogram_bin_edges([record.energy for record in results.records], 50)
    for row, colour in zip(summary.replicas, colours, strict=True):
        records = results.of_replica(row.replica)
        sweeps = [(r.round_number + 1) * simulation.steps_per_round for r in records]
        energies = [record.energy for record in records]
        label = f"T = {row.temperature:.3f} ε/k"
        trace.plot(sweeps, energies, color=colour, lw=0.9, label=label)
        visits.hist(
            energies[simulation.equilibration_rounds :],
            bins=bins.tolist(),
            orientation="horizontal",
            density=True,
            histtype="stepfilled",
            color=colour,
            alpha=0.5,
        )
    _draw_minima(trace, results, summary)
    trace.set(xlabel="Monte Carlo sweeps", ylabel="energy [ε]")
    trace.set_title(f"Lennard-Jones cluster, {simulation.atoms} atoms", loc="left")
    figure.legend(loc="outside lower left", fontsize="small", ncols=6, frameon=False)
    visits.set(xlabel="probability density [1/ε]")
    visits.set_title("after equilibration", loc="left")
    figure.savefig(path, dpi=130)


def _draw_minima(axes: Axes, results: Results, summary: Summary) -> None:
    """Draw the lowest minimum found so far, and the published one."""
    simulation = results.simulation
    rounds = np.arange(1, simulation.rounds + 1)
    sweeps = (rounds * simulation.steps_per_round).tolist()
    lowest = np.full(simulation.rounds, np.inf)
    for record in results.records:
        index = record.round_number
        lowest[index] = min(lowest[index], record.minimum)
    lowest = np.minimum.accumulate(lowest)
    axes.plot(sweeps, lowest, color="black", lw=1.6, label="lowest minimum so far")
    if summary.published is not None:
        axes.axhline(
            summary.published,
            color="tab:green",
            lw=1.4,
            ls="--",
            label=f"published minimum {summary.published:.4f} ε",
        )
    if simulation.equilibration_rounds:
        end = simulation.equilibration_rounds * simulation.steps_per_round
        axes.axvspan(0, end, color="0.92", zorder=0, label="equilibration")
    axes.margins(x=0)
