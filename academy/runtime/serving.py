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
)
from academy.handle.naming import unknown_action, wrong_use
from academy.message import (
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Message,
    PingRequest,
    Response,
    ShutdownRequest,
    StreamCredit,
    StreamRequest,
    SuccessResponse,
)
from academy.runtime.answers import coded, not_serialized, raised
from academy.runtime.streams import Outlet
from academy.serialize import Payload

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.agent.methods import ActionSpec
    from academy.exchange.client import AgentExchangeClient
    from academy.identifier import EntityId

logger = logging.getLogger(__name__)

Key = tuple[int, bytes]
"""A call: who makes it, as a number, and its tag."""


class RequestServer:
    """Answers the requests to one agent; each action runs as a task of its own.

    Args:
        agent: whose actions are run.
        on_shutdown: called with `terminate` when a shutdown is requested.
        on_exit: called with the SystemExit that an action has raised.

    Attributes:
        started: whether the agent has started.

    Invariants: `_early` holds what comes before `start` or `stop`, and is None after.
    `_running` has every action that is to be answered, by who has asked for it and the
    tag, so that nobody else can cancel it or grant it room: its task, the request, and
    the outlet of one that yields.
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
        self._running: dict[Key, tuple[asyncio.Task[None], Message, Outlet | None]] = {}
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
            await asyncio.wait([task for task, *_ in self._running.values()])

    async def cancel(self) -> None:
        """Cancel the actions that run, and wait until they have been answered."""
        for key in list(self._running):
            self._cancel(key)
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
        elif type(body) is StreamRequest:
            self._begin(message, body)
        elif type(body) is StreamCredit:
            outlet = self._outlet(message.src, message.tag)
            if outlet is not None:
                outlet.credit(body.taken)
        elif type(body) is ShutdownRequest:
            self._answer(message, SuccessResponse())
            self._on_shutdown(body.terminate)

    def refused(self, item: Message, error: Exception) -> None:
        """Learn that a caller's mailbox has refused an item: its stream ends."""
        outlet = self._outlet(item.dest, item.tag)
        if outlet is not None and outlet.failure is None:
            outlet.failure = error
            self._cancel((item.dest.uid.int, item.tag))

    def _outlet(self, caller: EntityId, tag: bytes) -> Outlet | None:
        running = self._running.get((caller.uid.int, tag))
        return None if running is None else running[2]

    def _pong(self) -> Response:
        if self.started:
            return SuccessResponse()
        text = f"{self._client.client_id} ended before it had started."
        return coded(PingCancelledError(text))

    def _begin(self, message: Message, request: ActionRequest) -> None:
        if self._stopped:
            self._client.release(message)
            return
        name = request.action
        spec = self._actions.get(name)
        if spec is None:
            error = unknown_action(self._client.client_id, name, self._actions)
            self._answer(message, raised(request, error))
            return
        if message.redelivered and not spec.idempotent:
            self._answer(message, coded(ActionInterruptedError(name)))
            return
        outlet = None
        if type(request) is StreamRequest:
            outlet = Outlet(self._client, message, request)
        if spec.streams is not (outlet is not None):
            misuse = wrong_use(name, streams=spec.streams)
            self._answer(message, raised(request, misuse))
            return
        task = asyncio.get_running_loop().create_task(
            self._run(message, request, spec, outlet), context=self._context.copy()
        )
        key = message.src.uid.int, message.tag
        self._running[key] = (task, message, outlet)

    async def _run(
        self,
        message: Message,
        request: ActionRequest,
        spec: ActionSpec,
        outlet: Outlet | None,
    ) -> None:
        name = request.action
        response: Response
        try:
            args, kwargs = request.arguments.load()
            if spec.context:
                context = ActionContext(message.src, self._client)
                kwargs = {**kwargs, "context": context}
            called = getattr(self._agent, name)(*args, **kwargs)
            if outlet is None:
                result = await called
                response = ActionResponse(Payload(request.result_strategy, result))
            else:
                response = await outlet.run(called)
        except asyncio.CancelledError:
            response = coded(ActionCancelledError(name))
            if outlet is not None and outlet.failure is not None:
                response = raised(request, outlet.failure)
        except Exception as error:
            logger.debug("action %s raised", name, exc_info=True)
            response = raised(request, error)
        except SystemExit as error:  # it is for the agent, not for its caller
            response = coded(ActionCancelledError(name))
            self._on_exit(error)
        finally:
            self._running.pop((message.src.uid.int, message.tag), None)
        self._answer(message, response)

    def _cancel_on_request(self, message: Message, tag: bytes) -> None:
        key = message.src.uid.int, tag
        if key in self._running:
            self._cancel(key)
            self._answer(message, SuccessResponse())
        elif self._stopped:
            self._client.release(message)  # it follows a request that was given back
        else:
            error = ActionInvalidStateError(f"No action runs for request {tag.hex()}.")
            self._answer(message, coded(error))

    def _cancel(self, key: Key) -> None:
        task, message, _ = self._running[key]
        coroutine: Any = task.get_coro()
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            # Cancelled before its first step, it will never come to answer.
            del self._running[key]
            body = message.get_body()
            assert isinstance(body, ActionRequest)
            self._answer(message, coded(ActionCancelledError(body.action)))
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
            request = message.get_body()
            assert isinstance(request, ActionRequest)
            problem = not_serialized(request.action, response.get_result(), error)
            self._answer_error(message, problem)

    def _answer_error(self, message: Message, error: Exception) -> None:
        request = message.get_body()
        assert isinstance(request, ActionRequest)
        self._answer(message, raised(request, error))
