"""Names of actions, and what is wrong with those that are none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def action_name(method: Any) -> str:
    """Return the name under which a method that is an action is called."""
    if getattr(method, "_academy_action", None) is None:
        raise TypeError(
            f"{method!r} is not an action: give the name of an action, or a method "
            "that is decorated with @action."
        )
    return str(method.__name__)


def unknown_action(agent: object, name: str, known: Iterable[str]) -> AttributeError:
    """Return the error for an action that an agent does not have."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else ""
    own = ", ".join(n for n in names if not n.startswith("agent_")) or "none"
    return AttributeError(
        f'{agent} has no action "{name}". {hint or f"Its actions: {own}."}',
        name=name,
    )


def wrong_use(name: str, *, streams: bool) -> TypeError:
    """Return the error for who awaits what yields, or iterates what returns.

    Args:
        name: of the action.
        streams: whether it yields.
    """
    if streams:
        return TypeError(
            f'Action "{name}" yields many results (it is an async generator): use '
            f"`async for item in handle.{name}(...)`, without await."
        )
    return TypeError(
        f'Action "{name}" returns one result (it is no async generator): use '
        f"`await handle.{name}(...)`, without async for."
    )
