"""The contract of exchanges: transports and clients, whatever carries the messages."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import pytest

from academy.exception import (
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeError,
    MailboxTerminatedError,
    RequestsNotServedError,
    SupersededError,
    UserTerminatedError,
)
from academy.exchange import (
    AgentExchangeClient,
    AgentRegistration,
    ExchangeClientConfig,
    ExchangeFactory,
    ExchangeTransport,
    LocalExchangeFactory,
    MailboxStatus,
    UserExchangeClient,
)
from academy.exchange.cloud import spawn_http_exchange
from academy.identifier import AgentId, EntityId, UserId
from academy.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Message,
    PingRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy.serialize import PICKLE, Payload
from tests.support.agents import Adder, FastAdder, Other

Make: TypeAlias = Callable[[], ExchangeFactory]


@pytest.fixture(scope="module", params=["local", "http-memory", "http-sqlite"])
def make_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    """Makes the factory of one exchange; the hosted ones run for all tests."""
    if request.param == "local":
        yield LocalExchangeFactory
        return
    database: Path | None = None
    if request.param == "http-sqlite":
        database = tmp_path_factory.mktemp("exchange") / "exchange.db"
    with spawn_http_exchange(database=database) as factory:
        yield lambda: factory


@pytest.fixture
async def agent(
    factory: ExchangeFactory, registration: AgentRegistration[Any]
) -> AsyncIterator[ExchangeTransport]:
    transport = await factory.connect(registration)
    yield transport
    await transport.close()


@pytest.fixture
async def sender(factory: ExchangeFactory) -> AsyncIterator[ExchangeTransport]:
    transport = await factory.connect(name="sender")
    yield transport
    await transport.close()


def call(source: EntityId, dest: EntityId, *arguments: Any) -> Message:
    return Message.create(source, dest, ActionRequest.of("add", arguments))


def answer(request: Message, result: Any = None) -> Message:
    return request.create_response(ActionResponse(Payload(PICKLE, result)))


def argument(message: Message) -> Any:
    body = message.get_body()
    assert isinstance(body, ActionRequest)
    return body.get_args()[0]


def result(message: Message) -> Any:
    body = message.get_body()
    assert isinstance(body, ActionResponse)
    return body.get_result()


async def receive(transport: ExchangeTransport, count: int = 1) -> list[Message]:
    """Wait for so many messages."""
    got: list[Message] = []
    async with asyncio.timeout(30), aclosing(transport.listen()) as listener:
        async for message in listener:
            got.append(message)
            if len(got) == count:
                break
    return got


async def nothing_comes(transport: ExchangeTransport) -> bool:
    """Whether nothing is there, after what was posted to it before was stored."""
    return [m async for m in transport.listen(timeout=0.05)] == []


class Owner:
    """Takes what a transport pushes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refusals: asyncio.Queue[tuple[Message, Exception]] = asyncio.Queue()
        self.losses: asyncio.Queue[Exception] = asyncio.Queue()

    def deliver(self, message: Message) -> None:
        self.messages.append(message)

    def held(self) -> Iterable[bytes]:
        return [message.tag for message in self.messages]

    def refused(self, message: Message, error: Exception) -> None:
        self.refusals.put_nowait((message, error))

    def lost(self, error: Exception) -> None:
        self.losses.put_nowait(error)


# --- messages


async def test_a_request_and_its_response_cross(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    request = call(sender.mailbox_id, agent.mailbox_id, 1, 2)
    await sender.send(request)
    (got,) = await receive(agent)
    assert (got.src, got.dest, got.tag) == (
        sender.mailbox_id,
        agent.mailbox_id,
        request.tag,
    )
    assert got.redelivered is False
    body = got.get_body()
    assert got.src.name == "sender"
    assert isinstance(body, ActionRequest)
    assert (body.action, body.get_args(), body.get_kwargs()) == ("add", (1, 2), {})

    await agent.send(answer(got, 3))
    (response,) = await receive(sender)
    assert response.is_response()
    assert (response.tag, result(response)) == (request.tag, 3)


async def test_messages_arrive_in_the_order_in_which_each_sender_posted_them(
    factory: ExchangeFactory, agent: ExchangeTransport
) -> None:
    senders = [await factory.connect() for _ in range(3)]
    for number in range(300):
        for transport in senders:
            transport.post(call(transport.mailbox_id, agent.mailbox_id, number))
        if number % 50 == 0:
            await asyncio.sleep(0)

    got = await receive(agent, 900)

    for transport in senders:
        own = [argument(m) for m in got if m.src == transport.mailbox_id]
        assert own == list(range(300))
        await transport.close()


async def test_messages_wait_for_a_mailbox_that_nobody_has_attached_yet(
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
    sender: ExchangeTransport,
) -> None:
    for number in range(1000):
        sender.post(call(sender.mailbox_id, registration.agent_id, number))
    await sender.send(call(sender.mailbox_id, registration.agent_id, 1000))

    agent = await factory.connect(registration)
    got = await receive(agent, 1001)
    await agent.close()

    assert [argument(message) for message in got] == list(range(1001))
    assert not any(message.redelivered for message in got)


async def test_listening_ends_when_nothing_comes_and_goes_on_later(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    assert await nothing_comes(agent)
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, 1))
    assert len(await receive(agent)) == 1
    assert await nothing_comes(agent)


