"""What a queue never gives, told before a job waits for it for ever."""

from __future__ import annotations

from typing import Any

from academy.executors import dialects
from academy.scheduler.base import get_scheduler
from academy.scheduler.times import seconds


def check_limits(provider: Any, taker: str) -> None:
    """Compare what a provider asks for with the limits of its queue; takes a while.

    Many clusters accept a job that is above a limit, and never start it.

    Args:
        provider: of a cluster, as it would submit.
        taker: who is asked, for error messages.

    Raises:
        ValueError: It is above a limit, or there is no such queue; says what there is.
        SchedulerError: The scheduler does not answer.
    """
    found = dialects.find(provider)
    if found is None:
        return
    scheduler, dialect = found
    places = dialect.table.attributes
    asked = {field: getattr(provider, at, None) for field, at in places.items()}
    limits = get_scheduler(scheduler).limits(asked.get("queue") or None)
    if limits is None:
        return
    walltime = seconds(asked.get("walltime") or "")
    if walltime and limits.walltime is not None and walltime > limits.walltime:
        most = f"{limits.walltime / 60:g} minutes"
        raise _above("walltime", asked["walltime"], limits.queue, most, taker)
    most_of = {"nodes": limits.nodes, "gpus_per_node": limits.gpus_per_node}
    for field, most_there in most_of.items():
        value = asked.get(field)
        if isinstance(value, int) and most_there is not None and value > most_there:
            raise _above(field, value, limits.queue, str(most_there), taker)


def _above(field: str, value: Any, queue: str, most: str, taker: str) -> ValueError:
    return ValueError(
        f"{field}={value!r} is more than the {most} of queue {queue!r} ({taker}). Ask "
        "for less, or for another queue."
    )
