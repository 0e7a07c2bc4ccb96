"""A handle to an agent object in this program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from academy.exception import AgentTerminatedError
from academy.handle.reference import Handle, action_name, unknown_action

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.mailbox_status import MailboxStatus
    from academy.stats import AgentStats

AgentT_co = TypeVar("AgentT_co", bound="Agent", covariant=True)


class ProxyHandle(Handle[AgentT_co]):
    """Calls a local agent object as if it were remote, to test agents by themselves.

    There is no exchange and no runtime: hooks and loops do not run.
    """

    __slots__ = ("_completed", "_shut_down", "agent")

    def __init__(self, agent: AgentT_co) -> None:
        from academy.identifier import AgentId

        super().__init__(AgentId.new())
        self.agent = agent
        self._actions = agent._agent_action_names()
        self._completed = 0
        self._shut_down = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.agent,)

    async def action(self, action: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._check_running()
        name = action if isinstance(action, str) else action_name(action)
        spec = self.agent._agent_actions().get(name)
        if spec is None:
            raise unknown_action(self.agent_id, name, self._actions or ())
        if spec.context:
            from academy.context import ActionContext
            from academy.identifier import UserId

            kwargs["context"] = ActionContext(UserId.new(), None)
        result = await getattr(self.agent, name)(*args, **kwargs)
        self._completed += 1
        return result

    def _check_running(self) -> None:
        if self._shut_down:
            raise AgentTerminatedError(self.agent_id)

    async def ping(self, timeout: float | None = None) -> float:
        self._check_running()
        return 0.0

    async def shutdown(self, *, terminate: bool | None = None) -> None:
        self._check_running()
        self._shut_down = True

    async def agent_status(self) -> MailboxStatus:
        from academy.exchange.mailbox_status import MailboxStatus

        return MailboxStatus.TERMINATED if self._shut_down else MailboxStatus.ACTIVE

    async def agent_stats(self) -> AgentStats:
        from academy.stats import AgentStats

        done = self._completed
        return AgentStats(done, done, done, 0, 0)
