"""Who a program or an agent is at Globus, and its access tokens for an exchange.

Everything here blocks: it is called in threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import globus_sdk
from globus_sdk.authorizers import GlobusAuthorizer
from globus_sdk.scopes import AuthScopes
from globus_sdk.token_storage import JSONTokenStorage

from academy.exception import UnauthorizedError
from academy.exchange.cloud.globus.calls import explained
from academy.exchange.cloud.globus.names import (
    CLIENT_VARIABLE,
    SECRET_VARIABLE,
    exchange_client_id,
    exchange_scope,
)
from academy.home import get_academy_home, private_directory

_BEARER = "Bearer "
# A `GlobusApp` may be used by one thread at a time, and a person answers one question
# at a time: whoever comes second finds the tokens of the first.
_TURN = threading.Lock()


class TokenSource(Protocol):
    """Where access tokens for an exchange come from. Calls may block."""

    def token(self, refused: str | None = None) -> str:
        """Return a token; another one than the exchange has refused, if there is.

        Raises:
            UnauthorizedError: nobody is logged in, or Globus refuses.
            ExchangeConnectionError: Globus cannot be reached.
        """


class GlobusLogin:
    """The login of a person (native app) or a service (client credentials).

    Its tokens lie under the Academy home and never travel: what is pickled logs in
    anew, wherever it arrives.

    Args:
        app: who logs in. Default: what the environment says, see `open_app`.
        exchange: id of the exchange at Globus. Default: see `exchange_client_id`.
        manages_projects: it is to be an administrator of Globus projects as well.

    Attributes:
        exchange: id of the exchange at Globus.
    """

    def __init__(
        self,
        app: globus_sdk.GlobusApp | None = None,
        exchange: str | None = None,
        manages_projects: bool = False,
    ) -> None:
        self.exchange = exchange or exchange_client_id()
        self._app = app
        self._requirements = {self.exchange: [exchange_scope(self.exchange)]}
        if manages_projects:
            auth = AuthScopes.resource_server
            self._requirements[auth] = [str(AuthScopes.manage_projects)]
        if app is not None:
            app.add_scope_requirements(self._requirements)

    def __reduce__(self) -> tuple[type[GlobusLogin], tuple[None, str, bool]]:
        manages_projects = len(self._requirements) > 1
        return GlobusLogin, (None, self.exchange, manages_projects)

    @contextmanager
    def app(self) -> Iterator[globus_sdk.GlobusApp]:
        """Lend the app to one thread."""
        with _TURN:
            if self._app is not None:
                yield self._app
            else:
                with open_app(self._requirements) as app:
                    yield app

    def token(self, refused: str | None = None) -> str:
        with explained("this login"), self.app() as app:
            try:
                app.login()  # unless somebody is, for all that is needed
                return _shown(app.get_authorizer(self.exchange), refused)
            except globus_sdk.AuthAPIError as error:
                if error.http_status != 400 or not isinstance(app, globus_sdk.UserApp):
                    raise
            # What was stored is good for nothing any more.
            app.login(force=True)
            return _shown(app.get_authorizer(self.exchange), None)


class DelegatedAccess:
    """What an agent does on behalf of whoever has launched it.

    The token that was delegated to its client is exchanged once for access to the
    exchange that the client renews. That lies under the Academy home, so that the
    agent's later runs go on when the delegated token has expired.

    Args:
        client_id: of the agent's own client.
        secret: of this client.
        delegated: token that was issued for this client.
        exchange: id of the exchange at Globus.
    """

    def __init__(
        self, client_id: str, secret: str, delegated: str, exchange: str
    ) -> None:
        self.exchange = exchange
        self._client_id = client_id
        self._secret = secret
        self._delegated = delegated

    def token(self, refused: str | None = None) -> str:
        storage = JSONTokenStorage(tokens_file(self._client_id))
        with (
            explained("this agent"),
            globus_sdk.ConfidentialAppAuthClient(
                self._client_id, self._secret
            ) as client,
        ):
            found = storage.get_token_data(self.exchange)
            if found is None or found.refresh_token is None:
                scope = exchange_scope(self.exchange)
                issued = client.oauth2_get_dependent_tokens(
                    self._delegated, scope=scope, refresh_tokens=True
                )
                storage.store_token_response(issued)
                return str(issued.by_resource_server[self.exchange]["access_token"])
            authorizer = globus_sdk.RefreshTokenAuthorizer(
                found.refresh_token,
                client,
                access_token=found.access_token,
                expires_at=found.expires_at_seconds,
                on_refresh=storage.store_token_response,
            )
            return _shown(authorizer, refused)


def open_app(requirements: Mapping[str, Sequence[str]]) -> globus_sdk.GlobusApp:
    """Make the app of the person or service that the environment names.

    Args:
        requirements: scopes that are needed, by resource server.

    Raises:
        UnauthorizedError: the environment names none.
    """
    client_id = os.environ.get(CLIENT_VARIABLE)
    if not client_id:
        raise UnauthorizedError(
            f"nobody to log in as: set {CLIENT_VARIABLE} to the id of a native app of "
            f"yours, or, for a service, to that of its client and {SECRET_VARIABLE} to "
            "its secret (made at https://app.globus.org/settings/developers)"
        )
    storage = JSONTokenStorage(tokens_file(client_id))
    if secret := os.environ.get(SECRET_VARIABLE):
        return globus_sdk.ClientApp(
            "Academy",
            client_id=client_id,
            client_secret=secret,
            scope_requirements=requirements,
            config=globus_sdk.GlobusAppConfig(token_storage=storage),
        )
    return globus_sdk.UserApp(
        "Academy",
        client_id=client_id,
        scope_requirements=requirements,
        config=globus_sdk.GlobusAppConfig(
            token_storage=storage,
            request_refresh_tokens=True,
            auto_redrive_gares=True,
        ),
    )


def tokens_file(client_id: str) -> Path:
    """Return the file (mode 0600) that keeps the tokens issued to a client."""
    return private_directory(get_academy_home() / "globus") / f"{client_id}.json"


def _shown(authorizer: GlobusAuthorizer, refused: str | None) -> str:
    header = authorizer.get_authorization_header() or ""
    if refused is not None and header == _BEARER + refused:
        authorizer.handle_missing_authorization()
        header = authorizer.get_authorization_header() or ""
    return header.removeprefix(_BEARER)
