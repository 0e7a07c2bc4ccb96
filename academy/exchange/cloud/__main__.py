"""`python -m academy.exchange.cloud --config exchange.toml` runs a hosted exchange."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

from aiohttp import web

from academy.exception import StorageError
from academy.exchange.cloud.app import SERVER, create_app
from academy.exchange.cloud.config import ExchangeServingConfig
from academy.exchange.cloud.credentials import forget, remember
from academy.exchange.cloud.operations.logs import set_up_logging

logger = logging.getLogger("academy.exchange.cloud")

WILDCARDS = ("0.0.0.0", "::", "")
PARENT_INTERVAL = 0.5
"""Seconds between two looks at whether the parent is still there."""


def main(arguments: list[str] | None = None) -> int:
    """Run an exchange until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser("python -m academy.exchange.cloud")
    parser.add_argument("--config", help="a TOML file (see configs/exchange.toml)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="show the configuration, as file and environment make it, and end",
    )
    parser.add_argument(
        "--until-parent-ends",
        action="store_true",
        help="stop when the process that has started this one is gone",
    )
    parser.add_argument("--remove", metavar="FOLDER", help="do so when it has stopped")
    options = parser.parse_args(arguments)
    try:
        settings = ExchangeServingConfig.settings(options.config)
        config = settings.validate(ExchangeServingConfig)
        if options.check:
            print(settings.describe(config))
            return 0
        set_up_logging(config.logger)
        run_loop(serve(config, options.until_parent_ends))
    except (OSError, ValueError, StorageError) as error:
        print(f"The exchange cannot run: {error}", file=sys.stderr)
        return 1
    finally:
        if options.remove:
            shutil.rmtree(options.remove, ignore_errors=True)
    return 0


def run_loop(work: object) -> None:
    """Run a coroutine in uvloop where that installs: this process is ours."""
    run: Callable[[object], object] = asyncio.run  # type: ignore[assignment]  # any coroutine
    with contextlib.suppress(ImportError):
        import uvloop

        run = uvloop.run  # type: ignore[assignment]  # any coroutine
    run(work)


async def serve(config: ExchangeServingConfig, until_parent_ends: bool) -> None:
    """Serve until told to stop; prints the address once it is listening."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    _stop_at_signals(stop)
    watch = loop.create_task(_watch_parent(stop)) if until_parent_ends else None
    certificate = config.certificate()
    patience = config.operations.drain_seconds
    app = create_app(config)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=patience / 2)
    await runner.setup()
    try:
        tls = certificate.context() if certificate else None
        site = web.TCPSite(runner, config.host, config.port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            raise OSError(
                f"cannot listen on {config.host} port {config.port}: {error.strerror}. "
                "Choose another port, or 0 for any free one."
            ) from error
        scheme = "https" if certificate else "http"
        url = f"{scheme}://{_visible(config.host)}:{runner.addresses[0][1]}"
        digest = certificate.digest() if certificate else None
        app[SERVER].namespaces.listening(url, digest)
        urls = [url, *_other_names(config.host, url)]
        fingerprint = certificate.fingerprint if certificate else None
        announce = partial(remember, *urls, fingerprint=fingerprint, name=config.name)
        authority, user = app[SERVER].authority, getpass.getuser()
        announce(token=authority.user_token(user))
        if config.auth.method == "none":
            logger.warning("INSECURE: everybody who reaches %s may do everything", url)
        logger.info("exchange at %s, backend %s", url, config.backend.kind)
        print(url, flush=True)
        _notify(f"READY=1\nSTATUS=exchange at {url}")
        while not await _is_set_within(stop, config.auth.user_lifetime / 3):
            announce(token=authority.user_token(user))
        logger.info("stopping: clients are told, for %s s at most", patience)
        _notify("STOPPING=1")
        forget(*urls)
    finally:
        if watch is not None:
            watch.cancel()
        await _end(runner, patience)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _end(runner: web.AppRunner, patience: float) -> None:
    try:
        async with asyncio.timeout(patience):
            # Meanwhile whoever connects, or asks whether it is ready, gets an answer.
            await runner.app.shutdown()
            await runner.cleanup()
    except TimeoutError:
        logger.warning(
            "not all clients have let go within %s s: they connect again", patience
        )


def _notify(state: str) -> None:
    """Tell systemd, if it has started this process and waits to hear.

    Source: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # of the abstract name space
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            to.sendto(state.encode(), address)
        except OSError as error:
            logger.warning("cannot tell systemd %r: %s", state, error)


def _stop_at_signals(stop: asyncio.Event) -> None:
    """Stop in order at the first SIGTERM or SIGINT, and at once at the second."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def end_at_once(number: int) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def begin() -> None:
        stop.set()
        for number in signals:
            loop.add_signal_handler(number, end_at_once, number)

    for number in signals:
        loop.add_signal_handler(number, begin)


async def _watch_parent(stop: asyncio.Event) -> None:
    """Stop when this process is handed to another parent.

    A pipe would not do: children that the parent has forked hold its end open.
    """
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_INTERVAL)
    stop.set()


def _visible(host: str) -> str:
    """Return the name under which others reach what listens on `host`."""
    if host in WILDCARDS:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _other_names(host: str, url: str) -> list[str]:
    """Return the other urls by which programs may know an exchange on all addresses."""
    if host not in WILDCARDS:
        return []
    from academy.socket import address_by_hostname

    port = url.rpartition(":")[2]
    hosts = {socket.getfqdn(), address_by_hostname(), "localhost", "127.0.0.1"}
    scheme = url.partition(":")[0]
    return sorted({f"{scheme}://{name}:{port}" for name in hosts} - {url})


if __name__ == "__main__":
    sys.exit(main())
