"""Lets mypy check `await handle.add(1)` against the actions of the agent's type.

Enable it in the configuration of mypy:

    [tool.mypy]
    plugins = ["academy.mypy_plugin"]

Without it, mypy takes any attribute of a handle for an action with any arguments.
`handle.action(Counter.add, 1)` is checked with and without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from mypy.checker import TypeChecker
from mypy.errorcodes import ATTR_DEFINED
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import (
    CallExpr,
    Decorator,
    Expression,
    MemberExpr,
    NameExpr,
    OverloadedFuncDef,
    Statement,
    TypeInfo,
)
from mypy.plugin import AttributeContext, ClassDefContext, Plugin
from mypy.typeops import make_simplified_union
from mypy.types import (
    AnyType,
    CallableType,
    Instance,
    Overloaded,
    ProperType,
    Type,
    TypeOfAny,
    TypeVarType,
    UnionType,
    get_proper_type,
)

ACTION = "academy.agent.action"
HANDLES = ("academy.handle.Handle", "academy.handle.ProxyHandle")
NO_ACTIONS = (
    "academy.agent.event",
    "academy.agent.loop",
    "academy.agent.timer",
    "builtins.classmethod",
    "builtins.property",
    "builtins.staticmethod",
)

_METADATA = "academy"

_Kinds: TypeAlias = dict[str, str]
"""Method to `action`, `context` (an action that takes one) or `unknown`."""


class HandlePlugin(Plugin):
    """Gives the attributes of a handle the types of its agent's actions."""

    def get_customize_class_mro_hook(
        self, fullname: str
    ) -> Callable[[ClassDefContext], None] | None:
        # Of all hooks for classes only this one sees every class, and so mixins too.
        return _note_actions

    def get_attribute_hook(
        self, fullname: str
    ) -> Callable[[AttributeContext], Type] | None:
        owner, _, name = fullname.rpartition(".")
        return partial(_attribute_of_handle, name) if owner in HANDLES else None


def plugin(version: str) -> type[Plugin]:
    """Return the plugin; mypy calls this."""
    return HandlePlugin


# --- which methods are actions


def _note_actions(ctx: ClassDefContext) -> None:
    """Keep what the decorators say: mypy's cache keeps metadata, not decorators."""
    kinds: _Kinds = {}
    for statement in ctx.cls.defs.body:
        for method in _decorated(statement):
            for decorator in method.decorators:
                kind = _kind(decorator, ctx)
                if kind and kinds.get(method.name, "unknown") == "unknown":
                    kinds[method.name] = kind
    if kinds:
        ctx.cls.info.metadata[_METADATA] = kinds


def _decorated(statement: Statement) -> list[Decorator]:
    if isinstance(statement, OverloadedFuncDef):
        items = [*statement.items, statement.impl]
        return [item for item in items if isinstance(item, Decorator)]
    return [statement] if isinstance(statement, Decorator) else []


def _kind(decorator: Expression, ctx: ClassDefContext) -> str | None:
    called = decorator if isinstance(decorator, CallExpr) else None
    name = _dotted(called.callee if called else decorator)
    symbol = name and ctx.api.lookup_qualified(name, ctx.cls, suppress_errors=True)
    fullname = symbol.fullname if symbol else None
    if fullname in NO_ACTIONS:
        return None
    if fullname != ACTION:
        return "unknown"  # somebody's own decorator, which may well be an action
    if called and "context" in called.arg_names:
        value = called.args[called.arg_names.index("context")]
        if isinstance(value, NameExpr) and value.name == "True":
            return "context"
    return "action"


def _dotted(expression: Expression) -> str | None:
    if isinstance(expression, NameExpr):
        return expression.name
    if isinstance(expression, MemberExpr):
        before = _dotted(expression.expr)
        return before and f"{before}.{expression.name}"
    return None


# --- what an attribute of a handle is


def _attribute_of_handle(name: str, ctx: AttributeContext) -> Type:
    types = [
        _action(name, agent, ctx)
        for handle in _instances(ctx.type)
        for agent in _agents(handle, name)
    ]
    return make_simplified_union(types) if types else ctx.default_attr_type


def _instances(type_: Type) -> list[ProperType]:
    """Return the types that a variable of this type can have."""
    proper = get_proper_type(type_)
    if isinstance(proper, UnionType):
        return [one for item in proper.items for one in _instances(item)]
    if isinstance(proper, TypeVarType):
        return _instances(proper.upper_bound)
    return [proper]


def _agents(handle: ProperType, name: str) -> list[ProperType]:
    if not isinstance(handle, Instance):
        return []
    for base in handle.type.mro:
        if name in base.names:
            return []  # an attribute of the handle itself
        if base.fullname == HANDLES[0]:
            return _instances(map_instance_to_supertype(handle, base).args[0])
    return []


def _action(name: str, agent: ProperType, ctx: AttributeContext) -> Type:
    if not isinstance(agent, Instance) or _may_have_anything(agent.type):
        return ctx.default_attr_type
    kind = _kind_in(agent.type, name)
    if kind is None:
        message = _no_action(agent.type, name)
        ctx.api.fail(message, ctx.context, code=ATTR_DEFINED)
        return AnyType(TypeOfAny.from_error)
    # Of mypy's own ways to the type of a member this is the one that waits for types
    # that are not inferred yet, and that has not changed for years.
    assert isinstance(ctx.api, TypeChecker)
    checker = ctx.api.expr_checker
    member = checker.analyze_external_member_access(name, agent, ctx.context)
    return _without_context(member) if kind == "context" else member


def _may_have_anything(info: TypeInfo) -> bool:
    getattr_ = info.get_method("__getattr__")
    return info.fallback_to_any or getattr_ is not None


def _kind_in(info: TypeInfo, name: str) -> str | None:
    for base in info.mro:
        if name in base.names:
            kinds: _Kinds = base.metadata.get(_METADATA, {})
            return kinds.get(name)
    return None


def _no_action(info: TypeInfo, name: str) -> str:
    if info.get(name):
        return (
            f'"{name}" of "{info.name}" is not an action, so a handle cannot call it; '
            "decorate it with @action"
        )
    names = {name for base in info.mro for name in base.metadata.get(_METADATA, {})}
    actions = sorted(name for name in names if _kind_in(info, name))
    near = difflib.get_close_matches(name, actions, n=1)
    hint = f'; maybe "{near[0]}"?' if near else ""
    return f'"{info.name}" has no action "{name}"{hint}'


def _without_context(type_: Type) -> Type:
    """Drop the parameter that the runtime of the agent fills in."""
    proper = get_proper_type(type_)
    if isinstance(proper, Overloaded):
        return Overloaded([_drop_context(item) for item in proper.items])
    return _drop_context(proper) if isinstance(proper, CallableType) else type_


def _drop_context(action: CallableType) -> CallableType:
    kept = [i for i, name in enumerate(action.arg_names) if name != "context"]
    return action.copy_modified(
        arg_types=[action.arg_types[i] for i in kept],
        arg_kinds=[action.arg_kinds[i] for i in kept],
        arg_names=[action.arg_names[i] for i in kept],
    )
