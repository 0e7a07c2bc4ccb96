"""Each status and reply that protocol v1 promises, for what no other test asks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest

from tests.support.server import ExchangeServer
from tests.support.v1_peer import V1Client, entity, message, response

PING = {"kind": "ping-request"}


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeServer]:
    """One for all tests."""
    limits = {"max_message_bytes": 10_000}
    with ExchangeServer(tmp_path_factory.mktemp("exchange"), limits=limits) as exchange:
        yield exchange


@pytest.fixture(params=["", "/v1"])
def base(request: pytest.FixtureRequest, exchange: ExchangeServer) -> str:
    """The address of the exchange, in both forms."""
    return exchange.url + str(request.param)


@pytest.fixture
async def user(base: str, exchange: ExchangeServer) -> AsyncIterator[V1Client]:
    token = exchange.authority.user_token("tester")
    async with V1Client(base, entity("user"), token) as client:
        await client.register()
        yield client


@pytest.fixture
async def agent(base: str, exchange: ExchangeServer) -> AsyncIterator[V1Client]:
    token = exchange.authority.user_token("tester")
    async with V1Client(base, entity("agent"), token) as client:
        await client.register("lab.Adder")
        yield client


async def statuses(
    client: V1Client, *requests: tuple[str, str, dict[str, Any]]
) -> dict[str, int]:
    found = {}
    for method, path, parameters in requests:
        found[f"{method} {path}"], _ = await client.ask(method, path, **parameters)
    return found


def put(content: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return "PUT", "/message", {"message": json.dumps(content)}


async def test_an_expired_token_is_403_so_that_its_owner_gets_a_fresh_one(
    base: str, exchange: ExchangeServer
) -> None:
    expired = exchange.authority.user_token("tester", lifetime=-5)
    async with V1Client(base, entity("user"), expired) as client:
        status, text = await client.ask("GET", "/mailbox", mailbox=client.mailbox)

    assert status == 403
    assert "expired" in text


async def test_whatever_is_not_a_bearer_token_is_no_credentials(base: str) -> None:
    for header in ("Basic eDp5", "Bearer", ""):
        async with V1Client(base, entity("user")) as client:
            client._http.headers["Authorization"] = header
            status, _ = await client.ask("GET", "/mailbox", mailbox=client.mailbox)
        assert status == 401, header


async def test_sharing_of_an_unknown_mailbox_is_404(user: V1Client) -> None:
    nobody = {"mailbox": json.dumps(entity("agent"))}
    group = {"group_id": str(UUID(int=1))}

    found = await statuses(
        user,
        ("GET", "/mailbox/share", nobody),
        ("POST", "/mailbox/share", nobody | group),
        ("DELETE", "/mailbox/share", nobody | group),
    )

    assert set(found.values()) == {404}, found


async def test_sharing_without_a_group_is_400(user: V1Client) -> None:
    mine = {"mailbox": user.mailbox}

    found = await statuses(
        user, ("POST", "/mailbox/share", mine), ("DELETE", "/mailbox/share", mine)
    )

    assert set(found.values()) == {400}, found


async def test_who_is_terminated_gets_419_wherever_it_speaks(
    user: V1Client, agent: V1Client
) -> None:
    mine = {"mailbox": agent.mailbox}
    await user.must("DELETE", "/mailbox", **mine)

    found = await statuses(
        agent,
        ("GET", "/message", mine),
        ("GET", "/mailbox/listen", mine),
        ("POST", "/mailbox/heartbeat", mine),
        put(message(agent.me, user.me, PING)),
    )

    assert set(found.values()) == {419}, found


async def test_who_is_terminated_can_be_asked_about_and_ended_again(
    user: V1Client, agent: V1Client
) -> None:
    mine = {"mailbox": agent.mailbox}
    await user.must("DELETE", "/mailbox", **mine)

    found = await statuses(
        user,
        ("GET", "/mailbox", mine),
        ("GET", "/mailbox/heartbeat", mine),
        ("GET", "/mailbox/stats", mine),
        ("DELETE", "/mailbox", mine),
    )

    assert set(found.values()) == {200}, found
    assert (await user.must("GET", "/mailbox", **mine)) == {"status": "TERMINATED"}
    discovered = await user.must(
        "GET", "/discover", agent="lab.Adder", allow_subclasses=True
    )
    assert agent.me["uid"] not in discovered["agent_ids"]


async def test_an_answer_to_who_is_terminated_is_taken_and_dropped(
    user: V1Client, agent: V1Client
) -> None:
    await user.send(message(user.me, agent.me, PING))
    request = await agent.receive()
    await user.must("DELETE", "/mailbox", mailbox=user.mailbox)

    await agent.send(response(request, kind="success-response"))


async def test_a_message_up_to_the_limit_is_taken_and_one_above_is_413(
    user: V1Client, agent: V1Client
) -> None:
    def sized(size: int) -> dict[str, Any]:
        blob = json.dumps(["x" * size])
        body = {
            "kind": "action-request",
            "action": "add",
            "serialization": "json",
            "result_serialization": None,
            "exception_serialization": None,
            "pargs": blob,
            "kargs": "{}",
        }
        return message(user.me, agent.me, body)

    await user.send(sized(9_000))
    assert len((await agent.receive())["body"]["pargs"]) == 9_004
    found = await statuses(user, put(sized(10_000)))
    assert set(found.values()) == {413}


async def test_a_request_without_a_label_is_answered_without_one(
    user: V1Client, agent: V1Client
) -> None:
    await user.send(message(user.me, agent.me, PING, label=None))
    request = await agent.receive()
    assert request["header"]["label"] is None
    await agent.send(response(request, kind="success-response"))

    answer = await user.receive()

    assert answer["header"]["label"] is None
    assert answer["header"]["tag"] == request["header"]["tag"]


async def test_who_says_no_version_of_its_own_and_a_later_minor_protocol_is_served(
    user: V1Client, agent: V1Client
) -> None:
    content = message(user.me, agent.me, PING, protocol_version="1.7")
    del content["header"]["academy_version"]
    await user.send(content)

    assert (await agent.receive())["body"] == PING


@pytest.mark.parametrize("terminate", [None, True, False])
async def test_a_shutdown_request_keeps_what_it_says(
    user: V1Client, agent: V1Client, terminate: bool | None
) -> None:
    body = {"kind": "shutdown-request", "terminate": terminate}
    await user.send(message(user.me, agent.me, body))

    assert (await agent.receive())["body"] == body


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5])
async def test_each_error_code_crosses_as_it_is(
    user: V1Client, agent: V1Client, code: int
) -> None:
    await user.send(message(user.me, agent.me, PING))
    request = await agent.receive()
    whose = agent.me if code == 0 else None
    body = {"kind": "academy-error-response", "error_code": code, "mailbox_id": whose}
    await agent.send(response(request, **body))

    answered = (await user.receive())["body"]

    assert answered["kind"] == "academy-error-response"
    assert answered["error_code"] == code
    if whose is not None:
        assert answered["mailbox_id"]["uid"] == whose["uid"]


async def test_a_stream_says_when_to_come_back_and_one_event_is_one_message(
    user: V1Client, agent: V1Client
) -> None:
    for _ in range(3):
        await user.send(message(user.me, agent.me, PING))
    parameters = {"mailbox": agent.mailbox, "timeout": 0.3}
    url = agent.url + "/mailbox/listen"
    async with agent._http.get(url, json=parameters) as r:
        assert r.status == 200
        assert r.content_type == "text/event-stream"
        text = await r.text()

    events = [event.splitlines() for event in text.split("\n\n") if event]
    assert events[0][0].startswith("retry: ")
    assert int(events[0][0].removeprefix("retry: ")) > 0
    data = [event for event in events if event[0].startswith("data: ")]
    assert [len(event) for event in data] == [1, 1, 1]
    bodies = [json.loads(event[0].removeprefix("data: "))["body"] for event in data]
    assert bodies == [PING] * 3


async def test_parameters_in_the_address_are_not_looked_at(user: V1Client) -> None:
    async with user._http.get(
        user.url + "/mailbox", params={"mailbox": user.mailbox}
    ) as r:
        assert r.status == 400


async def test_methods_that_v1_does_not_have_are_405(user: V1Client) -> None:
    for method, path in (("PATCH", "/mailbox"), ("POST", "/message")):
        status, _ = await user.ask(method, path, mailbox=user.mailbox)
        assert status == 405


async def test_empty_answers_are_empty(user: V1Client, agent: V1Client) -> None:
    mine = {"mailbox": user.mailbox}
    ping = json.dumps(message(user.me, agent.me, PING))
    assert await user.must("POST", "/mailbox", **mine) == ""
    assert await user.must("POST", "/mailbox/heartbeat", **mine) == ""
    assert await user.must("PUT", "/message", message=ping) == ""
    assert await user.must("DELETE", "/mailbox", **mine) == ""


async def test_a_body_in_another_encoding_than_utf_8_is_400(user: V1Client) -> None:
    async with user._http.get(user.url + "/mailbox", data=b'{"mailbox": "\xff"}') as r:
        assert r.status == 400
