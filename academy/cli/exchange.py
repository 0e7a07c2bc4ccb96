"""`academy exchange`: a hosted exchange in the background."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from academy.exchange.cloud.operations.daemon import Daemon

exchange = typer.Typer(
    help="Start, stop and look at a hosted exchange.", no_args_is_help=True
)

Url = Annotated[str | None, typer.Argument(help="Which one, if several are running.")]


@exchange.command()
def start(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file (see configs/exchange.toml).", dir_okay=False),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; 0.0.0.0 lets compute nodes connect."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on; 0 is any free one."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve http and ask for no token.")
    ] = False,
) -> None:
    """Start an exchange in the background; it goes on after logout.

    Your programs on this file system find its token by its address.
    """
    from academy.exchange.cloud.config import ExchangeServingConfig
    from academy.exchange.cloud.operations import daemon
    from academy.exchange.cloud.operations.settings import variable

    for key, value in (("host", host), ("port", port), ("insecure", insecure or None)):
        if value is not None:  # Over what the file and the environment say.
            os.environ[variable(key)] = str(value)
    wanted = ExchangeServingConfig.load(config)
    for other in daemon.daemons():
        if other.is_here and other.url.endswith(f":{wanted.port}"):
            raise daemon.DaemonError(
                f"An exchange is running at {other.url} already (pid {other.pid}). "
                "Stop it, academy exchange stop, or choose another --port."
            )
    started = daemon.start(config, wanted.operations.drain_seconds)
    typer.echo(f"Exchange at {started.url} (pid {started.pid}, log {started.log})")
    _show_fingerprint(started)
    if wanted.auth.method == "none":
        typer.echo("INSECURE: everybody who reaches it may do everything.", err=True)
    typer.echo(f'Use it: HttpExchangeFactory("{started.url}")')


@exchange.command()
def stop(url: Url = None) -> None:
    """Stop an exchange; mailboxes stay in its database."""
    from academy.exchange.cloud.operations import daemon

    found = daemon.find(url)
    daemon.stop(found)
    typer.echo(f"Stopped the exchange at {found.url}")


@exchange.command()
def status(url: Url = None) -> None:
    """Say which exchanges are running, and whether they answer."""
    from academy.exchange.cloud.operations import daemon

    found = [daemon.find(url)] if url else daemon.daemons() or [daemon.find()]
    bad = [one for one in found if not _answers(one)]
    if bad:
        raise typer.Exit(1)


def _answers(daemon: Daemon) -> bool:
    from academy.exception import ExchangeError

    where = f"{daemon.url} (pid {daemon.pid} on {daemon.node}, log {daemon.log})"
    try:
        took = asyncio.run(_round_trip(daemon.url))
    except (ExchangeError, TimeoutError) as error:
        typer.echo(f"{where} does not answer: {error}", err=True)
        return False
    typer.echo(f"{where} answers in {1000 * took:.1f} ms")
    _show_fingerprint(daemon)
    return True


def _show_fingerprint(daemon: Daemon) -> None:
    if daemon.fingerprint:
        typer.echo(f"Fingerprint of its certificate (SHA-256): {daemon.fingerprint}")


async def _round_trip(url: str) -> float:
    """Return the seconds that an exchange takes to answer a client with a token."""
    from academy.exchange.cloud import HttpExchangeFactory

    factory = HttpExchangeFactory(url, retries=0, request_timeout_s=5)
    async with asyncio.timeout(10), await factory.create_user_client() as client:
        begun = time.perf_counter()
        await client.status(client.client_id)
        return time.perf_counter() - begun
