"""How what an action came to is answered."""

from __future__ import annotations

from typing import Any

from academy.exception import ResultSerializationError
from academy.message import AcademyErrorResponse, ActionRequest, UserErrorResponse
from academy.serialize import Payload


def coded(error: Exception) -> AcademyErrorResponse:
    """Answer with an error of this package that has a code."""
    response = AcademyErrorResponse.of(error)
    assert response is not None, f"{error!r} has no code"
    return response


def raised(request: ActionRequest, error: Exception) -> UserErrorResponse:
    """Answer with what an action has raised."""
    trace = error.__traceback__
    if trace is not None:
        error.__traceback__ = trace.tb_next  # our own frame tells the caller nothing
    return UserErrorResponse(Payload(request.exception_strategy, error))


def not_serialized(action: str, result: Any, error: Exception) -> Exception:
    """Return the error for what an action has returned or yielded."""
    kind = type(result)
    name = f"{kind.__module__}.{kind.__qualname__}"
    problem = ResultSerializationError(action, name, str(error))
    problem.__cause__ = error
    return problem
