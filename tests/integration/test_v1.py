"""Existing clients (protocol v1) at our exchange, by requests as v1 describes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from academy.agent import Agent, action as agent_action
from academy.exception import (
    AgentTerminatedError,
    MessageTooLargeError,
    RequestsNotServedError,
)
from academy.exchange import (
    AgentRegistration,
    HttpExchangeFactory,
    UserExchangeClient,
)
from academy.exchange.cloud import spawn_http_exchange
from academy.exchange.cloud.config import BackendConfig
from academy.exchange.cloud.namespaces import Namespaces
from academy.exchange.cloud.security.auth import (
    DEFAULT_NAMESPACE,
    Credentials,
)
from academy.exchange.cloud.security.open_authority import OpenAuthority
from academy.exchange.cloud.v1 import routes as v1_routes
from academy.exchange.mailbox import Limits
from academy.handle import Handle
from academy.identifier import AgentId
from academy.manager import Manager
from academy.message import ActionRequest
from academy.serialize import JSON
from tests.support.agents import Adder
from tests.support.server import ExchangeServer
from tests.support.v1_peer import (
    Entity,
    V1Client,
    action,
    decode,
    encode,
    entity,
    message,
    response,
    result_of,
)

LIMITS = {"max_message_bytes": 1_000_000, "max_mailbox_messages": 50}


class Calculator(Agent):
    """What v1 clients call."""

    def __init__(self) -> None:
        self.started = asyncio.Event()

    @agent_action
    async def add(self, a: Any, b: Any = 1) -> Any:
        return a + b

    @agent_action
    async def fail(self) -> None:
        raise KeyError("no such isotope")

    @agent_action
    async def hang(self) -> None:
        self.started.set()
        await asyncio.Event().wait()

    @agent_action
    async def wait_until_hanging(self) -> None:
        await self.started.wait()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    """One for all tests that leave it alive."""
    folder = tmp_path_factory.mktemp("exchange")
    with ExchangeServer(folder, limits=LIMITS) as exchange:
        yield exchange


@pytest.fixture
def token(exchange: ExchangeServer) -> str:
    return exchange.authority.user_token("tester")


@pytest.fixture(params=["", "/v1"])
def base(request: pytest.FixtureRequest, exchange: ExchangeServer) -> str:
    """The address of the exchange, in both forms."""
    return exchange.url + str(request.param)


@pytest.fixture
async def old_user(exchange: ExchangeServer, token: str) -> AsyncIterator[V1Client]:
    async with registered(exchange, token, "user") as client:
        yield client


@pytest.fixture
async def old_agent(exchange: ExchangeServer, token: str) -> AsyncIterator[V1Client]:
    async with registered(exchange, token, "agent") as client:
        yield client


@contextlib.asynccontextmanager
async def registered(
    exchange: ExchangeServer, token: str | None, role: str, *classes: str
) -> AsyncIterator[V1Client]:
    me = entity(role, f"old {role}")
    async with V1Client(exchange.url, me, token) as client:
        await client.register(*classes)
        yield client


@pytest.fixture
async def user(factory: HttpExchangeFactory) -> AsyncIterator[UserExchangeClient]:
    async with await factory.create_user_client("new user") as client:
        yield client


@contextlib.asynccontextmanager
async def calculator(factory: HttpExchangeFactory) -> AsyncIterator[Handle[Any]]:
    async with await Manager.from_exchange_factory(factory) as manager:
        yield await manager.launch(Calculator())


def as_entity(handle: Handle[Any]) -> Entity:
    uid = handle.agent_id.uid
    return {"uid": str(uid), "name": None, "role": "agent"}


def handle_of(
    client: V1Client, user: UserExchangeClient, **options: Any
) -> Handle[Any]:
    agent_id: AgentId[Any] = AgentId(uid=UUID(client.me["uid"]))
    return Handle(agent_id, exchange=user, ignore_context=True, **options)


# --- every route, by itself


async def test_a_mailbox_is_made_found_and_ended(base: str, token: str) -> None:
    async with V1Client(base, entity("agent", "old"), token) as client:
        ask = {"mailbox": client.mailbox}
        assert await client.must("GET", "/mailbox", **ask) == {"status": "MISSING"}
        await client.register("lab.Adder", "lab.Base")
        await client.register("lab.Adder", "lab.Base")
        assert await client.must("GET", "/mailbox", **ask) == {"status": "ACTIVE"}
        assert await client.must("DELETE", "/mailbox", **ask) == ""
        assert await client.must("DELETE", "/mailbox", **ask) == ""
        assert await client.must("GET", "/mailbox", **ask) == {"status": "TERMINATED"}
        nobody = json.dumps(entity("agent"))
        assert await client.must("DELETE", "/mailbox", mailbox=nobody) == ""


async def test_agents_are_found_by_class_and_by_base(
    exchange: ExchangeServer, token: str
) -> None:
    name = f"lab.{uuid4().hex}"
    async with (
        registered(exchange, token, "agent", name, "lab.Base") as first,
        registered(exchange, token, "agent", f"{name}.Fast", name) as second,
        registered(exchange, token, "agent", name) as gone,
    ):
        await gone.must("DELETE", "/mailbox", mailbox=gone.mailbox)

        async def found(agent: str, allow_subclasses: bool) -> set[str]:
            content = await first.must(
                "GET", "/discover", agent=agent, allow_subclasses=allow_subclasses
            )
            return set(filter(None, content["agent_ids"].split(",")))

        assert await found(name, True) == {first.me["uid"], second.me["uid"]}
        assert await found(name, False) == {first.me["uid"]}
        assert await found("no.such.Agent", True) == set()


async def test_heartbeats_tell_how_long_an_owner_was_silent(
    old_agent: V1Client,
) -> None:
    ask = {"mailbox": old_agent.mailbox}
    heartbeat = await old_agent.must("GET", "/mailbox/heartbeat", **ask)
    assert heartbeat == {"heartbeat": None}
    assert await old_agent.must("POST", "/mailbox/heartbeat", **ask) == ""
    heartbeat = await old_agent.must("GET", "/mailbox/heartbeat", **ask)
    assert heartbeat["heartbeat"] >= 0


async def test_messages_of_a_mailbox_are_counted(
    old_user: V1Client, old_agent: V1Client
) -> None:
    for number in range(3):
        await old_user.send(action(old_user.me, old_agent.me, "add", number))
    request = await old_agent.receive()
    await old_agent.send(response(request, kind="success-response"))

    stats = await old_user.must("GET", "/mailbox/stats", mailbox=old_agent.mailbox)

    assert stats == {
        "incoming": 3,
        "outgoing": 1,
        "completed": 1,
        "in_progress": 2,
        "queued": 0,
    }


async def test_mailboxes_cannot_be_shared_yet_and_the_answer_says_so(
    old_agent: V1Client,
) -> None:
    ask = {"mailbox": old_agent.mailbox}
    shared = await old_agent.must("GET", "/mailbox/share", **ask)
    assert shared == {"group_ids": []}
    for method in ("POST", "DELETE"):
        status, text = await old_agent.ask(
            method, "/mailbox/share", group_id=str(uuid4()), **ask
        )
        assert status == 403
        assert "shares no mailboxes" in text


async def test_a_message_is_handed_out_once_and_then_there_is_none(
    base: str, exchange: ExchangeServer, token: str, old_user: V1Client
) -> None:
    async with V1Client(base, entity("agent"), token) as client:
        await client.register()
        sent = action(old_user.me, client.me, "add", 1, b=2)
        await old_user.send(sent)

        got = await client.receive()

        assert got["header"] == {
            "src": old_user.me,
            "dest": {**client.me, "name": None},
            "tag": sent["header"]["tag"],
            "label": sent["header"]["label"],
            "kind": "request",
            "protocol_version": "1.1",
        }
        assert got["body"] == sent["body"]
        status, _ = await client.ask(
            "GET", "/message", mailbox=client.mailbox, timeout=0.05
        )
        assert status == 408


async def test_a_waiting_client_gets_what_comes(
    old_user: V1Client, old_agent: V1Client
) -> None:
    waiting = asyncio.create_task(old_agent.receive())
    await old_user.send(action(old_user.me, old_agent.me, "add", 1))

    assert (await waiting)["body"]["action"] == "add"


async def test_a_stream_carries_each_message_once_and_ends_without_one(
    old_user: V1Client, old_agent: V1Client
) -> None:
    for number in range(20):
        await old_user.send(action(old_user.me, old_agent.me, "add", number))

    got = [m async for m in old_agent.listen(timeout=0.2)]

    numbers = [decode(m["body"]["pargs"])[0] for m in got]
    assert numbers == list(range(20))
    assert [m async for m in old_agent.listen(timeout=0.05)] == []


# --- refusals

ME = json.dumps(entity("agent"))
BAD_REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/mailbox", {}),
    ("POST", "/mailbox", {"mailbox": "{"}),
    ("POST", "/mailbox", {"mailbox": '{"uid": "7", "role": "agent"}'}),
    ("POST", "/mailbox", {"mailbox": json.dumps({**entity("agent"), "role": "king"})}),
    ("POST", "/mailbox", {"mailbox": ME, "agent": 7}),
    ("GET", "/mailbox", {}),
    ("DELETE", "/mailbox", {}),
    ("PUT", "/message", {}),
    ("PUT", "/message", {"message": "nonsense"}),
    ("PUT", "/message", {"message": "{}"}),
    ("GET", "/message", {}),
    ("GET", "/message", {"mailbox": ME, "timeout": 0}),
    ("GET", "/message", {"mailbox": ME, "timeout": -1}),
    ("GET", "/message", {"mailbox": ME, "timeout": 1e9}),
    ("GET", "/message", {"mailbox": ME, "timeout": "soon"}),
    ("GET", "/mailbox/listen", {}),
    ("GET", "/mailbox/listen", {"mailbox": ME, "timeout": 0}),
    ("GET", "/discover", {"allow_subclasses": True}),
    ("GET", "/discover", {"agent": "lab.Adder"}),
    ("POST", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/stats", {}),
    ("GET", "/mailbox/share", {}),
]


@pytest.mark.parametrize(("method", "path", "parameters"), BAD_REQUESTS)
async def test_a_missing_or_senseless_parameter_is_400(
    old_user: V1Client, method: str, path: str, parameters: dict[str, Any]
) -> None:
    status, text = await old_user.ask(method, path, **parameters)

    assert status == 400
    assert text


async def test_a_body_that_is_no_json_object_is_400(
    exchange: ExchangeServer, token: str
) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for body in (b"{", b"[]", b"[" * 100_000):
            async with http.get(exchange.url + "/mailbox", data=body) as r:
                assert r.status == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"body": {"kind": "dance-request"}},
        {"body": {"kind": "action-request", "action": "add"}},
        {"body": {"kind": "success-response"}},
        {"body": {"kind": "shutdown-request", "terminate": "maybe"}},
        {"header": {"protocol_version": "2.0"}},
        {"header": {"tag": "none"}},
    ],
)
async def test_a_message_that_makes_no_sense_is_400_and_reaches_nobody(
    old_user: V1Client, changes: dict[str, Any]
) -> None:
    content = message(old_user.me, old_user.me, {"kind": "ping-request"})
    content["header"].update(changes.get("header", {}))
    content["body"] = changes.get("body", content["body"])

    status, _ = await old_user.ask("PUT", "/message", message=json.dumps(content))

    assert status == 400
    stats = await old_user.must("GET", "/mailbox/stats", mailbox=old_user.mailbox)
    assert stats["incoming"] == 0


EVERY_ROUTE: list[tuple[str, str]] = [
    ("POST", "/mailbox"),
    ("GET", "/mailbox"),
    ("DELETE", "/mailbox"),
    ("PUT", "/message"),
    ("GET", "/message"),
    ("GET", "/mailbox/listen"),
    ("GET", "/discover"),
    ("POST", "/mailbox/heartbeat"),
    ("GET", "/mailbox/heartbeat"),
    ("GET", "/mailbox/stats"),
    ("POST", "/mailbox/share"),
    ("GET", "/mailbox/share"),
    ("DELETE", "/mailbox/share"),
]


@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE)
async def test_without_credentials_it_is_401_and_with_bad_ones_403(
    exchange: ExchangeServer, method: str, path: str
) -> None:
    for token, expected in ((None, 401), ("forged", 403)):
        async with V1Client(exchange.url, entity("user"), token) as client:
            status, _ = await client.ask(method, path, mailbox=client.mailbox)
            assert status == expected


async def test_another_persons_mailbox_is_403(
    exchange: ExchangeServer, old_agent: V1Client
) -> None:
    stranger = exchange.authority.user_token("stranger")
    async with V1Client(exchange.url, old_agent.me, stranger) as client:
        ping = message(client.me, client.me, {"kind": "ping-request"})
        for method, path, parameters in (
            ("POST", "/mailbox", {"mailbox": client.mailbox}),
            ("GET", "/message", {"mailbox": client.mailbox}),
            ("GET", "/mailbox/listen", {"mailbox": client.mailbox}),
            ("POST", "/mailbox/heartbeat", {"mailbox": client.mailbox}),
            ("PUT", "/message", {"message": json.dumps(ping)}),
        ):
            status, _ = await client.ask(method, path, **parameters)
            assert (path, status) == (path, 403)


async def test_a_mailboxs_token_opens_that_mailbox_only(
    exchange: ExchangeServer, old_agent: V1Client, old_user: V1Client
) -> None:
    token = exchange.authority.mailbox_token(
        UUID(old_agent.me["uid"]).bytes, Credentials("tester")
    )
    await old_user.send(message(old_user.me, old_agent.me, {"kind": "ping-request"}))
    async with V1Client(exchange.url, old_agent.me, token) as client:
        assert (await client.receive())["body"] == {"kind": "ping-request"}
    async with V1Client(exchange.url, old_user.me, token) as client:
        status, _ = await client.ask("GET", "/message", mailbox=client.mailbox)
        assert status == 403


async def test_an_unknown_mailbox_is_404(old_user: V1Client) -> None:
    nobody = json.dumps(entity("agent"))
    ping = message(old_user.me, entity("agent"), {"kind": "ping-request"})
    stray = message(entity("user"), old_user.me, {"kind": "ping-request"})
    for method, path, parameters in (
        ("GET", "/message", {"mailbox": nobody}),
        ("GET", "/mailbox/listen", {"mailbox": nobody}),
        ("POST", "/mailbox/heartbeat", {"mailbox": nobody}),
        ("GET", "/mailbox/heartbeat", {"mailbox": nobody}),
        ("GET", "/mailbox/stats", {"mailbox": nobody}),
        ("PUT", "/message", {"message": json.dumps(ping)}),
        ("PUT", "/message", {"message": json.dumps(stray)}),
    ):
        status, _ = await old_user.ask(method, path, **parameters)
        assert (path, status) == (path, 404)


async def test_a_terminated_mailbox_is_419(
    old_user: V1Client, old_agent: V1Client
) -> None:
    await old_user.must("DELETE", "/mailbox", mailbox=old_agent.mailbox)
    ping = message(old_user.me, old_agent.me, {"kind": "ping-request"})
    for path, parameters in (
        ("/message", {"mailbox": old_agent.mailbox}),
        ("/mailbox/listen", {"mailbox": old_agent.mailbox}),
    ):
        status, _ = await old_agent.ask("GET", path, **parameters)
        assert status == 419
    status, _ = await old_user.ask("PUT", "/message", message=json.dumps(ping))
    assert status == 419


async def test_what_is_too_large_is_413_and_a_full_mailbox_is_429(
    old_user: V1Client, old_agent: V1Client
) -> None:
    for size in (1_000_000, 5_000_000):
        big = action(old_user.me, old_agent.me, "add", bytes(size))
        status, _ = await old_user.ask("PUT", "/message", message=json.dumps(big))
        assert status == 413
    for _ in range(50):
        await old_user.send(
            message(old_user.me, old_agent.me, {"kind": "ping-request"})
        )
    one = message(old_user.me, old_agent.me, {"kind": "ping-request"})
    status, _ = await old_user.ask("PUT", "/message", message=json.dumps(one))
    assert status == 429


async def test_an_insecure_exchange_asks_v1_clients_for_nothing() -> None:
    with spawn_http_exchange(insecure=True) as factory:
        async with V1Client(factory.url, entity("user")) as client:
            await client.register()
            await client.send(message(client.me, client.me, {"kind": "ping-request"}))
            assert (await client.receive())["body"] == {"kind": "ping-request"}


# --- v1 programs and our agents


@pytest.mark.parametrize("serialization", ["pickle", "json"])
async def test_a_v1_program_calls_our_agent(
    factory: HttpExchangeFactory, old_user: V1Client, serialization: str
) -> None:
    async with calculator(factory) as agent:
        dest = as_entity(agent)
        how = {"serialization": serialization}
        for arguments, keywords, expected in (
            ([1], {}, 2),
            ([1], {"b": 2}, 3),
            ([], {"a": "x", "b": "y"}, "xy"),
        ):
            request = action(old_user.me, dest, "add", *arguments, **how, **keywords)
            answer = await old_user.call(request)
            assert answer["body"]["serialization"] == serialization
            assert result_of(answer) == expected
        for kind in ("ping-request",):
            answer = await old_user.call(message(old_user.me, dest, {"kind": kind}))
            assert answer["body"] == {"kind": "success-response"}


async def test_an_array_reaches_a_v1_program_as_a_plain_pickle(
    factory: HttpExchangeFactory, old_user: V1Client
) -> None:
    async with calculator(factory) as agent:
        array = np.arange(20_000.0)
        request = action(old_user.me, as_entity(agent), "add", array, b=array)
        result = result_of(await old_user.call(request))

    assert (result == 2 * array).all()
    result[0] = 1  # it is writable, too


async def test_a_v1_program_gets_an_exception_as_it_was_raised(
    factory: HttpExchangeFactory, old_user: V1Client
) -> None:
    async with calculator(factory) as agent:
        request = action(old_user.me, as_entity(agent), "fail")
        body = (await old_user.call(request))["body"]
        assert (body["kind"], body["serialization"]) == (
            "user-error-response",
            "pickle",
        )
        error = decode(body["exception"])
        assert isinstance(error, KeyError)
        assert error.args == ("no such isotope",)

        request = action(old_user.me, as_entity(agent), "fail", serialization="json")
        body = (await old_user.call(request))["body"]
        error = decode(body["exception"], "json")
        assert error["__exception__"] is True
        assert "no such isotope" in error["exception_str"]


async def test_a_v1_program_cancels_an_action_of_ours(
    factory: HttpExchangeFactory, old_user: V1Client
) -> None:
    async with calculator(factory) as agent:
        dest = as_entity(agent)
        hanging = action(old_user.me, dest, "hang")
        await old_user.send(hanging)
        await old_user.call(action(old_user.me, dest, "wait_until_hanging"))
        target = {"kind": "cancel-request", "target_tag": hanging["header"]["tag"]}
        await old_user.send(message(old_user.me, dest, target))

        answers = [await old_user.receive() for _ in range(2)]

    bodies = {a["header"]["tag"]: a["body"] for a in answers}
    cancelled = bodies.pop(hanging["header"]["tag"])
    assert cancelled["kind"] == "academy-error-response"
    assert (cancelled["error_code"], cancelled["mailbox_id"]) == (3, None)
    assert list(bodies.values()) == [{"kind": "success-response"}]


async def test_a_v1_program_shuts_our_agent_down_and_learns_that_it_is_gone(
    factory: HttpExchangeFactory, old_user: V1Client
) -> None:
    async with await Manager.from_exchange_factory(factory) as manager:
        agent = await manager.launch(Calculator())
        dest = as_entity(agent)
        hanging = action(old_user.me, dest, "hang")
        await old_user.send(hanging)
        await old_user.call(action(old_user.me, dest, "wait_until_hanging"))
        await old_user.send(
            message(old_user.me, dest, {"kind": "shutdown-request", "terminate": True})
        )
        answers = [await old_user.receive() for _ in range(2)]
        await manager.wait([agent])

        kinds = {a["header"]["tag"]: a["body"]["kind"] for a in answers}
        assert kinds[hanging["header"]["tag"]] == "academy-error-response"
        status = await old_user.must("GET", "/mailbox", mailbox=json.dumps(dest))
        assert status == {"status": "TERMINATED"}


async def test_a_v1_program_that_waits_for_who_ends_is_answered_under_its_label(
    user: UserExchangeClient, old_user: V1Client
) -> None:
    registration = await user.register_agent(Adder)
    dest = {"uid": str(registration.agent_id.uid), "name": None, "role": "agent"}
    request = action(old_user.me, dest, "add", 1, 2)
    await old_user.send(request)
    await user.terminate(registration.agent_id)

    answer = await old_user.receive()

    assert answer["header"]["label"] == request["header"]["label"]
    assert answer["body"]["error_code"] == 0
    assert answer["body"]["mailbox_id"]["uid"] == dest["uid"]


# --- v1 agents and our programs


async def add(a: Any, b: Any = 1) -> Any:
    return a + b


async def fail() -> None:
    raise LookupError("in an old agent")


async def test_a_v1_agent_serves_our_handles(
    user: UserExchangeClient, old_agent: V1Client
) -> None:
    serving = asyncio.create_task(old_agent.serve({"add": add, "fail": fail}, 6))
    handle = handle_of(old_agent, user)
    large = np.arange(10_000.0)

    assert await handle.add(1, 2) == 3
    assert await handle.add(1, b=4) == 5
    assert (await handle.add(large, b=large) == 2 * large).all()
    assert await handle.ping() > 0
    with pytest.raises(LookupError, match="in an old agent"):
        await handle.fail()
    with pytest.raises(RequestsNotServedError, match="protocol v1"):
        await anext(handle.stream())
    in_json = handle_of(old_agent, user, request_serializer=JSON)
    assert await in_json.add("x", b="y") == "xy"

    bodies = [request["body"] for request in await serving]
    assert [body.get("serialization") for body in bodies].count("json") == 1


async def test_our_manager_finds_a_v1_agent_and_calls_it(
    exchange: ExchangeServer, factory: HttpExchangeFactory, token: str
) -> None:
    kind = f"lab.{uuid4().hex}"
    async with (
        registered(exchange, token, "agent", kind) as old,
        await Manager.from_exchange_factory(factory) as manager,
    ):
        serving = asyncio.create_task(old.serve({"add": add}, 20))
        (found,) = await manager.exchange_client.discover(kind)
        handle = manager.get_handle(found)
        results = await asyncio.gather(*(handle.add(n, b=n) for n in range(20)))
        await serving

    assert results == [2 * n for n in range(20)]


async def test_v1_programs_talk_to_each_other(
    old_user: V1Client, old_agent: V1Client
) -> None:
    serving = asyncio.create_task(old_agent.serve({"add": add, "fail": fail}, 2))
    request = action(old_user.me, old_agent.me, "add", 1, b=2)
    failing = action(old_user.me, old_agent.me, "fail")

    assert result_of(await old_user.call(request)) == 3
    error = await old_user.call(failing)

    assert isinstance(decode(error["body"]["exception"]), LookupError)
    first, second = await serving
    assert (first["body"], second["body"]) == (request["body"], failing["body"])


async def test_who_was_not_asked_answers_no_v1_program_and_as_none(
    exchange: ExchangeServer, token: str, old_user: V1Client, old_agent: V1Client
) -> None:
    request = action(old_user.me, old_agent.me, "add", 1)
    await old_user.send(request)
    held = await old_agent.receive()
    true, forged = (
        {
            "kind": "action-response",
            "serialization": "pickle",
            "result": ["__serialized__", encode(result)],
        }
        for result in ("true", "forged")
    )
    async with registered(exchange, token, "agent") as eve:
        answer = response(request, **forged)
        answer["header"]["src"] = eve.me
        await eve.send(answer)
        await eve.send(message(eve.me, old_user.me, {"kind": "ping-request"}))
        assert (await old_user.receive())["body"]["kind"] == "ping-request"
    await old_agent.send(response(held, **true))

    assert result_of(await old_user.receive()) == "true"


async def test_calls_to_a_v1_agent_that_ends_fail(
    user: UserExchangeClient, old_agent: V1Client
) -> None:
    handle = handle_of(old_agent, user)
    calls = [asyncio.create_task(handle.add(n)) for n in range(2)]
    await old_agent.receive()
    await old_agent.must("DELETE", "/mailbox", mailbox=old_agent.mailbox)

    for call in calls:
        with pytest.raises(AgentTerminatedError):
            await call


# --- what is kept, and for whom


async def test_a_stream_that_is_cut_loses_nothing(
    old_user: V1Client, old_agent: V1Client
) -> None:
    async with aclosing(old_agent.listen()) as stream:
        await old_user.send(action(old_user.me, old_agent.me, "add", 0))
        async for _ in stream:
            break
    for number in range(1, 4):
        await old_user.send(action(old_user.me, old_agent.me, "add", number))

    got = [await old_agent.receive() for _ in range(3)]

    assert [decode(m["body"]["pargs"])[0] for m in got] == [1, 2, 3]


async def test_a_newer_stream_ends_an_older_one(
    old_user: V1Client, old_agent: V1Client
) -> None:
    older, newer = old_agent.listen(), old_agent.listen()
    await old_user.send(action(old_user.me, old_agent.me, "add", 1))
    await anext(older)
    waiting = asyncio.ensure_future(anext(newer))
    with pytest.raises(StopAsyncIteration):
        await anext(older)
    await old_user.send(action(old_user.me, old_agent.me, "add", 2))
    assert decode((await waiting)["body"]["pargs"]) == (2,)
    await newer.aclose()


async def test_a_request_that_is_sent_again_comes_once(
    old_user: V1Client, old_agent: V1Client
) -> None:
    request = action(old_user.me, old_agent.me, "add", 1)
    await asyncio.gather(*(old_user.send(request) for _ in range(3)))
    await old_user.send(request)
    got = await old_agent.receive()
    status, _ = await old_agent.ask(
        "GET", "/message", mailbox=old_agent.mailbox, timeout=0.05
    )
    assert status == 408
    answer = response(got, kind="success-response")
    for _ in range(3):
        await old_agent.send(answer)

    (only,) = [m async for m in old_user.listen(timeout=0.2)]
    assert only["header"]["tag"] == request["header"]["tag"]


async def test_a_newer_protocol_takes_a_mailbox_over_and_keeps_it(
    factory: HttpExchangeFactory, old_user: V1Client, old_agent: V1Client
) -> None:
    await old_user.send(action(old_user.me, old_agent.me, "add", 1))
    await old_user.send(action(old_user.me, old_agent.me, "add", 2))
    await old_agent.receive()
    agent_id: AgentId[Any] = AgentId(uid=UUID(old_agent.me["uid"]))

    token = factory.find_token()
    newer = await factory.connect(AgentRegistration(agent_id, token))
    async with aclosing(newer.listen()) as listener:
        first = await anext(listener)
        second = await anext(listener)
    newer.release(second)
    status, text = await old_agent.ask("GET", "/message", mailbox=old_agent.mailbox)
    await newer.close()

    assert first.redelivered
    assert isinstance(second.get_body(), ActionRequest)
    assert status == 403
    assert "newer protocol" in text
    again = await old_agent.receive()
    assert decode(again["body"]["pargs"]) == (2,)


async def test_an_owner_that_is_silent_for_long_leaves_its_messages_to_the_store() -> (
    None
):
    namespaces = Namespaces(BackendConfig(kind="memory"), Limits())
    broker = await namespaces.broker(DEFAULT_NAMESPACE)
    app = web.Application()
    v1_routes.add_routes(app, namespaces, OpenAuthority(), grace=0.05)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with V1Client(url, entity("agent")) as client:
        await client.register()
        for number in range(3):
            await client.send(action(client.me, client.me, "add", number))
        await client.receive()
        uid = UUID(client.me["uid"]).bytes
        while broker.silence(uid) == 0.0:
            await asyncio.sleep(0.01)
        got = [m async for m in client.listen(timeout=0.2)]
    await runner.cleanup()
    await namespaces.close()

    assert [decode(m["body"]["pargs"])[0] for m in got] == [1, 2]


async def test_a_stop_ends_streams_and_waiting_requests_in_order(
    tmp_path: Path,
) -> None:
    with ExchangeServer(tmp_path) as exchange:
        token = exchange.authority.user_token("tester")
        async with (
            registered(exchange, token, "user") as old_user,
            registered(exchange, token, "agent") as old_agent,
        ):
            stream = old_agent.listen()
            await old_user.send(action(old_user.me, old_agent.me, "add", 1))
            await anext(stream)
            waiting = asyncio.create_task(
                old_user.ask("GET", "/message", mailbox=old_user.mailbox)
            )
            reading = asyncio.ensure_future(anext(stream))
            while not await is_attached(old_agent, old_user):
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(exchange.stop) == 0
            with pytest.raises(StopAsyncIteration):
                await reading
            status, _ = await waiting
            assert status in (408, 503)


async def is_attached(asking: V1Client, other: V1Client) -> bool:
    answer = await asking.must("GET", "/mailbox/heartbeat", mailbox=other.mailbox)
    return bool(answer["heartbeat"] == 0.0)


async def stop_and_start(exchange: ExchangeServer) -> None:
    await asyncio.to_thread(exchange.stop)
    await asyncio.to_thread(exchange.start)


@pytest.mark.parametrize("restart", [stop_and_start, ExchangeServer.restart])
async def test_a_restart_of_the_exchange_loses_no_message_of_v1_clients(
    tmp_path: Path, restart: Callable[[ExchangeServer], Awaitable[None]]
) -> None:
    """Neither an orderly one, nor kill -9."""
    with ExchangeServer(tmp_path) as exchange:
        token = exchange.authority.user_token("tester")
        async with (
            registered(exchange, token, "user") as old_user,
            registered(exchange, token, "agent") as old_agent,
        ):
            working = action(old_user.me, old_agent.me, "add", 1)
            await old_user.send(working)
            got = await old_agent.receive()
            await restart(exchange)
            # It answers what it was given before, and gets only what came since.
            await old_agent.send(response(got, kind="success-response"))
            waiting = action(old_user.me, old_agent.me, "add", 2)
            await old_user.send(waiting)
            await restart(exchange)
            assert (await old_user.receive())["header"]["tag"] == working["header"][
                "tag"
            ]
            got = await old_agent.receive()
            assert got["header"]["tag"] == waiting["header"]["tag"]
            await old_agent.send(response(got, kind="success-response"))
            assert (await old_user.receive())["header"]["tag"] == got["header"]["tag"]


# --- nonsense

SENSELESS: list[Any] = [
    *(None, True, 0, -1, 1e400, "", "x" * 300, "\ud800", "\n", [], {}, [[]]),
    *("null", "[]", "7", '"text"', "{}", '{"uid": 7, "role": "agent"}'),
    json.dumps({"uid": str(uuid4()), "role": "agent", "name": 7}),
    json.dumps({"uid": str(uuid4()), "role": "agent", "name": "\ud800"}),
    json.dumps({"header": [], "body": {}}),
    json.dumps({"header": {}, "body": {"kind": []}}),
    "[" * 100_000,
]


@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE)
async def test_nonsense_is_the_clients_fault(
    old_user: V1Client, method: str, path: str
) -> None:
    right = {
        "mailbox": old_user.mailbox,
        "message": json.dumps(
            message(old_user.me, old_user.me, {"kind": "ping-request"})
        ),
        "timeout": 0.01,
        "agent": "lab.Adder",
        "allow_subclasses": True,
        "group_id": "lab",
    }
    for name in right:
        for value in SENSELESS:
            if (name, value) == ("timeout", None):
                continue  # it may be left out
            status, text = await old_user.ask(method, path, **{**right, name: value})
            assert status in (200, 400, 403, 404, 408, 419), (name, value, text)


async def test_what_comes_in_parts_reaches_v1_programs_in_one_piece(
    factory: HttpExchangeFactory,
    user: UserExchangeClient,
    old_user: V1Client,
    old_agent: V1Client,
) -> None:
    row = np.arange(300.0)
    async with calculator(factory) as agent:
        request = action(old_user.me, as_entity(agent), "add", row, b=row[:, None])
        table = result_of(await old_user.call(request))
        assert (table == row + row[:, None]).all()

    calling = asyncio.create_task(handle_of(old_agent, user).add(table))
    request = await old_agent.receive()
    (array,) = decode(request["body"]["pargs"])
    calling.cancel()
    assert (array == table).all()


async def test_a_caller_learns_what_v1_cannot_carry(tmp_path: Path) -> None:
    with ExchangeServer(tmp_path) as exchange:
        token = exchange.authority.user_token("tester")
        async with (
            registered(exchange, token, "agent") as old,
            await exchange.factory().create_user_client() as user,
        ):
            reading = asyncio.create_task(old.serve({"add": add}, 1))
            handle = handle_of(old, user)
            with pytest.raises(MessageTooLargeError):
                await handle.add(np.zeros(101_000_000, np.uint8))
            assert await handle.add(1, b=2) == 3
            await reading
