"""What transports tell an exchange about agents and messages, in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from academy.exchange.store import (
    FROM_AGENT,
    ONE_WAY,
    RESPONSE,
    TO_AGENT,
    MailboxRecord,
)
from academy.identifier import AgentId

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.message import Message


_KINDS = {"request": 0, "response": RESPONSE, "one-way": RESPONSE | ONE_WAY}


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


def address_flags(message: Message) -> int:
    """Return the flags of a message's envelope."""
    return (
        _KINDS[message.get_body().kind]
        | (FROM_AGENT if message.src.role == "agent" else 0)
        | (TO_AGENT if message.dest.role == "agent" else 0)
    )
