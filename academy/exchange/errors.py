"""Errors that are stored or cross a wire: as the name of a class and its arguments."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from academy import exception
from academy.exception import AcademyError, ExchangeError
from academy.identifier import AgentId, UserId


def pack_error(error: AcademyError) -> dict[str, Any]:
    """Turn an error into what JSON can carry."""
    arguments = [
        argument.model_dump(mode="json")
        if isinstance(argument, AgentId | UserId)
        else argument
        if isinstance(argument, str | int | float | None)
        else str(argument)
        for argument in error.args
    ]
    return {"error": type(error).__name__, "arguments": arguments}


def unpack_error(content: Any) -> AcademyError:
    """Make the error again; what is not known becomes an `ExchangeError`."""
    try:
        kind = getattr(exception, content["error"], None)
        arguments = [_argument(item) for item in content["arguments"]]
        if isinstance(kind, type) and issubclass(kind, AcademyError):
            return kind(*arguments)
        return ExchangeError(f"{content['error']}: {', '.join(map(str, arguments))}")
    except (KeyError, TypeError, ValueError, AttributeError):
        return ExchangeError(f"the exchange answered with {content!r}")


def _argument(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    kind = AgentId if item["role"] == "agent" else UserId
    return kind(uid=UUID(item["uid"]), name=item.get("name"))
