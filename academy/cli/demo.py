"""`academy demo`: a replica exchange campaign with a published answer."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from academy.demo.settings import Settings


def demo(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file with the input; without one, 13 atoms on this machine.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    atoms: Annotated[
        int | None, typer.Option(help="Number of atoms, in place of the file's.")
    ] = None,
    parsl_config: Annotated[
        Path | None,
        typer.Option(
            help="Parsl configuration file of the workers, in place of the file's.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Directory for the picture and the numbers.")
    ] = Path("out/replica_exchange"),
) -> None:
    """Find the best shape of a cluster of atoms with agents that swap temperatures.

    Each agent samples a Lennard-Jones cluster at a temperature of its own and
    swaps configurations with its neighbours (replica exchange Monte Carlo).
    The lowest energy found is checked against the published one.
    """
    from rich.console import Console

    missing = [name for name in ("numpy", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the demonstration needs {' and '.join(missing)}: "
            "pip install 'academy-hpc[demo]'"
        )
    from academy.demo.campaign import run

    # What ends a job or a session does not skip the clean-up that Ctrl-C gets.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        status = run(_settings(config, atoms, parsl_config), output, Console())
    except KeyboardInterrupt:
        print("academy: interrupted; all agents and workers stopped", file=sys.stderr)
        status = 130
    raise typer.Exit(status)


def _settings(
    config: Path | None, atoms: int | None, parsl_config: Path | None
) -> Settings:
    """Read the input file, if any, and put the options in place of its values."""
    from academy.demo.settings import Settings

    settings = Settings.from_toml(config) if config else Settings()
    if atoms is not None:
        simulation = replace(settings.simulation, atoms=atoms)
        settings = replace(settings, simulation=simulation)
    if parsl_config is not None:
        executor = replace(settings.executor, parsl_config=parsl_config)
        settings = replace(settings, executor=executor)
    return settings
