"""Launch the agents on workers, follow them, and report what they found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from academy.demo import report
from academy.demo.agents import Coordinator, Replica
from academy.demo.records import Progress, Results
from academy.demo.settings import Settings, Simulation
from academy.demo.workers import hosted_exchange, make_executor
from academy.manager import Manager

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

    from academy.exchange.cloud import HttpExchangeFactory
    from academy.exchange.factory import ExchangeFactory
    from academy.handle import Handle

ShowProgress = Callable[[Progress], None]

LOOPBACK = ("127.0.0.1", "127.0.1.1", "localhost", "::1")


def run(settings: Settings, output: Path, console: Console) -> int:
    """Run a campaign, print its table and write its files; return an exit status.

    The status is 1 if a minimum is published for this number of atoms and was
    not reached, else 0.
    """
    with ExitStack() as stack:
        executor = make_executor(settings)
        # The manager does this in good order; here it is for when that was cut short.
        stack.callback(executor.shutdown, cancel_futures=True)
        factory = stack.enter_context(hosted_exchange(settings))
        console.print(opening_lines(settings, factory), markup=False)
        with progress_shown(settings, console) as show:
            results = asyncio.run(run_on_workers(settings, factory, executor, show))
    summary = report.summarise(results)
    console.print(report.results_table(summary))
    console.print(report.closing_lines(summary))
    for path in report.write_all(results, summary, output):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return 1 if summary.reached is False else 0


def opening_lines(settings: Settings, factory: HttpExchangeFactory) -> str:
    """Say what is about to run, and where."""
    wanted = settings.executor
    where = wanted.parsl_config or "this machine"
    packed = wanted.agents_per_worker
    lines = [
        f"{settings.simulation.replicas} replicas and a coordinator, each an agent, on "
        f"Parsl workers of {where}" + (f", {packed} per worker" if packed > 1 else ""),
        f"exchange {factory.url}",
    ]
    if wanted.parsl_config and urlsplit(factory.url).hostname in LOOPBACK:
        lines.append(
            "which only this machine can reach: for workers on other nodes, name an "
            "address of this one as host in the table [exchange] of the input file"
        )
    return "\n".join(lines)


async def run_on_workers(
    settings: Settings,
    factory: ExchangeFactory,
    executor: Executor,
    show: ShowProgress,
) -> Results:
    """Start the workers, run a campaign on them, and stop them."""
    async with await Manager.from_exchange_factory(factory, executor) as manager:
        return await campaign(manager, settings, show)


async def campaign(manager: Manager, settings: Settings, show: ShowProgress) -> Results:
    """Launch all agents in one batch and follow them until all rounds are done.

    Raises:
        Exception: Whatever an agent ended with before that.
    """
    coordinator = await launch(manager, settings)
    following = asyncio.create_task(follow(coordinator, settings, show))
    ended = asyncio.create_task(first_end(manager))
    try:
        await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await ended
        return await following
    finally:
        following.cancel()
        ended.cancel()
        await asyncio.gather(following, ended, return_exceptions=True)


async def launch(manager: Manager, settings: Settings) -> Handle[Coordinator]:
    """Launch the coordinator and the replicas, each with the handles it needs."""
    simulation = settings.simulation
    async with manager.launch_batch() as batch:
        coordinator = await batch.queue(
            Coordinator, args=(simulation,), name="coordinator"
        )
        hotter: Handle[Replica] | None = None
        # From hot to cold, since a replica calls its hotter neighbour.
        for index in reversed(range(simulation.replicas)):
            hotter = await batch.queue(
                Replica,
                args=(index, simulation, coordinator, hotter),
                name=f"replica-{index}",
            )
    return coordinator


async def follow(
    coordinator: Handle[Coordinator], settings: Settings, show: ShowProgress
) -> Results:
    """Show progress until every replica has reported every round."""
    seen = 0
    while seen < settings.simulation.total_records:
        progress: Progress = await coordinator.progress(seen)
        show(progress)
        seen = progress.records
    results: Results = await coordinator.results()
    return results


async def first_end(manager: Manager) -> None:
    """Wait for an agent to end, which none may do on its own, and say why it did."""
    await manager.wait(
        manager.running(), raise_error=True, return_when=asyncio.FIRST_COMPLETED
    )
    raise RuntimeError("an agent ended before all rounds were done")


@contextmanager
def progress_shown(settings: Settings, console: Console) -> Iterator[ShowProgress]:
    """Show progress as a bar on a terminal, elsewhere as a line per tenth."""
    if not console.is_terminal:
        yield progress_lines(settings, console)
        return
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn

    simulation = settings.simulation
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[lowest]}"),
        console=console,
        transient=True,
    ) as bar:
        # Without a total the bar pulses: nobody knows how long a queue is.
        task = bar.add_task("starting agents", total=None, done="", lowest="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                description="sampling",
                total=simulation.steps,
                completed=simulation.sweeps_after(progress.records),
                done=sweeps_done(simulation, progress),
                lowest=progress.lowest_so_far,
            )

        yield show


def progress_lines(settings: Settings, console: Console) -> ShowProgress:
    """Make a function that prints a line at first and whenever a tenth is done."""
    simulation = settings.simulation
    tenths_shown = -1

    def show(progress: Progress) -> None:
        nonlocal tenths_shown
        tenths = 10 * progress.records // simulation.total_records
        if tenths > tenths_shown:
            tenths_shown = tenths
            done = sweeps_done(simulation, progress)
            console.print(f"{done}, {progress.lowest_so_far}", highlight=False)

    return show


def sweeps_done(simulation: Simulation, progress: Progress) -> str:
    """Say how many sweeps each replica has done, on average."""
    done = simulation.sweeps_after(progress.records)
    return f"{done:,.0f} of {simulation.steps:,} sweeps"
