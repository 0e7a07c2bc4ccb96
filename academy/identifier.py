"""Identities of the entities that own a mailbox."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

AgentT_co = TypeVar("AgentT_co", covariant=True)

if TYPE_CHECKING:

    class _OfAgent(Generic[AgentT_co]):
        """Tells type checkers that `AgentId` is generic over the agent's type."""

else:

    class _OfAgent:
        """Subscribing costs nothing at run time: `AgentId[X]` is `AgentId`."""

        def __class_getitem__(cls, _: Any) -> Any:
            return cls


class _EntityId(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    uid: UUID
    name: str | None = None
    role: str

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _EntityId):
            return NotImplemented
        return self.uid == other.uid and self.role == other.role

    def __hash__(self) -> int:
        return hash((self.role, self.uid))

    def __str__(self) -> str:
        return f"{type(self).__name__}<{self.name or self.uid.hex[:8]}>"


class AgentId(_OfAgent[AgentT_co], _EntityId):
    """Identity of an agent: a random uid and a name for people.

    Two ids are equal when their role and uid are; the name does not count.
    """

    role: Literal["agent"] = "agent"
    __hash__ = _EntityId.__hash__  # pydantic makes its own for a frozen class

    @classmethod
    def new(cls, name: str | None = None) -> AgentId[AgentT_co]:
        """Make a random id."""
        return cls(uid=uuid4(), name=name)


class UserId(_EntityId):
    """Identity of a program (or a person) that talks to agents.

    Two ids are equal when their role and uid are; the name does not count.
    """

    role: Literal["user"] = "user"
    __hash__ = _EntityId.__hash__

    @classmethod
    def new(cls, name: str | None = None) -> UserId:
        """Make a random id."""
        return cls(uid=uuid4(), name=name)


EntityId: TypeAlias = AgentId[Any] | UserId
"""Any owner of a mailbox."""


@lru_cache(maxsize=16_384)
def entity_id(role_is_agent: bool, uid: bytes, name: str | None = None) -> EntityId:
    """Rebuild an id from its 16 bytes, without validation: every message has one."""
    kind = AgentId if role_is_agent else UserId
    return kind.model_construct(uid=UUID(bytes=uid), name=name)
