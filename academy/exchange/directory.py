"""What every transport says about agents in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from academy.exchange.store import MailboxRecord
from academy.identifier import AgentId

if TYPE_CHECKING:
    from academy.agent import Agent


def new_agents(
    agents: Sequence[tuple[type[Agent], str | None]],
) -> list[tuple[AgentId[Any], MailboxRecord]]:
    """Make ids, and the records to register them with, for (type, name) pairs."""
    made = []
    for agent, name in agents:
        aid: AgentId[Any] = AgentId.new(name)
        classes = tuple(agent._agent_mro())
        made.append((aid, MailboxRecord(aid.uid.bytes, True, name, classes)))
    return made
