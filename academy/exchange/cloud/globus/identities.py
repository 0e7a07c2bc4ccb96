"""Whose a Globus access token is: what an exchange with Globus Auth asks Globus."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from dataclasses import dataclass

import globus_sdk
from globus_sdk.scopes import GroupsScopes

from academy.exception import UnauthorizedError
from academy.exchange.cloud.globus.calls import explained, in_thread
from academy.exchange.cloud.globus.names import (
    EXCHANGE_SECRET_VARIABLE,
    exchange_client_id,
)
from academy.exchange.cloud.security.auth import Credentials, check_namespace

AT_ONCE = 8
"""Questions to Globus that are under way together."""
REMEMBERED = 10_000
"""Latest answers that are kept."""


@dataclass(frozen=True)
class Answer:
    """What Globus has said.

    Attributes:
        about: username of whoever was given the token; why it is good for nothing if
            it is.
        groups: ids of the groups of which this person is a member, if asked for.
        until: when (seconds since the epoch) it is to be asked again.
        active: whether the token is good.
    """

    about: str
    groups: frozenset[str]
    until: float
    active: bool = True


class GlobusIdentities:
    """Asks Globus whose a token is, in threads, and remembers it for a while.

    `_asking` has the question about each token that was seen lately, by the token's
    hash and whether groups were asked for, oldest first.

    Args:
        cache_seconds: how long an answer is good for.

    Raises:
        ValueError: the environment lacks the exchange's secret.
    """

    def __init__(self, cache_seconds: float) -> None:
        self._client_id = exchange_client_id()
        self._secret = os.environ.get(EXCHANGE_SECRET_VARIABLE, "")
        if not self._secret:
            raise ValueError(
                f'auth.method = "globus" needs {EXCHANGE_SECRET_VARIABLE}: the secret '
                f"of the exchange's client at Globus ({self._client_id})"
            )
        self._cache_seconds = cache_seconds
        self._asking: dict[tuple[bytes, bool], asyncio.Task[Answer]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def identify(self, token: str, namespace: str = "") -> Credentials:
        """Return what a token lets its holder do.

        Args:
            token: an access token of Globus Auth.
            namespace: of another user, who shares mailboxes with a group.

        Raises:
            UnauthorizedError: the token is not good for this exchange.
            ExchangeConnectionError: Globus cannot be reached.
        """
        answer = await self._answer(token, with_groups=False)
        if not answer.active:
            raise UnauthorizedError(f"Globus Auth: {answer.about}")
        try:
            own = check_namespace(answer.about)
        except ValueError as error:
            raise UnauthorizedError(str(error)) from None
        if namespace in ("", own):
            return Credentials(own, namespace=own)
        groups = (await self._answer(token, with_groups=True)).groups
        return Credentials(own, namespace=namespace, groups=groups)

    async def _answer(self, token: str, *, with_groups: bool) -> Answer:
        key = hashlib.sha256(token.encode()).digest(), with_groups
        task = self._asking.get(key)
        if task is None or _is_stale(task):
            self._asking.pop(key, None)
            task = self._asking[key] = asyncio.create_task(self._ask(token, *key[1:]))
            if len(self._asking) > REMEMBERED:
                del self._asking[next(iter(self._asking))]
        # Shielded, since others may wait for it as well.
        return await asyncio.shield(task)

    async def _ask(self, token: str, with_groups: bool) -> Answer:
        async with self._turns:
            return await in_thread(self._asked, token, with_groups)

    def _asked(self, token: str, with_groups: bool) -> Answer:
        until = time.time() + self._cache_seconds
        with (
            explained("this exchange"),
            globus_sdk.ConfidentialAppAuthClient(
                self._client_id, self._secret
            ) as client,
        ):
            if with_groups:
                return Answer("", _groups(client, token), until)
            found = client.oauth2_token_introspect(token).data
        problem = self._problem(found)
        if problem:
            return Answer(problem, frozenset(), until, active=False)
        until = min(until, float(found["exp"]))
        return Answer(str(found["username"]), frozenset(), until)

    def _problem(self, found: dict[str, object]) -> str:
        audience = found.get("aud")
        expires = found.get("exp")
        if found.get("active") is not True:
            return "the token is not active: get a new one"
        if not isinstance(audience, list) or self._client_id not in audience:
            return f"the token is not for this exchange ({self._client_id})"
        if not isinstance(expires, int | float) or expires <= time.time():
            return "the token has expired: get a new one"
        if not isinstance(found.get("username"), str):
            return "the token names no user"
        return ""


def _is_stale(task: asyncio.Task[Answer]) -> bool:
    if not task.done():
        return False
    if task.cancelled() or task.exception() is not None:
        return True
    return task.result().until <= time.time()


def _groups(client: globus_sdk.ConfidentialAppAuthClient, token: str) -> frozenset[str]:
    """Return the groups of a token's holder, who has consented to that."""
    issued = client.oauth2_get_dependent_tokens(
        token, scope=str(GroupsScopes.view_my_groups_and_memberships)
    )
    access = issued.by_resource_server[GroupsScopes.resource_server]["access_token"]
    authorizer = globus_sdk.AccessTokenAuthorizer(access)
    with globus_sdk.GroupsClient(authorizer=authorizer) as groups:
        return frozenset(
            str(group["id"])
            for group in groups.get_my_groups()
            if any(mine["status"] == "active" for mine in group["my_memberships"])
        )
