"""Clients at Globus for agents: each has a secret, a scope and a delegated token.

Everything here blocks: it is called in threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import globus_sdk
from globus_sdk.gare import GlobusAuthorizationParameters
from globus_sdk.scopes import AuthScopes

from academy.exception import UnauthorizedError
from academy.exchange.cloud.globus.calls import explained
from academy.exchange.cloud.globus.login import GlobusLogin, tokens_file
from academy.exchange.cloud.globus.names import exchange_scope_id
from academy.identifier import AgentId

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgentClient:
    """An agent at Globus.

    Attributes:
        client_id: of its client.
        secret: of its client.
        token: lets the client act on behalf of whoever has launched the agent.
    """

    client_id: str
    secret: str = field(repr=False)
    token: str = field(repr=False)


class GlobusProject:
    """A project at Globus in which agents get their clients.

    Args:
        login: an administrator of the project.
        project_id: of the project.
        client_params: further parameters of the clients, as
            `globus_sdk.AuthClient.create_client` takes them.
    """

    def __init__(
        self, login: GlobusLogin, project_id: str, client_params: Mapping[str, Any]
    ) -> None:
        self._login = login
        self._project_id = project_id
        self._client_params = {"visibility": "private", **client_params}

    def create(
        self, agents: Sequence[AgentId[Any]], given_up: threading.Event
    ) -> list[AgentClient]:
        """Make clients for agents, all or none, and ask for consent once for all.

        Args:
            agents: who gets them.
            given_up: set when nobody wants them any more.
        """
        made: list[str] = []
        with (
            explained("to make clients for agents"),
            self._login.app() as app,
            _auth(app) as auth,
        ):
            try:
                parts = [self._create_one(auth, aid, made, given_up) for aid in agents]
                tokens = _delegate(app, made, [scope for _, scope in parts])
                _check(given_up)
            except BaseException:
                for client_id in made:
                    _delete(auth, client_id)
                raise
        return [
            AgentClient(client_id, secret, token)
            for client_id, (secret, _), token in zip(made, parts, tokens, strict=True)
        ]

    def _create_one(
        self,
        auth: globus_sdk.AuthClient,
        aid: AgentId[Any],
        made: list[str],
        given_up: threading.Event,
    ) -> tuple[str, str]:
        """Make one client; return its secret and its scope."""
        _check(given_up)
        name = _name(aid)
        client = auth.create_client(
            name,
            self._project_id,
            client_type="hybrid_confidential_client_resource_server",
            **self._client_params,
        )
        client_id = str(client["client"]["id"])
        made.append(client_id)
        credential = auth.create_client_credential(client_id, name)
        scope = auth.create_scope(
            client_id,
            name,
            "Act on your behalf at the exchange of Academy's agents",
            "launch",
            dependent_scopes=[
                globus_sdk.DependentScopeSpec(
                    exchange_scope_id(), optional=False, requires_refresh_token=True
                )
            ],
            allows_refresh_token=True,
        )
        return credential["credential"]["secret"], scope["scope"]["scope_string"]

    def delete(self, agents: Mapping[AgentId[Any], str | None]) -> None:
        """Delete the clients of agents.

        Args:
            agents: and the id of the client of each, if that is known; another
                program may have made it.
        """
        with (
            explained("to delete the clients of agents"),
            self._login.app() as app,
            _auth(app) as auth,
        ):
            unknown = {_name(aid) for aid, client_id in agents.items() if not client_id}
            found = [client_id for client_id in agents.values() if client_id]
            for client in auth.get_clients() if unknown else ():
                if client["project"] == self._project_id and client["name"] in unknown:
                    found.append(str(client["id"]))
            for client_id in found:
                _delete(auth, client_id)


def _auth(app: globus_sdk.GlobusApp) -> globus_sdk.AuthClient:
    return globus_sdk.AuthClient(app=app, app_scopes=[AuthScopes.manage_projects])


def _name(aid: AgentId[Any]) -> str:
    # The agent's own name is the user's, and may be anything.
    return f"Academy agent {aid.uid}"


def _check(given_up: threading.Event) -> None:
    if given_up.is_set():
        raise UnauthorizedError("nobody waits for the clients any more")


def _delegate(
    app: globus_sdk.GlobusApp, clients: Sequence[str], scopes: list[str]
) -> list[str]:
    """Ask for consent to all scopes at once; return a token for each client."""
    if not scopes:
        return []
    app.login(auth_params=GlobusAuthorizationParameters(required_scopes=scopes))
    tokens = []
    storage = app.token_storage.token_storage
    for client_id in clients:
        found = storage.get_token_data(client_id)
        if found is None:
            raise UnauthorizedError(f"Globus has issued no token for {client_id}")
        tokens.append(found.access_token)
        storage.remove_token_data(client_id)  # it is the agent's from here on
    return tokens


def _delete(auth: globus_sdk.AuthClient, client_id: str) -> None:
    try:
        auth.delete_client(client_id)
    except globus_sdk.GlobusError as error:
        logger.warning("an agent's client %s stays at Globus: %s", client_id, error)
    with suppress(OSError):  # there is one where the agent has run in this home
        tokens_file(client_id).unlink()
