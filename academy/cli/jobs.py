"""`academy ps` and `academy cancel`: batch jobs of agents, whoever launched them."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from academy.executors.batch import ListedTask

Directory = Annotated[
    Path | None,
    typer.Option(help="Directory of the jobs, if the executor was given one."),
]


def ps(
    directory: Directory = None,
    show_all: Annotated[
        bool, typer.Option("--all", "-a", help="Those that have ended as well.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="All that is known, for programs.")
    ] = False,
) -> None:
    """List the batch jobs of agents, whatever became of who launched them."""
    from academy.executors.batch.listing import list_tasks
    from academy.executors.batch.records import JobDirectory

    tasks = list_tasks(JobDirectory(directory), ended=show_all)
    if as_json:
        typer.echo(json.dumps([_described(task) for task in tasks], indent=1))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(_table(tasks, datetime.now(UTC)))


def cancel(
    jobs: Annotated[
        list[str], typer.Argument(help="What academy ps shows as JOB or ID.")
    ],
    directory: Directory = None,
) -> None:
    """Cancel batch jobs; agents in them have time to shut down."""
    from academy.executors.batch.listing import cancel_job
    from academy.executors.batch.records import JobDirectory

    where = JobDirectory(directory)
    for job in jobs:
        record = cancel_job(where, job)
        name = f"{record.scheduler} job {record.known_job_id()}"
        typer.echo(f"{name} is over" if record.is_over else f"Cancelled {name}")


def _described(task: ListedTask) -> dict[str, Any]:
    job = {
        key: value.isoformat() if isinstance(value, datetime) else value
        for key, value in asdict(task.job).items()
    }
    return {
        "id": task.id,
        "name": task.name,
        "agent_id": task.agent_id,
        "directory": str(task.directory),
        **job,
    }


def _table(tasks: list[ListedTask], now: datetime) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("ID", "AGENT", "NAME", "JOB", "STATE", "REASON"):
        table.add_column(column, overflow="fold", no_wrap=column in ("ID", "STATE"))
    for column in ("STARTED", "LEFT", "HOST", "OUTPUT"):
        table.add_column(column, overflow="fold")
    for task in tasks:
        job = task.job
        started = job.started.astimezone() if job.started else None
        running = started is not None and not task.state.is_over
        # A job that is being cancelled may have ended for its scheduler, which is
        # still waiting for its processes.
        left = max(job.ends - now, timedelta()) if job.ends and running else None
        table.add_row(
            task.id,
            task.agent_id[:8],
            task.name,
            f"{job.scheduler} {job.job_id or '?'}",
            task.state,
            job.reason,
            f"{started:%Y-%m-%d %H:%M:%S}" if started else "",
            "" if left is None else str(left).partition(".")[0],
            ", ".join(job.nodes),
            job.stderr or job.stdout or "",
        )
    return table
