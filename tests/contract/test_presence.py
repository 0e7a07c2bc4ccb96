"""The contract of watching mailboxes: where their owners are, on every exchange."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeAlias

import pytest

from academy.exception import (
    AgentInactiveError,
    AgentTerminatedError,
    ExchangeError,
)
from academy.exchange import (
    AgentRegistration,
    ExchangeClientConfig,
    ExchangeFactory,
    LocalExchangeFactory,
    UserExchangeClient,
)
from academy.exchange.cloud import spawn_http_exchange
from academy.exchange.presence import Presence, PresenceState
from academy.handle import Handle
from academy.identifier import AgentId
from academy.message import ActionRequest, SuccessResponse
from tests.support.agents import Adder
from tests.support.watcher import Watcher

Make: TypeAlias = Callable[[], ExchangeFactory]

MISSING, REGISTERED = PresenceState.MISSING, PresenceState.REGISTERED
ATTACHED, DETACHED = PresenceState.ATTACHED, PresenceState.DETACHED
TERMINATED = PresenceState.TERMINATED


@pytest.fixture(scope="module", params=["local", "http"])
def make_factory(request: pytest.FixtureRequest) -> Iterator[Make]:
    if request.param == "local":
        yield LocalExchangeFactory
        return
    with spawn_http_exchange() as factory:
        yield lambda: factory


async def test_the_present_state_is_told_before_watch_returns(
    factory: ExchangeFactory, user: UserExchangeClient
) -> None:
    registered, attached, detached, terminated = await user.register_agents(
        [(Adder, None)] * 4
    )
    unknown: AgentId[Any] = AgentId.new()
    agent = await factory.connect(attached)
    await (await factory.connect(detached)).close()
    await user.terminate(terminated.agent_id, "it was in the way")
    watcher = Watcher()
    await user.watch(
        [
            *(registered.agent_id, attached.agent_id, detached.agent_id),
            *(terminated.agent_id, unknown),
        ],
        watcher,
    )
    assert len(watcher.told) == 1
    assert {owner: one.state for owner, one in watcher.now.items()} == {
        registered.agent_id: REGISTERED,
        attached.agent_id: ATTACHED,
        detached.agent_id: DETACHED,
        terminated.agent_id: TERMINATED,
        unknown: MISSING,
    }
    assert watcher.now[terminated.agent_id].reason == "it was in the way"
    await agent.close()


async def test_who_attaches_says_where_it_is(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    watcher = Watcher()
    await user.watch([registration.agent_id], watcher)
    agent = await factory.connect(registration)
    presence = await watcher.until(registration.agent_id, ATTACHED)
    assert presence.epoch == 1
    assert presence.place is not None
    assert presence.place.host == socket.gethostname()
    assert presence.place.pid == os.getpid()
    assert (presence.place.scheduler, presence.place.job_id) == ("slurm", "4711")
    await agent.close()


async def test_every_change_is_told_and_where_it_was_last(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    agent_id = registration.agent_id
    watcher = Watcher()
    await user.watch([agent_id], watcher)
    first = await factory.connect(registration)
    here = (await watcher.until(agent_id, ATTACHED)).place
    await first.close()
    assert (await watcher.until(agent_id, DETACHED)).place == here
    second = await factory.connect(registration)
    assert (await watcher.until(agent_id, ATTACHED)).epoch == 2
    await user.terminate(agent_id, "enough")
    last = await watcher.until(agent_id, TERMINATED)
    assert last == Presence(TERMINATED, 2, here, "enough")
    assert watcher.states(agent_id) == [
        *(REGISTERED, ATTACHED, DETACHED, ATTACHED, TERMINATED)
    ]
    await second.close()


async def test_a_newer_incarnation_is_told_as_such(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    watcher = Watcher()
    old = await factory.connect(registration)
    await user.watch([registration.agent_id], watcher)
    new = await factory.connect(registration)
    await old.close()  # it lets go of what is not its own any more
    await user.terminate(registration.agent_id)
    await watcher.until(registration.agent_id, TERMINATED)
    epochs = [batch[registration.agent_id].epoch for batch in watcher.told]
    assert watcher.states(registration.agent_id) == [ATTACHED, ATTACHED, TERMINATED]
    assert epochs == [1, 2, 2]
    await new.close()


async def test_a_mailbox_that_is_not_watched_any_more_is_not_told(
    factory: ExchangeFactory, user: UserExchangeClient
) -> None:
    one, other = await user.register_agents([(Adder, None)] * 2)
    watcher = Watcher()
    await user.watch([one.agent_id, other.agent_id], watcher)
    await user.unwatch([one.agent_id], watcher)
    agents = [await factory.connect(one), await factory.connect(other)]
    await watcher.until(other.agent_id, ATTACHED)
    assert watcher.states(one.agent_id) == [REGISTERED]
    for agent in agents:
        await agent.close()


async def test_two_watchers_of_one_program_are_told_each(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    mine, yours = Watcher(), Watcher()
    await user.watch([registration.agent_id], mine)
    async with await factory.create_user_client() as neighbour:
        await neighbour.watch([registration.agent_id], yours)
        agent = await factory.connect(registration)
        await mine.until(registration.agent_id, ATTACHED)
        await yours.until(registration.agent_id, ATTACHED)
    # Who has left is told nothing, and does not end it for the other.
    await agent.close()
    await mine.until(registration.agent_id, DETACHED)
    assert yours.states(registration.agent_id)[-1] is ATTACHED


async def test_two_watchers_of_one_client_are_told_each(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    one, other = Watcher(), Watcher()
    await user.watch([registration.agent_id], one)
    await user.watch([registration.agent_id], other)
    assert other.states(registration.agent_id) == [REGISTERED]
    agent = await factory.connect(registration)
    await one.until(registration.agent_id, ATTACHED)
    await other.until(registration.agent_id, ATTACHED)
    await user.unwatch([registration.agent_id], other)
    await agent.close()
    await one.until(registration.agent_id, DETACHED)
    assert other.states(registration.agent_id) == [REGISTERED, ATTACHED]
    await user.unwatch([registration.agent_id], one)
    later = Watcher()  # nobody watches: what was told last is not taken for true
    agent = await factory.connect(registration)
    await user.watch([registration.agent_id], later)
    assert later.states(registration.agent_id) == [ATTACHED]
    await agent.close()


@pytest.fixture
async def impatient(factory: ExchangeFactory) -> AsyncIterator[UserExchangeClient]:
    """A user to whom others are inactive soon."""
    transport = await factory.connect(name="impatient")
    config = ExchangeClientConfig(heartbeat_interval=0.1, stale_heartbeat_threshold=1)
    async with UserExchangeClient(transport, config) as client:
        transport.start(client)
        yield client


async def test_calls_share_a_watch_and_fail_when_their_agent_stays_away(
    factory: ExchangeFactory,
    impatient: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    user = impatient
    manager = Watcher()
    await user.watch([registration.agent_id], manager)
    agent = await factory.connect(registration)
    await manager.until(registration.agent_id, ATTACHED)
    handle: Handle[Any] = Handle(
        registration.agent_id,
        exchange=user,
        ignore_context=True,
        reject_on_inactive=True,
    )
    calls = [asyncio.create_task(handle.action("add", n, n)) for n in range(20)]
    items = asyncio.create_task(anext(handle.action("items")))
    async with asyncio.timeout(30), aclosing(agent.listen()) as requests:
        for _ in range(21):
            await anext(requests)
    watchers = user._watches._watchers[registration.agent_id]
    assert len(watchers) == 2

    await agent.close()
    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*calls, items, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {AgentInactiveError}
    assert watchers == [manager]
    with pytest.raises(AgentInactiveError, match="adder"):
        await handle.action("add", 1, 1)
    assert not user._pending
    assert not user._streams

    agent = await factory.connect(registration)
    call = asyncio.create_task(handle.action("add", 3, 4))
    async with asyncio.timeout(30), aclosing(agent.listen()) as requests:
        async for request in requests:
            body = request.get_body()
            if isinstance(body, ActionRequest) and body.get_args() == (3, 4):
                agent.post(request.create_response(SuccessResponse()))
                break
    with pytest.raises(ExchangeError, match="not an answer"):
        await call
    assert watchers == [manager]
    await agent.close()


async def test_many_that_are_watched_together_are_told_together(
    user: UserExchangeClient,
) -> None:
    agents = [one.agent_id for one in await user.register_agents([(Adder, None)] * 500)]
    watcher = Watcher()
    await user.watch(agents, watcher)
    assert [len(batch) for batch in watcher.told] == [500]


async def test_the_reason_of_a_termination_reaches_all_who_ask_for_the_agent(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    handle: Handle[Any] = Handle(registration.agent_id, exchange=user)
    ping = asyncio.ensure_future(handle.ping())
    await asyncio.sleep(0)  # it is sent, and the termination answers it
    await user.terminate(registration.agent_id, "its node burnt down")
    with pytest.raises(AgentTerminatedError, match=r"adder.*: its node burnt down"):
        await ping
    with pytest.raises(AgentTerminatedError, match="its node burnt down"):
        await handle.ping()
    with pytest.raises(AgentTerminatedError, match="its node burnt down"):
        await factory.connect(registration)
