"""Identities: equal by role and uid, whatever they are called."""

from __future__ import annotations

import pickle
from uuid import UUID, uuid4

import pytest
from pydantic import TypeAdapter, ValidationError

from academy.identifier import AgentId, EntityId, UserId, entity_id

UID = UUID("12345678-1234-5678-1234-567812345678")


def test_ids_are_equal_whatever_their_names() -> None:
    one: AgentId[object] = AgentId(uid=UID, name="one")
    other: AgentId[object] = AgentId(uid=UID, name="other")
    assert one == other
    assert hash(one) == hash(other)


def test_an_agent_is_not_the_user_of_the_same_uid() -> None:
    agent: AgentId[object] = AgentId(uid=UID)
    assert agent != UserId(uid=UID)
    assert len({agent, UserId(uid=UID)}) == 2


def test_an_id_is_not_equal_to_its_uid() -> None:
    assert UserId(uid=UID) != UID


@pytest.mark.parametrize("kind", [AgentId, UserId])
def test_new_ids_differ(kind: type[AgentId[object]] | type[UserId]) -> None:
    assert kind.new("same") != kind.new("same")


def test_str_is_the_name_or_the_start_of_the_uid() -> None:
    assert str(AgentId(uid=UID, name="alice")) == "AgentId<alice>"
    assert str(AgentId(uid=UID)) == "AgentId<12345678>"
    assert str(UserId(uid=UID)) == "UserId<12345678>"


@pytest.mark.parametrize(
    "entity", [AgentId(uid=UID, name="a"), UserId(uid=UID)], ids=["agent", "user"]
)
def test_ids_survive_pickle_and_json(entity: EntityId) -> None:
    copies = [
        pickle.loads(pickle.dumps(entity)),
        type(entity).model_validate_json(entity.model_dump_json()),
    ]
    assert copies == [entity, entity]
    assert [copy.name for copy in copies] == [entity.name] * 2


def test_the_role_tells_ids_apart_in_json() -> None:
    adapter: TypeAdapter[EntityId] = TypeAdapter(EntityId)
    for entity in (AgentId(uid=UID), UserId(uid=UID)):
        assert type(adapter.validate_json(entity.model_dump_json())) is type(entity)


def test_ids_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AgentId(uid=UID).name = "other"  # type: ignore[misc]  # the point


def test_ids_have_no_other_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        UserId(uid=UID, color="red")  # type: ignore[call-arg]  # the point


def test_an_agent_id_names_the_type_of_its_agent_at_no_cost() -> None:
    assert AgentId[int] is AgentId


@pytest.mark.parametrize("role_is_agent", [True, False])
def test_an_id_is_rebuilt_from_its_bytes(role_is_agent: bool) -> None:
    uid = uuid4()
    rebuilt = entity_id(role_is_agent, uid.bytes, "name")
    assert rebuilt == (AgentId(uid=uid) if role_is_agent else UserId(uid=uid))
    assert rebuilt.role == ("agent" if role_is_agent else "user")
    assert str(rebuilt) == f"{type(rebuilt).__name__}<name>"
