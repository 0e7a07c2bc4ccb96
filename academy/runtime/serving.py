"""How an agent's requests are served: the runtime's side of every call."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from academy.context import ActionContext
from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    ExchangeError,
    MessageTooLargeError,
    PingCancelledError,
    ResultSerializationError,
)
from academy.handle import unknown_action
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Message,
    PingRequest,
    Response,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy.serialize import Payload

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.agent.methods import ActionSpec
    from academy.exchange.client import AgentExchangeClient

logger = logging.getLogger(__name__)


class RequestServer:
    """Answers the requests to one agent; each action runs as a task of its own.

    Args:
        agent: whose actions are run.
        on_shutdown: called with `terminate` when a shutdown is requested.
        on_exit: called with the SystemExit that an action has raised.

    Attributes:
        started: whether the agent has started.

    Invariants: `_early` holds what comes before `start` or `stop`, and is None after.
    `_running` has the task and the request of every action that is to be answered,
    by the request's tag.
    """

    __slots__ = (
        "_actions",
        "_agent",
        "_client",
        "_context",
        "_early",
        "_on_exit",
        "_on_shutdown",
        "_running",
        "_stopped",
        "started",
    )

    def __init__(
        self,
        agent: Agent,
        on_shutdown: Callable[[bool | None], None],
        on_exit: Callable[[SystemExit], None],
    ) -> None:
        self._agent = agent
        self._actions = agent._agent_actions()
        self._on_shutdown = on_shutdown
        self._on_exit = on_exit
        self._early: list[Message] | None = []
        self._running: dict[bytes, tuple[asyncio.Task[None], Message]] = {}
        self._stopped = False
        self.started = False
        self._client: AgentExchangeClient
        self._context: contextvars.Context

    # --- life cycle

    def start(self, client: AgentExchangeClient, context: contextvars.Context) -> None:
        """Serve what has come and will come; actions run in copies of a context."""
        self._client = client
        self._context = context
        self.started = True
        self._hand_over()

    def stop(self, client: AgentExchangeClient) -> None:
        """Begin no further action; give back those that come."""
        self._client = client
        self._stopped = True
        self._hand_over()

    def _hand_over(self) -> None:
        early, self._early = self._early, None
        for message in early or ():
            self.handle(message)

    async def finish(self) -> None:
        """Wait for the actions that run."""
        while self._running:
            await asyncio.wait([task for task, _ in self._running.values()])

    async def cancel(self) -> None:
        """Cancel the actions that run, and wait until they have been answered."""
        for tag in list(self._running):
            self._cancel(tag)
        await self.finish()

    # --- requests

    def handle(self, message: Message) -> None:
        """Serve a request, or keep it until the agent has started."""
        if self._early is not None:
            self._early.append(message)
            return
        body = message.get_body()
        if type(body) is ActionRequest:
            self._begin(message, body)
        elif type(body) is PingRequest:
            self._answer(message, self._pong())
        elif type(body) is CancelRequest:
            self._cancel_on_request(message, body.target)
        elif type(body) is ShutdownRequest:
            self._answer(message, SuccessResponse())
            self._on_shutdown(body.terminate)

    def _pong(self) -> Response:
        if self.started:
            return SuccessResponse()
        text = f"{self._client.client_id} ended before it had started."
        return _coded(PingCancelledError(text))

    def _begin(self, message: Message, request: ActionRequest) -> None:
        if self._stopped:
            self._client.release(message)
            return
        name = request.action
        spec = self._actions.get(name)
        if spec is None:
            error = unknown_action(self._client.client_id, name, self._actions)
            self._answer(message, _raised(request, error))
            return
        if message.redelivered and not spec.idempotent:
            self._answer(message, _coded(ActionInterruptedError(name)))
            return
        task = asyncio.get_running_loop().create_task(
            self._run(message, request, spec), context=self._context.copy()
        )
        self._running[message.tag] = (task, message)

    async def _run(
        self, message: Message, request: ActionRequest, spec: ActionSpec
    ) -> None:
        name = request.action
        response: Response
        try:
            args, kwargs = request.arguments.load()
            if spec.context:
                context = ActionContext(message.src, self._client)
                kwargs = {**kwargs, "context": context}
            result = await getattr(self._agent, name)(*args, **kwargs)
            response = ActionResponse(Payload(request.result_strategy, result))
        except asyncio.CancelledError:
            response = _coded(ActionCancelledError(name))
        except Exception as error:
            logger.debug("action %s raised", name, exc_info=True)
            response = _raised(request, error)
        except SystemExit as error:  # it is for the agent, not for its caller
            response = _coded(ActionCancelledError(name))
            self._on_exit(error)
        finally:
            self._running.pop(message.tag, None)
        self._answer(message, response)

    def _cancel_on_request(self, message: Message, tag: bytes) -> None:
        if tag in self._running:
            self._cancel(tag)
            self._answer(message, SuccessResponse())
        elif self._stopped:
            self._client.release(message)  # it follows a request that was given back
        else:
            error = ActionInvalidStateError(f"No action runs for request {tag.hex()}.")
            self._answer(message, _coded(error))

    def _cancel(self, tag: bytes) -> None:
        task, message = self._running[tag]
        coroutine: Any = task.get_coro()
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            # Cancelled before its first step, it will never come to answer.
            del self._running[tag]
            body = message.get_body()
            assert isinstance(body, ActionRequest)
            self._answer(message, _coded(ActionCancelledError(body.action)))
        task.cancel()

    # --- answers

    def _answer(self, message: Message, response: Response) -> None:
        try:
            self._client.post(message.create_response(response))
        except MessageTooLargeError as error:
            self._answer_error(message, error)
        except ExchangeError as error:
            logger.debug("an answer to %s was not sent: %s", message.src, error)
        except Exception as error:
            if not isinstance(response, ActionResponse):
                raise
            result = response.get_result()
            self._answer_error(message, _not_serialized(message, result, error))

    def _answer_error(self, message: Message, error: Exception) -> None:
        request = message.get_body()
        assert isinstance(request, ActionRequest)
        self._answer(message, _raised(request, error))


def _coded(error: Exception) -> AcademyErrorResponse:
    response = AcademyErrorResponse.of(error)
    assert response is not None, f"{error!r} has no code"
    return response


def _raised(request: ActionRequest, error: Exception) -> UserErrorResponse:
    trace = error.__traceback__
    if trace is not None:
        error.__traceback__ = trace.tb_next  # our own frame tells the caller nothing
    return UserErrorResponse(Payload(request.exception_strategy, error))


def _not_serialized(message: Message, result: Any, error: Exception) -> Exception:
    request = message.get_body()
    assert isinstance(request, ActionRequest)
    kind = type(result)
    name = f"{kind.__module__}.{kind.__qualname__}"
    raised = ResultSerializationError(request.action, name, str(error))
    raised.__cause__ = error
    return raised
