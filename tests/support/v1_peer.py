"""Programs that speak protocol v1 and nothing newer, written from its description."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Self
from uuid import uuid4

import aiohttp

Entity = dict[str, Any]


def entity(role: str, name: str | None = None) -> Entity:
    return {"uid": str(uuid4()), "name": name, "role": role}


def encode(value: Any, serialization: str = "pickle") -> str:
    if serialization == "json":
        return json.dumps(value)
    return base64.b64encode(pickle.dumps(value)).decode()


def decode(text: str, serialization: str = "pickle") -> Any:
    if serialization == "json":
        return json.loads(text)
    return pickle.loads(base64.b64decode(text))


def message(
    src: Entity, dest: Entity, body: dict[str, Any], **header: Any
) -> dict[str, Any]:
    head = {
        "src": src,
        "dest": dest,
        "tag": str(uuid4()),
        "label": str(uuid4()),
        "kind": "request",
        "protocol_version": "1.1",
        "academy_version": "0.5.0",
        **header,
    }
    return {"header": head, "body": body}


def action(
    src: Entity,
    dest: Entity,
    name: str,
    *pargs: Any,
    serialization: str = "pickle",
    result_serialization: str | None = None,
    **kargs: Any,
) -> dict[str, Any]:
    body = {
        "kind": "action-request",
        "action": name,
        "serialization": serialization,
        "result_serialization": result_serialization,
        "exception_serialization": None,
        "pargs": encode(pargs, serialization),
        "kargs": encode(kargs, serialization),
    }
    return message(src, dest, body)


def response(request: dict[str, Any], **body: Any) -> dict[str, Any]:
    header = request["header"]
    return message(
        header["dest"],
        header["src"],
        body,
        tag=header["tag"],
        label=header["label"],
        kind="response",
    )


def result_of(answer: dict[str, Any]) -> Any:
    body = answer["body"]
    assert body["kind"] == "action-response", body
    mark, text = body["result"]
    assert mark == "__serialized__"
    return decode(text, body["serialization"])


class V1Client:
    """One mailbox at an exchange, by plain HTTP.

    Args:
        url: of the exchange, with or without `/v1`.
        me: whose mailbox it is.
        token: shown with each request.
    """

    def __init__(self, url: str, me: Entity, token: str | None = None) -> None:
        self.url = url
        self.me = me
        self.headers = {"academy_version": "0.5.0"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(headers=self.headers)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.close()

    async def ask(self, method: str, path: str, **parameters: Any) -> tuple[int, Any]:
        """Make a request with a JSON body; return its status and its JSON or text."""
        # Not json=, of which aiohttp warns when it is large.
        body = io.BytesIO(json.dumps(parameters).encode())
        headers = {"Content-Type": "application/json"}
        async with self._http.request(
            method, self.url + path, data=body, headers=headers
        ) as r:
            text = await r.text()
            if r.content_type == "application/json":
                return r.status, json.loads(text)
            return r.status, text

    async def must(self, method: str, path: str, **parameters: Any) -> Any:
        status, content = await self.ask(method, path, **parameters)
        assert status == 200, (status, content)
        return content

    @property
    def mailbox(self) -> str:
        return json.dumps(self.me)

    async def register(self, *classes: str) -> None:
        options = {"agent": ",".join(classes)} if classes else {}
        assert (
            await self.must("POST", "/mailbox", mailbox=self.mailbox, **options) == ""
        )

    async def send(self, content: dict[str, Any]) -> None:
        assert await self.must("PUT", "/message", message=json.dumps(content)) == ""

    async def receive(self, timeout: float = 30) -> dict[str, Any]:
        """Ask once for one message."""
        content = await self.must(
            "GET", "/message", mailbox=self.mailbox, timeout=timeout
        )
        message: dict[str, Any] = json.loads(content["message"])
        return message

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        await self.send(request)
        answer = await self.receive()
        assert answer["header"]["tag"] == request["header"]["tag"]
        assert answer["header"]["label"] == request["header"]["label"]
        assert answer["header"]["kind"] == "response"
        return answer

    async def listen(self, timeout: float = 30) -> AsyncGenerator[dict[str, Any], None]:
        """Read one stream of events until the server ends it."""
        parameters = {"mailbox": self.mailbox, "timeout": timeout}
        url = self.url + "/mailbox/listen"
        async with self._http.get(url, json=parameters) as r:
            assert r.status == 200, (r.status, await r.text())
            assert r.content_type == "text/event-stream"
            async for line in r.content:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    async def serve(
        self, actions: dict[str, Callable[..., Awaitable[Any]]], count: int
    ) -> list[dict[str, Any]]:
        """Be an agent, one request at a time, until so many were answered."""
        served = []
        async with asyncio.timeout(60), aclosing(self.listen()) as stream:
            async for request in stream:
                await self.send(await self._answer(request, actions))
                served.append(request)
                if len(served) == count:
                    break
        return served

    async def _answer(
        self, request: dict[str, Any], actions: dict[str, Callable[..., Awaitable[Any]]]
    ) -> dict[str, Any]:
        body = request["body"]
        if body["kind"] != "action-request":
            return response(request, kind="success-response")
        how = body["serialization"]
        back = body["result_serialization"] or how
        pargs, kargs = decode(body["pargs"], how), decode(body["kargs"], how)
        try:
            result = await actions[body["action"]](*pargs, **kargs)
        except Exception as error:
            text = encode(error)
            return response(
                request,
                kind="user-error-response",
                serialization="pickle",
                exception=text,
            )
        return response(
            request,
            kind="action-response",
            serialization=back,
            result=["__serialized__", encode(result, back)],
        )
