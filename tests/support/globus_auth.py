"""Globus Auth and Globus Groups on loopback, as far as the real globus-sdk asks them.

It runs in a thread of the test's process, so that tests look at what it has been told
(`clients`, `consents`) and say what is to go wrong (`fail`).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_DNS, uuid4, uuid5

import globus_sdk
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from globus_sdk.login_flows import CommandLineLoginFlowManager

NATIVE_APP = str(uuid4())
SERVICE, SERVICE_SECRET = str(uuid4()), "secret-of-the-service"
PROJECT = str(uuid4())
EXCHANGE, EXCHANGE_SECRET = str(uuid4()), "secret-of-the-exchange"
EXCHANGE_SCOPE = f"https://auth.globus.org/scopes/{EXCHANGE}/academy_exchange"
EXCHANGE_SCOPE_ID = str(uuid4())
GROUPS_SCOPE = (
    "urn:globus:auth:scope:groups.api.globus.org:view_my_groups_and_memberships"
)
MANAGE_PROJECTS = "urn:globus:auth:scope:auth.globus.org:manage_projects"
DAYS_2 = 172_800


@dataclass
class Scope:
    resource_server: str
    dependents: dict[str, bool] = field(default_factory=dict)
    """Scopes that its resource server may ask for, and whether for good."""
    refreshable: bool = True


@dataclass
class Client:
    name: str
    project: str | None = None
    secrets: list[str] = field(default_factory=list)


@dataclass
class Token:
    username: str
    scopes: list[str]
    resource_server: str
    client: str
    expires: float


class Refused(Exception):  # noqa: N818  # an answer, not an error of ours
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class GlobusAuth:
    """What the services know, and what has been asked of them.

    Attributes:
        user: whom the "browser" is logged in as.
        consents: the scopes of each time that somebody was sent to the browser.
        projects: administrators of each project.
        groups: members of each group.
        calls: how often each kind of request came.
        fail: kinds of requests that are refused.
        lifetime: seconds that access tokens are good for.
        hanging: whether questions about tokens are left without an answer.
    """

    def __init__(self) -> None:
        self.url = ""
        self.user = "ada@example.org"
        self.consents: list[list[str]] = []
        self.projects = {PROJECT: {self.user, f"{SERVICE}@clients.auth.globus.org"}}
        self.groups: dict[str, set[str]] = {}
        self.calls: Counter[str] = Counter()
        self.fail: set[str] = set()
        self.lifetime = DAYS_2
        self.hanging = False
        self.clients = {
            NATIVE_APP: Client("a native app"),
            SERVICE: Client("a service", None, [SERVICE_SECRET]),
            EXCHANGE: Client("an exchange", None, [EXCHANGE_SECRET]),
        }
        self.scopes = {
            "openid": Scope("auth.globus.org"),
            MANAGE_PROJECTS: Scope("auth.globus.org"),
            GROUPS_SCOPE: Scope("groups.api.globus.org"),
            EXCHANGE_SCOPE: Scope(EXCHANGE, {GROUPS_SCOPE: False}),
        }
        self.scope_ids = {EXCHANGE_SCOPE_ID: EXCHANGE_SCOPE}
        self.tokens: dict[str, Token] = {}
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh: dict[str, Token] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def agents(self) -> dict[str, Client]:
        """The clients that were made in a project."""
        return {uid: c for uid, c in self.clients.items() if c.project is not None}

    def person(self, name: str | None = None) -> globus_sdk.GlobusApp:
        """Return the app of a person who consents to everything; close it.

        Given a name, that person is logged in already.
        """
        config = globus_sdk.GlobusAppConfig(
            login_flow_manager=Browser,
            token_storage="memory",
            request_refresh_tokens=True,
        )
        app = globus_sdk.UserApp("test", client_id=NATIVE_APP, config=config)
        if name is not None:
            self.user, before = name, self.user
            app.add_scope_requirements({EXCHANGE: EXCHANGE_SCOPE})
            app.login()
            self.user = before
        return app

    def token(self, username: str, scope: str = EXCHANGE_SCOPE) -> str:
        """Issue an access token, as if somebody had logged in."""
        issued = self._issue(username, [scope], NATIVE_APP, offline=False)
        return str(issued[0]["access_token"])

    def expire_access_tokens(self) -> None:
        """Let time pass."""
        for token in self.tokens.values():
            token.expires = 0

    # --- tokens

    def _issue(
        self, username: str, scopes: list[str], client: str, *, offline: bool
    ) -> list[dict[str, Any]]:
        by_server: dict[str, list[str]] = {}
        for scope in scopes:
            if scope not in self.scopes:
                raise Refused(400, "unknown_scope")
            by_server.setdefault(self.scopes[scope].resource_server, []).append(scope)
        issued = []
        for server, names in by_server.items():
            access, expires = secrets.token_urlsafe(24), time.time() + self.lifetime
            token = Token(username, names, server, client, expires)
            self.tokens[access] = token
            one = {
                "access_token": access,
                "scope": " ".join(names),
                "expires_in": self.lifetime,
                "token_type": "Bearer",
                "resource_server": server,
            }
            if offline and all(self.scopes[name].refreshable for name in names):
                one["refresh_token"] = secrets.token_urlsafe(24)
                self._refresh[one["refresh_token"]] = token
            issued.append(one)
        return issued

    def _found(self, issued: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**issued[0], "other_tokens": issued[1:], **more}

    def _id_token(self, username: str, client: str) -> str:
        now = int(time.time())
        claims = {"sub": identity(username), "aud": client, "iss": "stand-in"}
        return jwt.encode(
            {**claims, "iat": now, "exp": now + DAYS_2}, self._key, "RS256"
        )

    def _client(self, request: web.Request, form: dict[str, str]) -> str:
        """Return which client asks; one with secrets has to show one."""
        header = request.headers.get("Authorization")
        if header is None:
            uid, shown = form.get("client_id", ""), ""
        else:
            basic = base64.b64decode(header.removeprefix("Basic ")).decode()
            uid, _, shown = basic.partition(":")
        client = self.clients.get(uid)
        if client is None or (client.secrets and shown not in client.secrets):
            raise Refused(401, "invalid_client")
        return uid

    async def authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        scopes = query["scope"].split()
        for scope in scopes:
            if scope not in self.scopes:
                raise Refused(400, "unknown_scope")
        self.consents.append(scopes)
        code = secrets.token_urlsafe(8)
        self._codes[code] = query | {"user": self.user}
        return web.Response(text=code)

    async def grant(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        client = self._client(request, form)
        kind = form["grant_type"].rpartition(":")[2]
        self._count(kind)
        if kind == "authorization_code":
            return web.json_response(self._by_code(form, client))
        if kind == "refresh_token":
            token = self._refresh.get(form["refresh_token"])
            if token is None or token.client != client:
                raise Refused(400, "invalid_grant")
            issued = self._issue(token.username, token.scopes, client, offline=False)
            again = {"refresh_token": form["refresh_token"]}
            return web.json_response(self._found(issued, **again))
        if kind == "client_credentials":
            name = f"{client}@clients.auth.globus.org"
            issued = self._issue(name, form["scope"].split(), client, offline=False)
            return web.json_response(self._found(issued))
        assert kind == "dependent_token"
        return web.json_response(self._dependent(form, client))

    def _by_code(self, form: dict[str, str], client: str) -> dict[str, Any]:
        asked = self._codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge:
            raise Refused(400, "invalid_grant")
        scopes, offline = asked["scope"].split(), asked["access_type"] == "offline"
        issued = self._issue(asked["user"], scopes, client, offline=offline)
        return self._found(issued, id_token=self._id_token(asked["user"], client))

    def _dependent(self, form: dict[str, str], client: str) -> list[dict[str, Any]]:
        token = self._live(form["token"])
        if token.resource_server != client:
            raise Refused(403, "not_yours")
        allowed: dict[str, bool] = {}
        for name in token.scopes:
            allowed |= self.scopes[name].dependents
        scopes = form.get("scope", " ".join(allowed)).split()
        offline = form.get("access_type") == "offline"
        if not allowed.keys() >= set(scopes) or (
            offline and not all(allowed[name] for name in scopes)
        ):
            raise Refused(403, "no_consent")
        return self._issue(token.username, scopes, client, offline=offline)

    def _live(self, access: str) -> Token:
        token = self.tokens.get(access)
        if token is None or token.expires <= time.time():
            raise Refused(401, "invalid_token")
        return token

    async def introspect(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        client = self._client(request, form)
        self._count("introspect")
        while self.hanging:
            await asyncio.sleep(0.01)
        try:
            token = self._live(form["token"])
        except Refused:
            return web.json_response({"active": False})
        audience = [token.resource_server, token.client]
        if client not in audience:
            return web.json_response({"active": False})
        return web.json_response(
            {
                "active": True,
                "scope": " ".join(token.scopes),
                "client_id": token.client,
                "username": token.username,
                "sub": identity(token.username),
                "aud": audience,
                "exp": int(token.expires),
                "iss": "https://auth.globus.org",
            }
        )

    async def configuration(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "jwks_uri": f"{self.url}/jwk.json",
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def keys(self, request: web.Request) -> web.Response:
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key())
        return web.json_response({"keys": [json.loads(public)]})

    # --- projects

    def _administrator(self, request: web.Request, project: str | None) -> None:
        token = self._bearer(request)
        if MANAGE_PROJECTS not in token.scopes:
            raise Refused(403, "missing_scope")
        if token.username not in self.projects.get(project or "", set()):
            raise Refused(403, "not_an_administrator")

    def _bearer(self, request: web.Request) -> Token:
        return self._live(request.headers["Authorization"].removeprefix("Bearer "))

    def _agent(self, request: web.Request) -> str:
        uid = request.match_info["client"]
        if uid not in self.clients:
            raise Refused(404, "unknown_client")
        self._administrator(request, self.clients[uid].project)
        return uid

    async def create_client(self, request: web.Request) -> web.Response:
        self._count("create_client")
        asked = (await request.json())["client"]
        self._administrator(request, asked["project"])
        assert asked["client_type"] == "hybrid_confidential_client_resource_server"
        uid = str(uuid4())
        self.clients[uid] = Client(asked["name"], asked["project"])
        return web.json_response({"client": {**asked, "id": uid}}, status=201)

    async def list_clients(self, request: web.Request) -> web.Response:
        token = self._bearer(request)
        found = [
            {"id": uid, "name": client.name, "project": client.project}
            for uid, client in self.agents.items()
            if token.username in self.projects[str(client.project)]
        ]
        return web.json_response({"clients": found})

    async def delete_client(self, request: web.Request) -> web.Response:
        self._count("delete_client")
        uid = self._agent(request)
        client = self.clients.pop(uid)
        for name in [n for n, s in self.scopes.items() if s.resource_server == uid]:
            del self.scopes[name]
        return web.json_response({"client": {"id": uid, "name": client.name}})

    async def create_credential(self, request: web.Request) -> web.Response:
        self._count("create_credential")
        secret = secrets.token_urlsafe(16)
        uid = self._agent(request)
        self.clients[uid].secrets.append(secret)
        found = {"id": str(uuid4()), "client": uid, "secret": secret}
        return web.json_response({"credential": found}, status=201)

    async def create_scope(self, request: web.Request) -> web.Response:
        self._count("create_scope")
        uid = self._agent(request)
        asked = (await request.json())["scope"]
        name = f"https://auth.globus.org/scopes/{uid}/{asked['scope_suffix']}"
        self.scopes[name] = Scope(
            uid,
            {
                self.scope_ids[one["scope"]]: one["requires_refresh_token"]
                for one in asked["dependent_scopes"]
            },
            asked["allows_refresh_token"],
        )
        found = {**asked, "scope_string": name, "id": str(uuid4()), "client": uid}
        return web.json_response({"scope": found}, status=201)

    # --- groups

    async def my_groups(self, request: web.Request) -> web.Response:
        self._count("my_groups")
        token = self._bearer(request)
        if GROUPS_SCOPE not in token.scopes:
            raise Refused(403, "missing_scope")
        mine = [uid for uid, names in self.groups.items() if token.username in names]
        memberships = [{"username": token.username, "status": "active"}]
        return web.json_response(
            [{"id": uid, "my_memberships": memberships} for uid in mine]
        )

    # --- the service

    def _count(self, kind: str) -> None:
        self.calls[kind] += 1
        if kind in self.fail:
            raise Refused(403, f"no_{kind}_today")

    def app(self) -> web.Application:
        @web.middleware
        async def refusals(request: web.Request, handler: Any) -> Any:
            try:
                return await handler(request)
            except Refused as refused:
                content = {"code": refused.code, "message": refused.code}
                return web.json_response(content, status=refused.status)

        app = web.Application(middlewares=[refusals])
        client = "/v2/api/clients/{client}"
        for method, path, handler in (
            ("GET", "/v2/oauth2/authorize", self.authorize),
            ("POST", "/v2/oauth2/token", self.grant),
            ("POST", "/v2/oauth2/token/introspect", self.introspect),
            ("GET", "/.well-known/openid-configuration", self.configuration),
            ("GET", "/jwk.json", self.keys),
            ("POST", "/v2/api/clients", self.create_client),
            ("GET", "/v2/api/clients", self.list_clients),
            ("DELETE", client, self.delete_client),
            ("POST", f"{client}/credentials", self.create_credential),
            ("POST", f"{client}/scopes", self.create_scope),
            ("GET", "/v2/groups/my_groups", self.my_groups),
        ):
            app.router.add_route(method, path, handler)
        return app

    @contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """Serve; yield the environment of programs that are to use this one."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.1)

        async def start() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

        try:
            asyncio.run_coroutine_threadsafe(start(), loop).result(30)
            yield {
                "GLOBUS_SDK_SERVICE_URL_AUTH": self.url,
                "GLOBUS_SDK_SERVICE_URL_GROUPS": self.url,
                "ACADEMY_EXCHANGE_CLIENT_ID": EXCHANGE,
                "ACADEMY_GLOBUS_SCOPE_ID": EXCHANGE_SCOPE_ID,
                "ACADEMY_GLOBUS_CLIENT_ID": NATIVE_APP,
            }
        finally:
            self.hanging = False
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Browser(CommandLineLoginFlowManager):
    """Goes where a person would be sent, and comes back with the code."""

    def print_authorize_url(self, authorize_url: str) -> None:
        with urllib.request.urlopen(authorize_url) as page:
            self.code = page.read().decode()

    def prompt_for_code(self) -> str:
        return self.code


def identity(username: str) -> str:
    """Return the id that Globus Auth has for a user."""
    return str(uuid5(NAMESPACE_DNS, username))
