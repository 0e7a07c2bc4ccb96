"""What an endpoint's worker runs, and how its outcome travels back.

Globus Compute carries a function's exception as text. An agent's own errors are to
come back as themselves, so the function that is submitted returns them.
"""

from __future__ import annotations

import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle

from academy.launch.ending import portable_error
from academy.serialize import dumps


def pack(fn: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """Encode a call for `run_task`.

    Raises:
        PicklingError: the function or an argument does not pickle.
    """
    return bytes(cloudpickle.dumps((fn, args), 5))


def run_task(packed: bytes) -> bytes:
    """Run a packed call, on the endpoint, and return its packed outcome."""
    try:
        fn, args = pickle.loads(packed)
        return dumps((True, fn(*args)))
    except BaseException as error:
        raised = portable_error(error)
        lines = "".join(traceback.format_exception(error))
        raised.add_note(f"Raised on {socket.gethostname()}:\n{lines}")
        return dumps((False, raised))


def unpack(outcome: bytes) -> Any:
    """Return what a packed call returned.

    Raises:
        Exception: what it raised.
    """
    succeeded, value = pickle.loads(outcome)
    if succeeded:
        return value
    raise value
