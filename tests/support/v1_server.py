"""An exchange that speaks protocol v1 only, in memory, written from its description.

`python -m tests.support.v1_server` prints its url and serves until its standard input
ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web


@dataclass
class Mailbox:
    agent: bool
    classes: list[str]
    messages: deque[str] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    terminated: bool = False
    heartbeat: float | None = None
    incoming: int = 0
    outgoing: int = 0
    delivered: int = 0
    completed: int = 0
    owner: str = ""


class RefusedError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


OF_OWNERS = {
    ("DELETE", "/mailbox"),
    ("GET", "/message"),
    ("GET", "/mailbox/listen"),
    ("POST", "/mailbox/heartbeat"),
}

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class V1Exchange:
    """What a v1 exchange does, and the trouble that a network makes.

    Args:
        token: what clients must show; None for nothing.
        listen_timeout: longest time that a client may listen, in seconds.
        trouble: every so many requests, one is answered with 503 and another one is
            done while its answer is lost.
        limit: largest message in bytes.
        globus: url of Globus Auth, if that knows whose tokens they are; the exchange's
            own id and secret there are in the environment.
    """

    def __init__(
        self,
        token: str | None,
        listen_timeout: float,
        trouble: int,
        limit: int,
        globus: str | None,
    ) -> None:
        self.token = token
        self.globus = globus
        self.listen_timeout = listen_timeout
        self.trouble = trouble
        self.limit = limit
        self.boxes: dict[str, Mailbox] = {}
        self.count = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        for method, path, handler in (
            ("POST", "/mailbox", self.register),
            ("GET", "/mailbox", self.status),
            ("DELETE", "/mailbox", self.terminate),
            ("PUT", "/message", self.send),
            ("GET", "/message", self.receive),
            ("GET", "/mailbox/listen", self.listen),
            ("GET", "/discover", self.discover),
            ("POST", "/mailbox/heartbeat", self.beat),
            ("GET", "/mailbox/heartbeat", self.heartbeat),
            ("GET", "/mailbox/stats", self.stats),
        ):
            app.router.add_route(method, path, self.answered(handler))
        return app

    def answered(
        self, handler: Handler
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            shown = request.headers.get("Authorization")
            if shown is None and (self.token or self.globus):
                return web.Response(status=401)
            if self.token is not None and shown != f"Bearer {self.token}":
                return web.Response(status=403)
            parameters = await request.json()
            if self.globus is not None:
                by = await self.identify(str(shown).removeprefix("Bearer "))
                if by is None or not self.may(by, request, parameters):
                    return web.Response(status=403)
                request["by"] = by
            self.count += 1
            phase = self.count % self.trouble if self.trouble else -1
            if phase == 1:
                return web.Response(status=503)
            try:
                response = await handler(request, parameters)
            except RefusedError as refused:
                return web.Response(status=refused.status)
            except (KeyError, ValueError, TypeError):
                return web.Response(status=400)
            if phase == 2 and not response.prepared:
                assert request.transport is not None
                request.transport.close()
            return response

        return answer

    async def identify(self, token: str) -> str | None:
        me = os.environ["ACADEMY_EXCHANGE_CLIENT_ID"]
        secret = os.environ["ACADEMY_EXCHANGE_SECRET"]
        headers = {"Authorization": aiohttp.encode_basic_auth(me, secret)}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.post(
                f"{self.globus}/v2/oauth2/token/introspect", data={"token": token}
            ) as response,
        ):
            found = await response.json()
        if not found["active"] or me not in found["aud"]:
            return None
        return str(found["username"])

    def may(self, by: str, request: web.Request, parameters: dict[str, Any]) -> bool:
        """Whether somebody may speak for the mailbox that a request speaks for."""
        if "message" in parameters:
            uid = json.loads(parameters["message"])["header"]["src"]["uid"]
        elif (request.method, request.path) in OF_OWNERS:
            uid = json.loads(parameters["mailbox"])["uid"]
        else:
            return True
        return uid not in self.boxes or self.boxes[uid].owner == by

    def box(self, parameters: dict[str, Any]) -> Mailbox:
        box = self.boxes.get(json.loads(parameters["mailbox"])["uid"])
        if box is None:
            raise RefusedError(404)
        return box

    def live(self, parameters: dict[str, Any]) -> Mailbox:
        box = self.box(parameters)
        if box.terminated:
            raise RefusedError(419)
        return box

    def timeout(self, parameters: dict[str, Any]) -> float:
        timeout = float(parameters.get("timeout", self.listen_timeout))
        if not 0 < timeout <= self.listen_timeout:
            raise RefusedError(400)
        return timeout

    async def register(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        owner = json.loads(parameters["mailbox"])
        classes = parameters.get("agent", "").split(",")
        by = request.get("by", "")
        box = Mailbox(owner["role"] == "agent", classes, owner=by)
        self.boxes.setdefault(owner["uid"], box)
        return web.Response()

    async def status(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        box = self.boxes.get(json.loads(parameters["mailbox"])["uid"])
        status = "MISSING"
        if box is not None:
            status = "TERMINATED" if box.terminated else "ACTIVE"
        return web.json_response({"status": status})

    async def terminate(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        owner = json.loads(parameters["mailbox"])
        box = self.boxes.get(owner["uid"])
        if box is None or box.terminated:
            return web.Response()
        box.terminated = True
        for text in box.messages:
            request_ = json.loads(text)
            header = request_["header"]
            if header["kind"] == "request":
                source = self.boxes.get(header["src"]["uid"])
                if source is not None and not source.terminated:
                    header |= {
                        "src": header["dest"],
                        "dest": header["src"],
                        "kind": "response",
                    }
                    body = {
                        "kind": "academy-error-response",
                        "error_code": 0,
                        "mailbox_id": owner,
                    }
                    self.put(source, json.dumps({"header": header, "body": body}))
        box.messages.clear()
        box.arrived.set()
        return web.Response()

    def put(self, box: Mailbox, text: str) -> None:
        box.messages.append(text)
        box.incoming += 1
        box.arrived.set()

    async def send(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        text = parameters["message"]
        if len(text) > self.limit:
            raise RefusedError(413)
        header = json.loads(text)["header"]
        dest = self.live({"mailbox": json.dumps(header["dest"])})
        self.put(dest, text)
        source = self.boxes.get(header["src"]["uid"])
        if source is not None:
            source.outgoing += 1
            source.completed += header["kind"] == "response"
        return web.Response()

    async def next(self, box: Mailbox, timeout: float) -> str | None:
        deadline = time.monotonic() + timeout
        while not box.messages:
            if box.terminated:
                raise RefusedError(419)
            box.arrived.clear()
            try:
                await asyncio.wait_for(box.arrived.wait(), deadline - time.monotonic())
            except TimeoutError:
                return None
        text = box.messages.popleft()
        box.delivered += json.loads(text)["header"]["kind"] == "request"
        return text

    async def receive(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        text = await self.next(self.live(parameters), self.timeout(parameters))
        if text is None:
            raise RefusedError(408)
        return web.json_response({"message": text})

    async def listen(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.StreamResponse:
        box, timeout = self.live(parameters), self.timeout(parameters)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": hello\n\ndata:\n\nretry: 20\n\n")
        text: str | None = None
        try:
            while (text := await self.next(box, timeout)) is not None:
                await response.write(f"data: {text}\n\n".encode())
        except RefusedError:
            pass
        except ConnectionError:
            box.messages.appendleft(str(text))
        return response

    async def discover(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        name, subclasses = parameters["agent"], parameters["allow_subclasses"]
        found = [
            uid
            for uid, box in self.boxes.items()
            if box.agent
            and not box.terminated
            and name in (box.classes if subclasses else box.classes[:1])
        ]
        return web.json_response({"agent_ids": ",".join(found)})

    async def beat(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        self.box(parameters).heartbeat = time.monotonic()
        return web.Response()

    async def heartbeat(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        last = self.box(parameters).heartbeat
        silence = None if last is None else time.monotonic() - last
        return web.json_response({"heartbeat": silence})

    async def stats(
        self, request: web.Request, parameters: dict[str, Any]
    ) -> web.Response:
        box = self.box(parameters)
        counts = {"incoming": box.incoming, "outgoing": box.outgoing}
        working = box.delivered - box.completed
        counts |= {"completed": box.completed, "in_progress": working}
        return web.json_response({**counts, "queued": len(box.messages)})


async def serve(options: argparse.Namespace) -> None:
    exchange = V1Exchange(**vars(options))
    runner = web.AppRunner(exchange.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


@contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Run one in a process of its own; yield its url."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.v1_server", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--token")
    parser.add_argument("--listen-timeout", type=float, default=30)
    parser.add_argument("--trouble", type=int, default=0)
    parser.add_argument("--limit", type=int, default=524_288)
    parser.add_argument("--globus")
    asyncio.run(serve(parser.parse_args()))
