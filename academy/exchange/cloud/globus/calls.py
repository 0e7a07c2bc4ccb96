"""Calls of the Globus SDK: it blocks, and has errors of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import ParamSpec, TypeVar

import globus_sdk
from globus_sdk.login_flows import CommandLineLoginFlowEOFError

from academy.exception import (
    ExchangeConnectionError,
    ExchangeError,
    ForbiddenError,
    UnauthorizedError,
)
from academy.home import get_academy_home

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def explained(whom: str) -> Iterator[None]:
    """Translate the SDK's errors.

    Raises:
        UnauthorizedError | ForbiddenError: Globus refuses.
        ExchangeConnectionError: Globus cannot be reached, or is in trouble.
    """
    try:
        yield
    except globus_sdk.GlobusAPIError as error:
        text = f"Globus refuses {whom}: {error.message or error.code}"
        kind: type[ExchangeError] = UnauthorizedError
        if error.http_status == 403:
            kind = ForbiddenError
        elif error.http_status >= 500 or error.http_status == 429:
            url = globus_sdk.config.get_service_url("auth")
            raise ExchangeConnectionError(url, text) from error
        raise kind(f"{text} (status {error.http_status})") from error
    except globus_sdk.NetworkError as error:
        url = globus_sdk.config.get_service_url("auth")
        raise ExchangeConnectionError(url, str(error)) from error
    except CommandLineLoginFlowEOFError as error:
        raise UnauthorizedError(
            "nobody is logged in to Globus, and there is no terminal to log in at: run "
            "a program that connects to this exchange on a terminal once"
        ) from error
    except globus_sdk.GlobusError as error:
        raise UnauthorizedError(f"Globus login: {error}") from error
    except json.JSONDecodeError as error:
        folder = get_academy_home() / "globus"
        raise UnauthorizedError(
            f"a file of tokens in {folder} is damaged ({error}): delete it, and log in "
            "again"
        ) from error


async def in_thread(
    work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs
) -> T:
    """Call what blocks, maybe for as long as a person needs to log in.

    Its thread does not keep a program from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # None may be the result
        else:
            done.set_exception(error)

    def run() -> None:
        result, problem = None, None
        try:
            result = work(*arguments, **keywords)
        except BaseException as error:
            problem = error
        with suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="globus", daemon=True).start()
    return await done
