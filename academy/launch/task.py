"""One task in a directory that a batch job and the launching program share.

The directory holds, all of it for its owner only:

    spec        the function and its arguments, until the job begins
    taken       the same, from then on until the outcome is there
    withdrawn   the same, if the launching program took it back before the job began
    place       where the job runs, and since when
    outcome     what the function returned or raised
    status      exit status of the process, if it shared its job with others

To begin is to rename `spec`, and so is to withdraw: whoever is first has it. A job that
its scheduler has requeued finds `taken`, and begins again.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from academy.home import write_private
from academy.launch.ending import portable_error
from academy.scheduler.here import place
from academy.serialize import dumps

SPEC = "spec"
TAKEN = "taken"
WITHDRAWN = "withdrawn"
OUTCOME = "outcome"
STATUS = "status"
PLACE = "place"

_VALUE, _ERROR = b"+", b"-"  # what the file of an outcome begins with


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a value, or with an error."""

    value: Any = None
    error: Exception | None = None


def pack_spec(fn: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """Encode what a job is to run.

    Raises:
        PicklingError: The function or an argument does not pickle.
    """
    return dumps((fn, arguments))


def write_spec(directory: Path, packed: bytes) -> Path:
    """Write what a job is to run into the directory of its task; return the file."""
    return write_private(directory / SPEC, packed)


def withdraw_spec(directory: Path) -> bool:
    """Keep a task from beginning; tell if that was possible."""
    try:
        os.rename(directory / SPEC, directory / WITHDRAWN)
    except OSError:
        return False
    (directory / WITHDRAWN).unlink(missing_ok=True)
    return True


def remove_spec(directory: Path) -> None:
    """Remove what a task was to run, which holds the token of its mailbox."""
    for name in (SPEC, TAKEN, WITHDRAWN):
        with contextlib.suppress(OSError):
            (directory / name).unlink(missing_ok=True)


def read_outcome(directory: Path) -> Outcome | None:
    """Return how a task ended; None if it has not.

    An outcome that cannot be read here is one too, and says so.
    """
    try:
        packed = (directory / OUTCOME).read_bytes()
    except OSError:
        return None
    try:
        outcome = pickle.loads(packed[1:])
    except Exception as error:
        error.add_note(f"This is the outcome of a batch job, in {directory / OUTCOME}.")
        return Outcome(error=error)
    return outcome if isinstance(outcome, Outcome) else Outcome(outcome)


def was_success(directory: Path) -> bool | None:
    """Tell, without loading its outcome, how a task ended; None if it has not."""
    try:
        with open(directory / OUTCOME, "rb") as file:
            return file.read(1) == _VALUE
    except OSError:
        return None


def run_task(spec: str | os.PathLike[str]) -> int:
    """Run what a spec file says, and leave its outcome beside it.

    Returns:
        The exit code: 0, 1 if the function raised, 2 if there was nothing to run.
    """
    directory = Path(spec).absolute().parent
    packed = _take(directory)
    if packed is None:
        print(
            f"Nothing to run: {spec} was withdrawn, or has run already.",
            file=sys.stderr,
        )
        return 2
    _tell_place(directory)
    outcome = _outcome(packed)
    # A scheduler that ends a job sends its signals more than once.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        write_private(directory / OUTCOME, _portable(outcome))
        remove_spec(directory)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if outcome.error is None else 1


def _take(directory: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory / SPEC, directory / TAKEN)
    if (directory / OUTCOME).exists():
        return None
    try:
        return (directory / TAKEN).read_bytes()
    except FileNotFoundError:
        return None


def _tell_place(directory: Path) -> None:
    told = asdict(place()) | {"started": datetime.now(UTC).isoformat()}
    write_private(directory / PLACE, json.dumps(told))


def _outcome(packed: bytes) -> Outcome:
    try:
        fn, arguments = pickle.loads(packed)
        return Outcome(fn(*arguments))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, end="")
        raised = portable_error(error)
        raised.add_note(f"Traceback on {socket.gethostname()}:\n{text}")
        return Outcome(error=raised)


def _portable(outcome: Outcome) -> bytes:
    try:
        packed = dumps(outcome)
    except Exception as error:
        outcome = Outcome(error=portable_error(error))
        packed = dumps(outcome)
    return (_VALUE if outcome.error is None else _ERROR) + packed