async def test_an_owner_is_pushed_what_came_before_it_and_what_comes_after(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    for number in range(3):
        await sender.send(call(sender.mailbox_id, agent.mailbox_id, number))
    owner = Owner()
    agent.start(owner)
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, 3))
    await sender.send(
        Message.create(sender.mailbox_id, agent.mailbox_id, PingRequest())
    )
    agent.post(call(agent.mailbox_id, sender.mailbox_id, "after them"))
    await receive(sender)

    bodies = [message.get_body() for message in owner.messages]
    assert [argument(message) for message in owner.messages[:4]] == [0, 1, 2, 3]
    assert isinstance(bodies[4], PingRequest)


async def test_an_entity_may_write_to_itself(sender: ExchangeTransport) -> None:
    await sender.send(call(sender.mailbox_id, sender.mailbox_id, "me"))
    (got,) = await receive(sender)
    await sender.send(answer(got, "myself"))

    assert result((await receive(sender))[0]) == "myself"


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_bytes_arrive_as_they_were(
    sender: ExchangeTransport, agent: ExchangeTransport, size: int
) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, data))

    assert argument((await receive(agent))[0]) == data


async def test_what_does_not_serialize_never_hurts_others(
    factory: ExchangeFactory, sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    """A local exchange hands it over; any other refuses at the sender."""
    unpicklable = (n for n in range(3))
    bad = call(sender.mailbox_id, agent.mailbox_id, unpicklable)
    if isinstance(factory, LocalExchangeFactory):
        sender.post(bad)
    else:
        with pytest.raises(TypeError, match="generator"):
            sender.post(bad)
        with pytest.raises(TypeError, match="generator"):
            await sender.send(bad)
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, "good"))

    count = 2 if isinstance(factory, LocalExchangeFactory) else 1
    assert argument((await receive(agent, count))[-1]) == "good"


# --- refusals


async def test_sending_to_nobody_is_refused(sender: ExchangeTransport) -> None:
    nobody: AgentId[Any] = AgentId.new("nobody")
    with pytest.raises(BadEntityIdError) as refused:
        await sender.send(call(sender.mailbox_id, nobody, 1))

    assert refused.value.uid == nobody


async def test_sending_to_who_is_gone_for_good_is_refused(
    user: UserExchangeClient, factory: ExchangeFactory, sender: ExchangeTransport
) -> None:
    registration = await user.register_agent(Adder)
    await user.terminate(registration.agent_id)
    with pytest.raises(AgentTerminatedError) as refused:
        await sender.send(call(sender.mailbox_id, registration.agent_id, 1))
    assert refused.value.uid == registration.agent_id

    other = await factory.create_user_client()
    await other.close()
    with pytest.raises(UserTerminatedError):
        await sender.send(call(sender.mailbox_id, other.client_id, 1))


async def test_an_owner_learns_that_a_posted_message_was_refused(
    sender: ExchangeTransport,
) -> None:
    owner = Owner()
    sender.start(owner)
    message = call(sender.mailbox_id, AgentId.new(), 1)
    sender.post(message)

    refused, error = await owner.refusals.get()

    assert refused is message
    assert isinstance(error, BadEntityIdError)


