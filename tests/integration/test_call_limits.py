"""What one call may name, and what is said in several."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from academy.agent import Agent
from academy.exception import ProtocolError, QuotaExceededError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.writer import CHUNK_BYTES
from academy.exchange.presence import PresenceState
from tests.support.raw import RawClient, send_record
from tests.support.server import ExchangeServer

MANY = protocol.MAILBOXES_AT_ONCE + 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    folder = tmp_path_factory.mktemp("exchange")
    limits = {"max_namespace_mailboxes": MANY + 1}
    with ExchangeServer(folder, limits=limits) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("register", "mailboxes"),
        ("attach", "mailboxes"),
        ("missing", "mailboxes"),
        ("watch", "uids"),
        ("unwatch", "uids"),
    ],
)
async def test_a_call_that_names_too_many_mailboxes_is_refused_and_does_nothing(
    server: ExchangeServer, method: str, key: str
) -> None:
    async with RawClient(server.url, server.authority.user_token("ada")) as client:
        uids = [uuid4().hex for _ in range(MANY)]
        items = [{"uid": uid, "agent": True} for uid in uids]
        named = items if method in ("register", "attach") else uids
        with pytest.raises(ProtocolError, match=f"names {MANY} mailboxes.*several"):
            await client.call(method, **{key: named})
        assert await client.call("status", uid=uids[0]) == "MISSING"


async def test_a_frame_above_what_a_client_sends_closes_its_connection(
    server: ExchangeServer,
) -> None:
    token = server.authority.user_token("ada")
    largest = CHUNK_BYTES + protocol.CALL_BYTES
    async with RawClient(server.url, token) as client:
        call = protocol.numbered(protocol.CALL, 1, {"method": "stats", "uid": "x" * 9})
        await client.ws.send_bytes(protocol.confirm(0) * (largest // 13))
        assert await client.call("status", uid=uuid4().hex) == "MISSING"
        await client.ws.send_bytes(bytes(largest + len(call)))
        await client.closed()


async def test_what_is_held_and_what_is_given_back_may_be_said_in_steps(
    server: ExchangeServer,
) -> None:
    token = server.authority.user_token("ada", "steps")
    user, agent = uuid4(), uuid4()
    async with RawClient(server.url, token) as client:
        boxes = [{"uid": user.hex, "agent": False}, {"uid": agent.hex, "agent": True}]
        _, own = await client.call("register", mailboxes=boxes)
        await client.attach(user, token)
        incarnation = os.urandom(16).hex()
        async with RawClient(server.url, own) as first:
            await attach(first, agent, own, incarnation)
            for sequence in range(1, 5):
                await client.ws.send_bytes(send_record(agent, user, sequence, flags=4))
            tags, numbers = await delivered(first, 4)
        async with RawClient(server.url, own) as second:
            held, rest = [tag.hex() for tag in tags[:3]], tags[3:]
            for tag in held[:2]:
                await attach(second, agent, own, incarnation, [tag], more=True)
            await attach(second, agent, own, incarnation, held[2:], resume=True)
            assert (await delivered(second, 1))[0] == rest

            await second.ws.send_bytes(protocol.numbered(protocol.RECEIPT, 1))
            uid = agent.hex
            for number in numbers[:2]:
                await second.call("detach", uid=uid, released=[number], more=True)
            await second.call("detach", uid=uid, released=numbers[2:3])
            await attach(second, agent, own, os.urandom(16).hex())
            assert await redelivered(second, 4) == [False, False, False, True]


async def attach(
    client: RawClient,
    uid: UUID,
    token: str,
    incarnation: str,
    held: list[str] | None = None,
    *,
    resume: bool = False,
    more: bool = False,
) -> None:
    item = {"uid": uid.hex, "token": token, "incarnation": incarnation}
    how = {"held": held or [], "resume": resume, "more": more}
    assert await client.call("attach", mailboxes=[item | how]) == [None]


async def delivered(client: RawClient, count: int) -> tuple[list[bytes], list[int]]:
    """Return the tags and the numbers of the next deliveries."""
    heads = await deliveries(client, count)
    return [head[7] for head in heads], [head[3] for head in heads]


async def redelivered(client: RawClient, count: int) -> list[bool]:
    heads = await deliveries(client, count)
    return [bool(head[2] & protocol.REDELIVERED) for head in heads]


async def deliveries(client: RawClient, count: int) -> list[tuple[object, ...]]:
    return [
        protocol.MESSAGE.unpack_from(await client.next(protocol.DELIVER))
        for _ in range(count)
    ]


class Plain(Agent):
    pass


async def test_more_agents_than_one_call_names_are_registered_watched_and_found_again(
    server: ExchangeServer, tmp_path: Path
) -> None:
    factory = server.factory(token=server.authority.user_token("ada", "many"))
    async with await factory.create_user_client() as client:
        with pytest.raises(QuotaExceededError):
            await client.register_agents([(Plain, None)] * (2 * MANY))
        # What was registered before it was refused is gone: there is room for as many.
        agents = await client.register_agents([(Plain, None)] * MANY)
        assert len({agent.agent_id for agent in agents}) == MANY

        told: dict[object, PresenceState] = {}
        ids = [agent.agent_id for agent in agents]
        await client.watch(ids, told.update)
        assert len(told) == MANY
        last = await factory.connect(agents[-1])
        async with asyncio.timeout(30):
            while told[ids[-1]].state is not PresenceState.ATTACHED:
                await asyncio.sleep(0.01)
        await last.close()
        await client.unwatch(ids, told.update)
