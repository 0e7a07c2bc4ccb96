"""A stand-in for the Globus Compute service: its web service and its logins.

It has the routes that the SDK and the endpoint use, with the answers that they expect.
What it does beyond that, the real service need not do: see `Cloud`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import (
    EPStatusReport,
    Result,
    Task,
)

from tests.support.globus.broker import GROUP_PREFIX, HEARTBEATS, RESULTS, Broker

LIMIT = 10_000_000
"""Bytes of one submission."""

CHECK_IN = 60.0
"""Seconds that a user endpoint has to start."""

_IDENTITY = {
    "sub": "11111111-2222-4333-8444-555555555555",
    "preferred_username": "ada@example.org",
    "username": "ada@example.org",
}
_COMPUTE_SCOPE = "facd7ccc-c5f4-42aa-916b-a0e270e2c2a9"


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(status, code, reason)
        self.status = status
        self.body = {"code": code, "reason": f"{code}: {reason}", "error_args": []}


class Cloud:
    """The service. It keeps everything for ever, and knows one user.

    Args:
        broker: through which it talks to endpoints.

    Attributes:
        url: where it listens.
        client_broker_url: where clients are told to fetch their results; that of the
            broker unless a test puts something between.
        submissions: bodies of all submissions, with the number of tasks of each
            function in place of the tasks.
        refusals: answers for the next submissions, which are used up.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.client_broker_url = broker.url
        self.submissions: list[dict[str, Any]] = []
        self.refusals: list[RefusedError] = []
        self.requests: list[str] = []
        self._changed = threading.Condition()
        self._functions: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, list[str]] = {}
        self._endpoints: set[str] = set()
        self._status: dict[str, dict[str, Any]] = {}
        self._stop = threading.Event()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self.broker.open()
        consumers = {RESULTS: self._on_result, HEARTBEATS: self._on_heartbeat}
        self._threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True),
            threading.Thread(
                target=self.broker.consume, args=(self._stop, consumers), daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()
        for thread in self._threads:
            thread.join()
        self.broker.close()

    # --- for tests

    def wait_for_endpoint(self, timeout: float = 20.0) -> str:
        """Wait until an endpoint is online, and return its id."""
        with self._changed:
            if not self._changed.wait_for(self._online, timeout):
                raise TimeoutError("the endpoint did not come up")
            return self._online()[0]

    def _online(self) -> list[str]:
        return sorted(self._endpoints & self._status.keys())

    def forget_endpoint(self, endpoint: str) -> None:
        """Take an endpoint for one that has not been heard of for long."""
        self._status.pop(endpoint, None)

    # --- routes

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        uid = "([0-9a-f-]{36})"
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", "/v2/oauth2/token", self._token),
            ("GET", "/v2/oauth2/userinfo", self._user),
            ("GET", "/v2/version", self._version),
            ("GET", "/v2/get_amqp_result_connection_url", self._result_url),
            ("POST", "/v3/functions", self._add_function),
            ("POST", "/v3/endpoints", self._add_endpoint),
            ("PUT", f"/v3/endpoints/{uid}", self._add_endpoint),
            ("POST", f"/v3/endpoints/{uid}/submit", self._submit),
            ("GET", f"/v2/endpoints/{uid}/status", self._endpoint_status),
            ("GET", f"/v2/tasks/{uid}", self._task),
            ("POST", "/v2/batch_status", self._task_batch),
            ("GET", f"/v2/taskgroup/{uid}", self._group),
        ]

        def answer(method: str, path: str, body: Any) -> Any:
            self.requests.append(f"{method} {path}")
            for verb, pattern, route in routes:
                match = re.fullmatch(pattern, path)
                if verb == method and match:
                    return route(body, *match.groups())
            raise RefusedError(404, "NOT_FOUND", f"there is no {method} {path}")

        return type("Handler", (_Handler,), {"answer": staticmethod(answer)})

    def _token(self, body: str) -> Any:
        """Grant the scopes that were asked for, each with its resource server."""
        scopes = urllib.parse.parse_qs(body).get("scope", [""])[0].split()
        servers: dict[str, list[str]] = {}
        for scope in sorted(set(scopes)):
            compute = _COMPUTE_SCOPE in scope
            server = "funcx_service" if compute else "auth.globus.org"
            servers.setdefault(server, []).append(scope)
        tokens = [
            {
                "access_token": f"token-for-{server}",
                "scope": " ".join(granted),
                "expires_in": 172_800,
                "token_type": "Bearer",
                "resource_server": server,
                "refresh_token": None,
            }
            for server, granted in servers.items()
        ]
        return {**tokens[0], "other_tokens": tokens[1:]}

    def _user(self, _: Any) -> Any:
        return {**_IDENTITY, "identity_set": [_IDENTITY]}

    def _version(self, _: Any) -> Any:
        return {"api": "1", "min_sdk_version": "2.0.0", "min_ep_version": "2.0.0"}

    def _result_url(self, _: Any) -> Any:
        return {"queue_prefix": GROUP_PREFIX, "connection_url": self.client_broker_url}

    def _add_function(self, body: dict[str, Any]) -> Any:
        function = str(uuid.uuid4())
        self._functions[function] = body
        return {"function_uuid": function}

    def _add_endpoint(self, _: Any, endpoint: str | None = None) -> Any:
        endpoint = endpoint or str(uuid.uuid4())
        self.broker.declare(f"{endpoint}.commands")
        self.broker.declare(f"{endpoint}.tasks")
        with self._changed:
            self._endpoints.add(endpoint)
        return self.broker.credentials(endpoint)

    def _endpoint_status(self, _: Any, endpoint: str) -> Any:
        if endpoint not in self._endpoints:
            raise RefusedError(404, "ENDPOINT_NOT_FOUND", f"no endpoint {endpoint}")
        status = "online" if endpoint in self._status else "offline"
        return {"status": status, "details": self._status.get(endpoint, {})}

    def _task(self, _: Any, task: str) -> Any:
        known = self._tasks.get(task)
        if known is None:
            return {"task_id": task, "status": "failed", "reason": "Unknown Task ID"}
        shown = ("task_id", "status", "result", "exception", "completion_t", "details")
        return {key: known[key] for key in shown if key in known}

    def _task_batch(self, body: dict[str, Any]) -> Any:
        return {"results": {task: self._task(None, task) for task in body["task_ids"]}}

    def _group(self, _: Any, group: str) -> Any:
        tasks = [{"id": task} for task in self._groups.get(group, [])]
        return {"taskgroup_id": group, "tasks": tasks}

    # --- submission

    def _submit(self, body: dict[str, Any], endpoint: str) -> Any:
        counts = {function: len(tasks) for function, tasks in body["tasks"].items()}
        self.submissions.append({**body, "tasks": counts})
        if self.refusals:
            raise self.refusals.pop(0)
        if endpoint not in self._endpoints:
            raise RefusedError(404, "ENDPOINT_NOT_FOUND", f"no endpoint {endpoint}")
        group = body.get("task_group_id") or str(uuid.uuid4())
        if body.get("create_queue"):
            self.broker.declare(GROUP_PREFIX + group)
        user_endpoint = self._start_user_endpoint(endpoint, body)
        accepted: dict[str, list[str]] = {}
        for function, payloads in body["tasks"].items():
            if function not in self._functions:
                raise RefusedError(404, "FUNCTION_NOT_FOUND", f"no {function}")
            accepted[function] = [
                self._add_task(group, function, payload, user_endpoint, body)
                for payload in payloads
            ]
        return {
            "request_id": str(uuid.uuid4()),
            "task_group_id": group,
            "endpoint_id": endpoint,
            "tasks": accepted,
        }

    def _start_user_endpoint(self, endpoint: str, body: dict[str, Any]) -> str:
        """Have the endpoint start one for this configuration; return its id.

        The real service waits too until it has checked in, and tells what it says.
        """
        config = body.get("user_endpoint_config") or {}
        runtime = body.get("user_runtime") or {}
        key = json.dumps([endpoint, config], sort_keys=True)
        user_endpoint = str(uuid.UUID(hashlib.sha256(key.encode()).hexdigest()[:32]))
        self.broker.declare(f"{user_endpoint}.tasks")
        with self._changed:
            # What it says from now on counts, unless it is known to be there.
            if not self._status.get(user_endpoint, {}).get("active"):
                self._status.pop(user_endpoint, None)
        command = {
            "command": "cmd_start_endpoint",
            "args": [],
            "kwargs": {
                "name": f"uep.{user_endpoint}",
                "user_opts": config,
                "user_runtime": runtime,
                "amqp_creds": self.broker.credentials(user_endpoint),
            },
            "globus_effective_identity": _IDENTITY["sub"],
            "globus_username": _IDENTITY["username"],
            "globus_identity_set": [_IDENTITY],
        }
        self.broker.publish(
            f"{endpoint}.commands",
            json.dumps(command).encode(),
            content_type="application/json",
            timestamp=int(time.time()),
        )
        with self._changed:

            def answer() -> dict[str, Any] | None:
                status = self._status.get(user_endpoint, {})
                return status if "error" in status or status.get("active") else None

            status = self._changed.wait_for(answer, CHECK_IN) or {"error": "no sign"}
        if "error" in status:
            said = f"Request payload failed validation: {status['error']}"
            raise RefusedError(422, "SEMANTICALLY_INVALID", said)
        return user_endpoint

    def _add_task(
        self,
        group: str,
        function: str,
        payload: str,
        user_endpoint: str,
        body: dict[str, Any],
    ) -> str:
        task = str(uuid.uuid4())
        buffer = self._functions[function]["function_code"] + payload
        message = messagepack.pack(Task(task_id=uuid.UUID(task), task_buffer=buffer))
        headers = {
            "function_uuid": function,
            "task_uuid": task,
            "resource_specification": json.dumps(body.get("resource_specification")),
            "result_serializers": body.get("result_serializers") or [],
        }
        with self._changed:
            self._tasks[task] = {
                "task_id": task,
                "status": "waiting-for-ep",
                "group": group,
            }
            self._groups.setdefault(group, []).append(task)
        self.broker.publish(f"{user_endpoint}.tasks", message, headers=headers)
        return task

    # --- what endpoints send

    def _on_result(self, body: bytes) -> None:
        result = messagepack.unpack(body)
        assert isinstance(result, Result)
        now = time.time()
        with self._changed:
            task = self._tasks.get(str(result.task_id))
            if task is None or "completion_t" in task:
                return
            task["completion_t"] = str(now)
            task["details"] = result.details and dict(result.details)
            task["status"] = "failed" if result.is_error else "success"
            task["exception" if result.is_error else "result"] = result.data
            self._changed.notify_all()
        self.broker.publish(
            GROUP_PREFIX + task["group"], body, timestamp=int(now), headers={}
        )

    def wait_for_end(self, task: str, timeout: float = 60.0) -> None:
        """Wait until an endpoint has sent the result of a task."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: "completion_t" in self._tasks[task], timeout
            ):
                raise TimeoutError(f"task {task} did not end")

    def _on_heartbeat(self, body: bytes) -> None:
        report = messagepack.unpack(body)
        if isinstance(report, EPStatusReport):
            with self._changed:
                self._status[str(report.endpoint_id)] = dict(report.global_state)
                self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that is killed does not wait for its answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[[str, str, Any], Any]

    def log_message(self, *_: Any) -> None:
        """Nothing: the service of a test is not what it is about."""

    def _serve(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        try:
            status, body = 200, self._answer(method, raw)
        except RefusedError as error:
            status, body = error.status, error.body
        except Exception as error:
            status, body = 400, {"code": "INTERNAL", "reason": repr(error)}
        data = json.dumps(body, default=str).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, method: str, raw: bytes) -> Any:
        path = self.path.partition("?")[0]
        if len(raw) > LIMIT:
            said = f"the payload has {len(raw)} bytes"
            raise RefusedError(413, "TASK_PAYLOAD_TOO_LARGE", said)
        if "oauth2/token" in path:
            return self.answer(method, path, raw.decode())
        if not self.headers.get("Authorization"):
            raise RefusedError(401, "UNAUTHENTICATED", "there is no token")
        return self.answer(method, path, json.loads(raw) if raw else None)

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")
