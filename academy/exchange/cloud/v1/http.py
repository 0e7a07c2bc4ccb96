"""What protocol v1 makes of HTTP: parameters, statuses, connections that end."""

from __future__ import annotations

import json
import socket
from typing import Any
from uuid import UUID

from aiohttp import web

from academy.exception import (
    AcademyError,
    BadEntityIdError,
    ForbiddenError,
    IncompatibleNetworkProtocolError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageTooLargeError,
    ProtocolError,
    QuotaExceededError,
    RateExceededError,
    StorageError,
    SupersededError,
    UnauthorizedError,
)
from academy.exchange.cloud.v1.messages import read_entity
from academy.identifier import EntityId

LISTEN_LIMIT = 3600.0
"""Longest `timeout` of a client that waits for messages, and its default; seconds."""
DEAD_AFTER = 45_000
"""Milliseconds after which a stream whose far end acknowledges nothing is closed."""

Parameters = dict[str, Any]

_STATUSES: tuple[tuple[type[AcademyError], int], ...] = (
    (BadEntityIdError, 404),
    (MailboxTerminatedError, 419),
    (MessageTooLargeError, 413),
    (MailboxFullError, 429),
    (QuotaExceededError, 429),
    (RateExceededError, 429),
    (UnauthorizedError, 403),
    (ForbiddenError, 403),
    (SupersededError, 403),
    (ProtocolError, 400),
    (IncompatibleNetworkProtocolError, 400),
    (StorageError, 503),
)


async def read_parameters(
    request: web.Request, max_message_bytes: int
) -> tuple[Parameters, int]:
    """Read the JSON object in a request's body; return it and its size in bytes.

    Raises:
        MessageTooLargeError: it cannot hold a message of the size that is allowed.
        ProtocolError: it is not a JSON object.
    """
    # A message of base64 within JSON within JSON.
    limit = 2 * max_message_bytes + 1_000_000
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise MessageTooLargeError(request.content_length or len(body), limit)
    try:
        parameters = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body is not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise ProtocolError("the body is not a JSON object")
    return parameters, len(body)


def parameter(
    parameters: Parameters, name: str, kind: type[Any], default: Any = None
) -> Any:
    """Return a parameter.

    Raises:
        ProtocolError: it is missing, or not of this kind.
    """
    value = parameters.get(name, default)
    if not isinstance(value, kind):
        raise ProtocolError(f"{name} has to be a {kind.__name__}, not {value!r:.80}")
    return value


def owner(parameters: Parameters) -> EntityId:
    """Return whose mailbox a request is about."""
    if "mailbox" not in parameters:
        raise ProtocolError("mailbox is missing")
    return read_entity(parameters["mailbox"])


def group(parameters: Parameters) -> str:
    """Return the id of the group that a mailbox is to be shared with."""
    text = parameter(parameters, "group_id", str)
    try:
        return str(UUID(text))
    except ValueError:
        raise ProtocolError(f"group_id has to be a UUID, not {text!r:.80}") from None


def timeout(parameters: Parameters) -> float:
    """Return how many seconds a client wants to wait."""
    value = parameters.get("timeout")
    if value is None:
        return LISTEN_LIMIT
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LISTEN_LIMIT:
        raise ProtocolError(
            f"timeout has to be above 0 and at most {LISTEN_LIMIT:.0f} seconds, not "
            f"{value!r:.80}"
        )
    return float(value)


def refusal(error: AcademyError, status: int | None = None) -> web.Response:
    """Say what was wrong, by the status that v1 has for it."""
    if status is None:
        status = next((s for kind, s in _STATUSES if isinstance(error, kind)), 500)
    reason = "Mailbox Terminated" if status == 419 else None
    wait = error.wait if isinstance(error, RateExceededError) else 1
    later = {"Retry-After": f"{wait}"} if status in (429, 503) else None
    return web.Response(status=status, reason=reason, text=str(error), headers=later)


def is_open(request: web.Request) -> bool:
    """Whether the client is still there, as far as is known."""
    return request.transport is not None and not request.transport.is_closing()


def notice_death(request: web.Request) -> None:
    """Have the kernel close a connection whose far end has vanished."""
    if request.transport is None or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    connection = request.transport.get_extra_info("socket")
    if connection is not None:
        level, option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
        connection.setsockopt(level, option, DEAD_AFTER)
