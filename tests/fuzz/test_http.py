"""Requests of any kind to a hosted exchange are answered, and never with a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.support.server import ExchangeServer
from tests.support.v1_peer import action, entity, message

PATIENCE = 30
"""Seconds after which a request without an answer hangs."""
USER, AGENT = entity("user"), entity("agent")
PATHS = [
    "/mailbox",
    "/message",
    "/mailbox/listen",
    "/discover",
    "/mailbox/heartbeat",
    "/mailbox/stats",
    "/mailbox/share",
]
WAITING = {"/message", "/mailbox/listen"}


class Target:
    """An exchange, and the loop in which it is asked."""

    def __init__(self, server: ExchangeServer) -> None:
        self.server = server
        self.runner = asyncio.Runner()
        self.token = server.authority.user_token("tester")
        self.http: aiohttp.ClientSession = self.runner.run(self._open())
        for who in (USER, AGENT):
            parameters = {"mailbox": json.dumps(who)}
            body = json.dumps(parameters).encode()
            assert self.ask("POST", "/mailbox", body, {}) == 200

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession()

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Make a request; return its status."""
        headers = {"Authorization": f"Bearer {self.token}", **headers}

        async def answer() -> int:
            async with (
                asyncio.timeout(PATIENCE),
                self.http.request(
                    method, self.server.url + path, data=body, headers=headers
                ) as r,
            ):
                await r.read()
                return r.status

        return self.runner.run(answer())

    def say(self, data: bytes, *, eof: bool = True) -> bytes:
        """Send bytes to the port; return the first line that the exchange says."""

        async def answer() -> bytes:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.server.port
            )
            try:
                writer.write(data)
                if eof:
                    writer.write_eof()
                async with asyncio.timeout(PATIENCE):
                    return await reader.readline()
            except ConnectionError:
                return b""
            finally:
                writer.close()

        return self.runner.run(answer())

    def lives(self) -> bool:
        assert self.server.process is not None
        body = json.dumps({"mailbox": json.dumps(USER)}).encode()
        return self.ask("GET", "/mailbox", body, {}) == 200 and (
            self.server.process.poll() is None
        )

    def close(self) -> None:
        self.runner.run(self.http.close())
        self.runner.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ExchangeServer(tmp_path_factory.mktemp("exchange")) as server:
        target = Target(server)
        yield target
        assert target.lives()
        target.close()
        log = server.log.read_text()
    # What is no HTTP ends in the library's parser, which says so at length.
    assert "academy/exchange/" not in log, log


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


texts = st.text(max_size=30)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner),
    max_leaves=6,
)
owners = st.sampled_from([USER, AGENT, entity("user"), {**USER, "role": "agent"}])
spoiled = st.builds(
    lambda owner, key, value: {**owner, key: value},
    owners,
    st.sampled_from(["uid", "name", "role", "more"]),
    anything,
)
mailboxes = (owners | spoiled).map(json.dumps) | anything
requests = st.builds(
    lambda src, dest, number: action(src, dest, "add", number),
    owners | spoiled,
    owners | spoiled,
    st.integers(),
) | st.builds(
    lambda src, dest, body, header: message(src, dest, body, **header),
    owners | spoiled,
    owners | spoiled,
    st.dictionaries(texts | st.just("kind"), anything | st.just("ping-request")),
    st.dictionaries(
        st.sampled_from(["tag", "label", "kind", "protocol_version"]), anything
    ),
)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "mailbox": mailboxes,
        "message": requests.map(json.dumps) | anything,
        "agent": anything,
        "allow_subclasses": anything,
        "group_id": anything,
        "timeout": anything,
    },
)
methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)
headers = st.dictionaries(
    st.sampled_from(["Content-Type", "Authorization", "academy_version", "Accept"])
    | names,
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    max_size=3,
)
FRAMING = {"host", "content-length", "transfer-encoding", "connection", "expect"}
FRAMING |= {"upgrade", "content-encoding"}


def patient(content: Any) -> bool:
    """Whether somebody asks to wait for long, which is no fault."""
    timeout = content.get("timeout") if isinstance(content, dict) else None
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    return timeout is None or (is_number and 0.1 < timeout <= 3600)


@fuzz(400)
@given(methods, st.sampled_from(["", "/v1"]), st.sampled_from(PATHS), parameters)
def test_any_parameters_are_answered(
    target: Target, method: str, prefix: str, path: str, content: dict[str, Any]
) -> None:
    if path in WAITING and patient(content):
        content["timeout"] = 0.01
    status = target.ask(method, prefix + path, json.dumps(content).encode(), {})

    assert status < 500


@fuzz(200)
@given(methods, st.sampled_from(PATHS) | texts, st.binary(max_size=200), headers)
def test_any_body_and_headers_are_answered(
    target: Target, method: str, path: str, body: bytes, extra: dict[str, str]
) -> None:
    extra = {k: v for k, v in extra.items() if k.lower() not in FRAMING}
    path = "/" + path.lstrip("/").replace("#", "").replace("?", "")

    assert target.ask(method, path, body, extra) < 500


@fuzz(100)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "Academy-Session",
                "Academy-Protocol",
                "Upgrade",
                "Connection",
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Version",
                "Sec-WebSocket-Protocol",
            ]
        ),
        st.sampled_from(["2", "13", "websocket", "Upgrade", "ab" * 16, "x" * 100, ""])
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    )
)
def test_any_handshake_is_answered(target: Target, handshake: dict[str, str]) -> None:
    lines = ["GET /v2 HTTP/1.1", "Host: here", f"Authorization: Bearer {target.token}"]
    lines += [f"{name}: {value}" for name, value in handshake.items()]
    answer = target.say("\r\n".join([*lines, "", ""]).encode(), eof=False)

    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 101")), answer[:100]


@fuzz(200)
@given(
    st.binary(max_size=300)
    | st.builds(
        lambda head, body: head.encode() + b"\r\n\r\n" + body,
        st.sampled_from(
            [
                "PUT /message HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked",
                "PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: 100000",
                "PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: -1",
                "GET /mailbox HTTP/9.9\r\nHost: x",
                "GET /mailbox HTTP/1.0",
            ]
        ),
        st.binary(max_size=100),
    )
)
def test_any_bytes_are_answered_or_hung_up_on(target: Target, data: bytes) -> None:
    assert b" 500 " not in target.say(data)
