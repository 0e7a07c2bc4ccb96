"""What an agent says about itself (`agent_describe`)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from academy.agent.methods import ActionSpec


@dataclass(frozen=True)
class ActionDescription:
    """What is known of an action.

    Attributes:
        name: under which it is called.
        type_signature: its parameters and result, as in Python.
        doc: its docstring.
    """

    name: str
    type_signature: str
    doc: str | None


@dataclass(frozen=True)
class AgentDescription:
    """What an agent says about itself.

    Attributes:
        description: the docstring of its class.
        actions: its actions by name.
    """

    description: str | None
    actions: dict[str, ActionDescription]


def describe(cls: type, actions: Mapping[str, ActionSpec]) -> AgentDescription:
    """Describe a class of agents by its docstrings and signatures."""
    own = (base for base in cls.__mro__ if base.__module__ != "academy.agent")
    doc = next((base.__doc__ for base in own if base.__doc__), None)
    return AgentDescription(
        description=inspect.cleandoc(doc) if doc and doc != object.__doc__ else None,
        actions={
            name: _describe_action(name, getattr(cls, name), spec)
            for name, spec in actions.items()
        },
    )


class _AsWritten(str):
    """An annotation that is shown without quotation marks."""

    __slots__ = ()
    __repr__ = str.__str__


def _describe_action(name: str, method: Any, spec: ActionSpec) -> ActionDescription:
    signature = inspect.signature(method)
    _, *parameters = signature.parameters.values()
    shown = signature.replace(
        parameters=[
            p.replace(annotation=_as_written(p.annotation))
            for p in parameters
            if not (spec.context and p.name == "context")
        ],
        return_annotation=_as_written(signature.return_annotation),
    )
    return ActionDescription(name, str(shown), inspect.getdoc(method))


def _as_written(annotation: Any) -> Any:
    return _AsWritten(annotation) if isinstance(annotation, str) else annotation