async def test_a_refusal_stops_nothing_behind_it(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    sender.post(call(sender.mailbox_id, agent.mailbox_id, 1))
    sender.post(call(sender.mailbox_id, AgentId.new(), 2))
    sender.post(call(sender.mailbox_id, agent.mailbox_id, 3))

    assert [argument(m) for m in await receive(agent, 2)] == [1, 3]


# --- mailboxes


async def test_agents_are_registered_together_each_with_its_name(
    user: UserExchangeClient,
) -> None:
    pairs = [(Adder, f"agent {n}") for n in range(50)] + [(Other, None)]
    made = await user.register_agents(pairs)

    assert [r.agent_id.name for r in made] == [name for _, name in pairs]
    assert len({r.agent_id for r in made}) == 51
    statuses = {await user.status(r.agent_id) for r in made}
    assert statuses == {MailboxStatus.ACTIVE}


async def test_registering_none_is_fine(user: UserExchangeClient) -> None:
    assert await user.register_agents([]) == []


async def test_only_a_registered_agent_can_attach(
    factory: ExchangeFactory, user: UserExchangeClient
) -> None:
    stranger: AgentRegistration[Any] = AgentRegistration(AgentId.new())
    with pytest.raises(BadEntityIdError):
        await factory.connect(stranger)
    with pytest.raises(BadEntityIdError):
        await factory.create_agent_client(stranger, lambda message: None)


async def test_who_is_gone_for_good_does_not_come_back(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    await user.terminate(registration.agent_id)

    with pytest.raises(MailboxTerminatedError):
        await factory.connect(registration)


async def test_a_mailbox_and_its_messages_outlive_a_closed_transport(
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
    sender: ExchangeTransport,
) -> None:
    agent = await factory.connect(registration)
    await agent.close()
    await sender.send(call(sender.mailbox_id, registration.agent_id, 1))
    assert await sender.status(registration.agent_id) is MailboxStatus.ACTIVE

    agent = await factory.connect(registration)
    (got,) = await receive(agent)
    await agent.close()

    assert (argument(got), got.redelivered) == (1, False)


async def test_what_was_not_answered_comes_to_the_next_incarnation_marked(
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
    sender: ExchangeTransport,
) -> None:
    for number in range(4):
        await sender.send(call(sender.mailbox_id, registration.agent_id, number))
    first = await factory.connect(registration)
    got = await receive(first, 4)
    await first.send(answer(got[1]))
    first.release(got[3])
    await first.close()

    second = await factory.connect(registration)
    again = await receive(second, 3)
    await second.close()

    assert [argument(message) for message in again] == [0, 2, 3]
    assert [message.redelivered for message in again] == [True, True, False]


async def test_a_newer_incarnation_takes_over_and_the_older_learns_it(
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
    sender: ExchangeTransport,
) -> None:
    older = await factory.connect(registration)
    await sender.send(call(sender.mailbox_id, registration.agent_id, 1))
    (held,) = await receive(older)

    newer = await factory.connect(registration)
    with pytest.raises(SupersededError) as lost:
        await receive(older)
    assert lost.value.uid == registration.agent_id
    await sender.send(call(sender.mailbox_id, registration.agent_id, 2))
    got = await receive(newer, 2)
    await older.close()
    await newer.close()

    assert [argument(message) for message in got] == [1, 2]
    assert [message.redelivered for message in got] == [True, False]
    assert held.tag == got[0].tag


async def test_an_older_incarnation_that_closes_leaves_the_newer_alone(
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
    sender: ExchangeTransport,
) -> None:
    older = await factory.connect(registration)
    newer = await factory.connect(registration)
    await older.close()

    await sender.send(call(sender.mailbox_id, registration.agent_id, 1))
    assert len(await receive(newer)) == 1
    await newer.close()


async def test_termination_answers_what_was_not_answered(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    delivered = call(sender.mailbox_id, agent.mailbox_id, 1)
    await sender.send(delivered)
    await receive(agent)
    waiting = call(sender.mailbox_id, agent.mailbox_id, 2)
    await sender.send(waiting)

    await sender.terminate(agent.mailbox_id)

    for request, response in zip(
        [delivered, waiting], await receive(sender, 2), strict=True
    ):
        body = response.get_body()
        assert isinstance(body, AcademyErrorResponse)
        error = body.get_exception()
        assert response.tag == request.tag
        assert response.src == agent.mailbox_id
        assert isinstance(error, AgentTerminatedError)
        assert error.uid == agent.mailbox_id
    with pytest.raises(AgentTerminatedError):
        await receive(agent, 2)
    assert await sender.status(agent.mailbox_id) is MailboxStatus.TERMINATED


async def test_an_answer_posted_before_a_termination_arrives(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, 1))
    (got,) = await receive(agent)

    agent.post(answer(got, "in time"))
    await agent.terminate(agent.mailbox_id)

    assert result((await receive(sender))[0]) == "in time"


async def test_an_answer_posted_before_a_transport_closes_arrives(
    sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    await sender.send(call(sender.mailbox_id, agent.mailbox_id, 1))
    (got,) = await receive(agent)

    agent.post(answer(got, "in time"))
    await agent.close()

    assert result((await receive(sender))[0]) == "in time"


async def test_terminating_nobody_or_twice_does_nothing(
    user: UserExchangeClient, registration: AgentRegistration[Any]
) -> None:
    await user.terminate(AgentId.new())
    await user.terminate(registration.agent_id)
    await user.terminate(registration.agent_id)

    assert await user.status(registration.agent_id) is MailboxStatus.TERMINATED


# --- the directory


async def test_the_status_of_a_mailbox_follows_its_life(
    user: UserExchangeClient, registration: AgentRegistration[Any]
) -> None:
    assert await user.status(AgentId.new()) is MailboxStatus.MISSING
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE
    assert await user.status(user.client_id) is MailboxStatus.ACTIVE
    await user.terminate(registration.agent_id)
    assert await user.status(registration.agent_id) is MailboxStatus.TERMINATED


async def test_an_owner_that_went_away_is_inactive_after_a_while(
    user: UserExchangeClient,
    factory: ExchangeFactory,
    registration: AgentRegistration[Any],
) -> None:
    patient = user.config
    user.config = ExchangeClientConfig(heartbeat_interval=1e-9)
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE
    agent = await factory.create_agent_client(registration, lambda message: None)
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE

    await agent.close()

    assert await user.status(registration.agent_id) is MailboxStatus.INACTIVE
    user.config = patient
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE


async def test_signs_of_life_end_with_the_link_and_can_be_given_without(
    factory: ExchangeFactory,
    sender: ExchangeTransport,
    registration: AgentRegistration[Any],
) -> None:
    aid = registration.agent_id
    assert await sender.heartbeat_status(AgentId.new()) is None
    assert await sender.heartbeat_status(aid) is None
    agent = await factory.connect(registration)
    assert await sender.heartbeat_status(aid) == 0.0
    await agent.update_heartbeat()
    await agent.close()

    silence = await sender.heartbeat_status(aid)
    assert silence is not None
    assert silence > 0


async def test_agents_are_found_by_their_class_and_its_bases(
    user: UserExchangeClient,
) -> None:
    adder, fast, gone = await user.register_agents(
        [(Adder, "adder"), (FastAdder, "fast"), (Adder, "gone")]
    )
    await user.terminate(gone.agent_id)
    ours = {adder.agent_id, fast.agent_id, gone.agent_id}

    async def found(agent: Any, **options: bool) -> set[str | None]:
        return {a.name for a in await user.discover(agent, **options) if a in ours}

    assert await found(Adder) == {"adder", "fast"}
    assert await found(Adder, allow_subclasses=False) == {"adder"}
    assert await found(FastAdder) == {"fast"}
    assert await found("tests.support.agents.Adder") == {"adder", "fast"}
    assert await found(Other) == set()
    assert await user.discover("no.such.Agent") == ()


async def test_an_agents_messages_are_counted(
    user: UserExchangeClient, sender: ExchangeTransport, agent: ExchangeTransport
) -> None:
    for number in range(5):
        await sender.send(call(sender.mailbox_id, agent.mailbox_id, number))
    for message in (await receive(agent, 5))[:2]:
        await agent.send(answer(message))

    stats = await user.agent_stats(agent.mailbox_id)

    assert (stats.incoming, stats.outgoing, stats.completed) == (5, 2, 2)
    assert (stats.in_progress, stats.queued) == (3, 0)
    with pytest.raises(BadEntityIdError):
        await user.agent_stats(AgentId.new())


# --- closing and pickling


async def test_a_closed_transport_sends_nothing(factory: ExchangeFactory) -> None:
    transport = await factory.connect()
    await transport.close()
    await transport.close()
    message = call(transport.mailbox_id, transport.mailbox_id, 1)

    with pytest.raises(ExchangeError, match="closed"):
        transport.post(message)
    with pytest.raises(ExchangeError, match="closed"):
        await transport.send(message)


async def test_what_holds_a_connection_does_not_pickle(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    sender: ExchangeTransport,
    registration: AgentRegistration[Any],
) -> None:
    agent = await factory.create_agent_client(registration, lambda message: None)
    for thing in (sender, user, agent):
        with pytest.raises(pickle.PicklingError, match="does not pickle"):
            pickle.dumps(thing)
    await agent.close()


async def test_a_factory_from_a_client_makes_clients_of_the_same_exchange(
    user: UserExchangeClient, sender: ExchangeTransport
) -> None:
    for factory in (user.factory(), sender.factory()):
        async with await factory.create_user_client() as other:
            assert await other.status(user.client_id) is MailboxStatus.ACTIVE


async def test_a_registration_pickles(registration: AgentRegistration[Any]) -> None:
    again = pickle.loads(pickle.dumps(registration))

    assert again == registration
    assert again.token == registration.token
    assert str(registration.token) not in repr(registration) or not registration.token


# --- clients


async def test_every_call_gets_its_own_answer(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    def handle(message: Message) -> None:
        served.post(answer(message, argument(message) * 2))

    served = await factory.create_agent_client(registration, handle)
    aid = registration.agent_id
    futures = [
        user.request(user.new_message(aid, ActionRequest.of("double", [n])))
        for n in range(1000)
    ]
    responses = await asyncio.gather(*futures)
    await served.close()

    assert [result(response) for response in responses] == [2 * n for n in range(1000)]


async def test_who_was_not_asked_answers_nobody(
    sender: ExchangeTransport, user: UserExchangeClient, agent: ExchangeTransport
) -> None:
    """Though it knows the tag, and has a request of its own that it may answer."""
    request = user.new_message(agent.mailbox_id, ActionRequest.of("add", [1]))
    future = user.request(request)
    (got,) = await receive(agent)
    await sender.send(call(sender.mailbox_id, sender.mailbox_id))
    (held,) = await receive(sender)

    body = ActionResponse(Payload(PICKLE, "forged"))
    source, dest = sender.mailbox_id, user.client_id
    await sender.send(Message(source, dest, request.tag, body, lease=held.lease))
    await sender.send(Message.create(source, dest, PingRequest()))
    await receive(sender)  # so the user has seen whatever came before that
    assert not future.done()

    await agent.send(answer(got, "true"))
    assert result(await future) == "true"


async def test_answers_may_come_in_any_order(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    requests: list[Message] = []

    async def handle(message: Message) -> None:
        requests.append(message)
        if len(requests) == 20:
            for request in reversed(requests):
                await served.send(answer(request, argument(request)))

    served = await factory.create_agent_client(registration, handle)
    aid = registration.agent_id
    futures = [
        user.request(user.new_message(aid, ActionRequest.of("echo", [n])))
        for n in range(20)
    ]
    responses = await asyncio.gather(*futures)
    await served.close()

    assert [result(response) for response in responses] == list(range(20))


@pytest.mark.parametrize("is_coroutine", [False, True])
async def test_a_handler_that_fails_fails_its_request_only(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
    caplog: pytest.LogCaptureFixture,
    is_coroutine: bool,
) -> None:
    def handle(message: Message) -> None:
        if argument(message) == "bad":
            raise ZeroDivisionError("in the handler")
        served.post(answer(message, "fine"))

    async def handle_later(message: Message) -> None:
        handle(message)

    served = await factory.create_agent_client(
        registration, handle_later if is_coroutine else handle
    )
    aid = registration.agent_id
    bad, good = [
        await user.request(user.new_message(aid, ActionRequest.of("x", [a])))
        for a in ("bad", "good")
    ]
    await served.close()

    body = bad.get_body()
    assert isinstance(body, UserErrorResponse)
    assert isinstance(body.get_exception(), ZeroDivisionError)
    assert result(good) == "fine"
    assert "in the handler" in caplog.text


async def test_a_call_to_who_is_terminated_meanwhile_fails(
    user: UserExchangeClient, registration: AgentRegistration[Any]
) -> None:
    request = user.new_message(registration.agent_id, ActionRequest.of("add", [1, 2]))
    future = user.request(request)
    await user.terminate(registration.agent_id)
    body = (await future).get_body()
    assert isinstance(body, AcademyErrorResponse)
    assert isinstance(body.get_exception(), AgentTerminatedError)

    with pytest.raises(AgentTerminatedError):
        await user.request(
            user.new_message(registration.agent_id, ActionRequest.of("add", [1, 2]))
        )


async def test_a_program_answers_pings_and_has_no_actions(
    factory: ExchangeFactory, user: UserExchangeClient
) -> None:
    async with await factory.create_user_client() as other:
        pong = await other.request(other.new_message(user.client_id, PingRequest()))
        refused = await other.request(
            other.new_message(user.client_id, ActionRequest.of("add", [1]))
        )

    assert isinstance(pong.get_body(), SuccessResponse)
    body = refused.get_body()
    assert isinstance(body, AcademyErrorResponse)
    assert isinstance(body.get_exception(), RequestsNotServedError)


async def test_a_users_mailbox_ends_with_its_client_and_an_agents_does_not(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    other = await factory.create_user_client()
    served = await factory.create_agent_client(registration, lambda message: None)
    await other.close()
    await other.close()
    await served.close()
    await served.close()

    assert await user.status(other.client_id) is MailboxStatus.TERMINATED
    assert await user.status(served.client_id) is MailboxStatus.ACTIVE


async def test_calls_in_flight_fail_when_their_client_closes(
    factory: ExchangeFactory, registration: AgentRegistration[Any]
) -> None:
    client = await factory.create_user_client()
    future = client.request(client.new_message(registration.agent_id, PingRequest()))
    await client.close()

    with pytest.raises(ExchangeError, match="closed"):
        await future
    with pytest.raises(ExchangeError, match="closed"):
        client.request(client.new_message(registration.agent_id, PingRequest()))


async def test_calls_in_flight_fail_when_their_mailbox_is_terminated(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    client = await factory.create_user_client()
    future = client.request(client.new_message(registration.agent_id, PingRequest()))
    await user.terminate(client.client_id)

    with pytest.raises(UserTerminatedError):
        await future
    await client.close()


async def test_an_agents_client_says_once_that_its_mailbox_was_lost(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    older = await factory.create_agent_client(registration, lambda message: None)
    losses: asyncio.Queue[Exception] = asyncio.Queue()
    older.on_lost = losses.put_nowait
    newer = await factory.create_agent_client(registration, lambda message: None)

    assert isinstance(await losses.get(), SupersededError)
    with pytest.raises(SupersededError):
        await older.send(older.new_message(user.client_id, PingRequest()))
    with pytest.raises(SupersededError):
        older.request(older.new_message(user.client_id, PingRequest()))
    await newer.request(newer.new_message(user.client_id, PingRequest()))
    late: list[Exception] = []
    older.on_lost = late.append  # who asks too late is told at once
    assert len(late) == 1
    await older.close()
    await newer.close()
    assert losses.empty()


async def test_what_comes_while_an_agents_client_closes_is_for_the_next(
    factory: ExchangeFactory,
    user: UserExchangeClient,
    registration: AgentRegistration[Any],
) -> None:
    """Each call is handled once: by the client that closes, or by the next one."""
    handled: list[int] = []
    early: list[Message] = []
    serving: list[AgentExchangeClient] = []

    def handle(message: Message) -> None:
        if not serving:
            early.append(message)  # its client is still being made
            return
        assert not message.redelivered
        handled.append(argument(message))
        serving[0].post(answer(message, argument(message)))

    async def take_over() -> None:
        serving.append(await factory.create_agent_client(registration, handle))
        while early:
            handle(early.pop(0))

    await take_over()
    futures = []
    for number in range(200):
        request = user.new_message(
            registration.agent_id, ActionRequest.of("echo", [number])
        )
        futures.append(user.request(request))
        if number % 50 == 49:
            await serving[0].close()
            serving.clear()
            await take_over()
    responses = await asyncio.gather(*futures)
    await serving[0].close()

    assert [result(response) for response in responses] == list(range(200))
    assert handled == list(range(200))


async def test_a_call_that_was_given_up_is_forgotten(
    sender: ExchangeTransport, user: UserExchangeClient, agent: ExchangeTransport
) -> None:
    request = user.new_message(agent.mailbox_id, ActionRequest.of("add", [1]))
    future = user.request(request)
    user.forget(request)
    future.cancel()
    (got,) = await receive(agent)
    await agent.send(answer(got, "nobody waits"))

    pong = user.request(user.new_message(user.client_id, PingRequest()))
    assert isinstance((await pong).get_body(), SuccessResponse)


async def test_names_travel_with_ids(
    factory: ExchangeFactory, user: UserExchangeClient
) -> None:
    async with await factory.create_user_client("Grace") as grace:
        assert grace.client_id.name == "Grace"
        assert isinstance(grace.client_id, UserId)
        assert str(grace.client_id) == "UserId<Grace>"
    unnamed: AgentId[Any] = AgentId(uid=uuid4())
    assert await user.status(unnamed) is MailboxStatus.MISSING
