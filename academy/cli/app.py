"""The `academy` command and what it is made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from academy.cli.demo import demo
from academy.cli.exchange import exchange
from academy.cli.jobs import cancel, ps
from academy.cli.tokens import revoke, rotate_key, token

app = typer.Typer(
    name="academy",
    help="Stateful, asynchronous agents for supercomputers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
for command in (token, revoke, rotate_key):
    exchange.command()(command)
app.add_typer(exchange, name="exchange")
app.command()(ps)
app.command()(cancel)


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(help="TOML file that says which agent to run, and where.")
    ],
    log_level: Annotated[str, typer.Option(help="Of what goes to stderr.")] = "INFO",
) -> None:
    """Run one agent from a file; it keeps its mailbox from run to run."""
    from academy.run import main as run_agent_file

    raise typer.Exit(
        run_agent_file(["--config", str(config), "--log-level", log_level])
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"academy-hpc {version('academy-hpc')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Stateful, asynchronous agents for supercomputers."""


def main() -> None:
    """Run the command; what a user can put right is one line, not a traceback."""
    from academy.exception import AcademyError

    try:
        app()
    except (AcademyError, OSError, ValueError) as error:
        print(f"academy: {error}", file=sys.stderr)
        sys.exit(1)
