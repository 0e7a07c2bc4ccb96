"""Logging in: an access token of Globus Auth is exchanged for one of the exchange's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiohttp import web

from academy.exception import AcademyError, UnauthorizedError
from academy.exchange.cloud import protocol
from academy.exchange.cloud.security.auth import Authority, bearer
from academy.exchange.cloud.v1 import http as v1_http

if TYPE_CHECKING:
    from academy.exchange.cloud.globus.identities import GlobusIdentities

logger = logging.getLogger(__name__)


def add_route(
    app: web.Application, authority: Authority, globus: GlobusIdentities
) -> None:
    """Let users of Globus Auth log in."""

    async def log_in(request: web.Request) -> web.Response:
        token = bearer(request.headers)
        try:
            if not token:
                raise UnauthorizedError("an access token of Globus Auth is missing")
            own = await authority.admit(await globus.identify(token))
        except UnauthorizedError as error:
            logger.warning("turned away %s: %s", request.remote, error)
            return v1_http.refusal(error, 403 if token else 401)
        except AcademyError as error:
            return v1_http.refusal(error)
        return web.json_response({"token": own})

    app.router.add_post(protocol.LOGIN_PATH, log_in)
