"""What a handle does when it is used: find a client, ask, and decode the answer.

Handles import this when they are first used, so that a module which defines agents
and their handles loads no more than asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from academy.exception import (
    AgentInactiveError,
    AgentTerminatedError,
    ExchangeClientNotFoundError,
    ExchangeError,
    MessageExpiredError,
)
from academy.exchange.client import ExchangeClient, exchange_context
from academy.handle.timeouts import chosen, timed
from academy.handle.vigil import Vigil, attended
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Message,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy.serialize import (
    Payload,
    default_serializer,
    encode,
)

if TYPE_CHECKING:
    from academy.handle import Handle
    from academy.identifier import AgentId


def client_for(handle: Handle[Any]) -> ExchangeClient:
    """Return the client that a handle uses here.

    Raises:
        ExchangeClientNotFoundError: there is none.
    """
    client = handle._exchange
    if not handle._ignore_context:
        client = exchange_context.get(client)
    if client is None:
        raise ExchangeClientNotFoundError(handle.agent_id)
    return client


async def call(
    handle: Handle[Any],
    action: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    vigil: Vigil | None = None,
) -> Any:
    """Run an action and return its result, or raise what it raised."""
    name = handle._name_of(action)
    client = client_for(handle)
    agent_id = handle.agent_id
    if handle._reject_on_inactive and vigil is None:
        async with attended(client, agent_id) as vigil:
            return await call(handle, action, args, kwargs, vigil)
    seconds = chosen(handle._timeout, client.config.call_timeout)
    request = new_request(client, handle, ActionRequest, name, args, kwargs, seconds)
    future = post(client.request, request)
    if vigil is not None:
        vigil.guard(future)
    try:
        if seconds is None:
            response = await future
        else:
            response = await timed(future, seconds, agent_id, name)
    except BaseException as error:
        if not future.done() or future.cancelled() or is_inactive(error):
            give_up(client, request)
        raise
    body = response.get_body()
    if type(body) is ActionResponse:
        return body.result.load()
    raise error_in(response, agent_id)


def new_request(
    client: ExchangeClient,
    handle: Handle[Any],
    kind: Callable[..., ActionRequest],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seconds: float | None,
) -> Message:
    """Make the request that runs an action as a handle wants it, and so soon."""
    strategy = handle._request_serializer or default_serializer.get()
    body = kind(
        name,
        Payload(strategy, (args, kwargs)),
        handle._result_serializer,
        handle._exception_serializer,
    )
    request = client.new_message(handle.agent_id, body)
    if seconds is not None:
        request.lifetime = max(1, int(seconds * 1000))
    return request


def post(
    send: Callable[..., asyncio.Future[Message]], request: Message, *more: Any
) -> asyncio.Future[Message]:
    """Send a request; an argument that does not serialize is named in the error."""
    try:
        return send(request, *more)
    except ExchangeError:
        raise
    except Exception as error:
        error.add_note(_blame(request))
        raise


def _blame(request: Message) -> str:
    """Say which argument of a call does not serialize."""
    body = request.get_body()
    assert isinstance(body, ActionRequest)
    action, strategy = body.action, body.arguments.strategy
    args, kwargs = body.arguments._value
    named = {f"argument {i}": value for i, value in enumerate(args)}
    named |= {f'argument "{key}"': value for key, value in kwargs.items()}
    for name, value in named.items():
        try:
            encode(value, strategy)
        except Exception:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return (
                f'The {name} of action "{action}" is of type {kind} and does not '
                f'serialize as "{strategy.value}".'
            )
    return f'The arguments of action "{action}" do not serialize as "{strategy.value}".'


async def ping(handle: Handle[Any], timeout: float | None) -> float:
    """Send a ping and return the seconds until its answer."""
    client = client_for(handle)
    agent_id = handle.agent_id
    request = client.new_message(agent_id, PingRequest())
    started = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            response = await client.request(request)
    except TimeoutError:
        raise TimeoutError(
            f"{agent_id} did not answer a ping within {timeout} seconds."
        ) from None
    finally:
        client.forget(request)
    if not isinstance(response.get_body(), SuccessResponse):
        raise error_in(response, agent_id)
    return time.perf_counter() - started


async def shutdown(handle: Handle[Any], terminate: bool | None) -> None:
    """Send the request to shut down."""
    client = client_for(handle)
    await client.send(client.new_message(handle.agent_id, ShutdownRequest(terminate)))


def is_inactive(error: BaseException | None) -> bool:
    """Whether a call has failed here, while its agent may still get the request."""
    return isinstance(error, AgentInactiveError)


def give_up(client: ExchangeClient, request: Message) -> None:
    """Forget a call, and have the agent cancel it."""
    client.forget(request)
    # A client that is closed has nobody left to tell.
    with contextlib.suppress(ExchangeError):
        client.post(client.new_message(request.dest, CancelRequest(request.tag)))


def error_in(response: Message, agent_id: AgentId[Any]) -> BaseException:
    """Return the error that a response stands for."""
    body = response.get_body()
    if not isinstance(body, AcademyErrorResponse | UserErrorResponse):
        return ExchangeError(f"{response!r} is not an answer to what was asked.")
    error = body.get_exception()
    if isinstance(error, AgentTerminatedError) and error.uid == agent_id:
        # This id knows the agent's name.
        return AgentTerminatedError(agent_id, error.reason)
    if isinstance(error, MessageExpiredError) and error.uid == agent_id:
        return MessageExpiredError(agent_id)
    return error
