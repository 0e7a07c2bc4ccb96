"""`academy exchange token`, `revoke` and `rotate-key`: who may use an exchange."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from academy.exchange.cloud.security.auth import Credentials, TokenAuthority

Config = Annotated[
    Path | None,
    typer.Option(help="TOML file of the exchange, if it has one.", dir_okay=False),
]


def token(
    user: Annotated[str | None, typer.Option(help="Whose. Default: yours.")] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Default: the user's name; yours is `default`."),
    ] = None,
    lifetime: Annotated[
        float | None, typer.Option(help="Seconds. Default: auth.user_lifetime.", min=1)
    ] = None,
    config: Config = None,
) -> None:
    """Print a token for another person or machine.

    Its holder can do everything in the namespace, so hand it over in private.
    """
    import getpass

    from academy.exchange.cloud.security.auth import DEFAULT_NAMESPACE

    space = namespace or user or DEFAULT_NAMESPACE
    name = user or getpass.getuser()

    async def issue() -> str:
        async with _authority(config) as authority:
            return authority.user_token(name, space, lifetime)

    typer.echo(asyncio.run(issue()))


def revoke(
    user: Annotated[
        str | None, typer.Option(help="A user, and the user's agents.")
    ] = None,
    mailbox: Annotated[str | None, typer.Option(help="Id of an agent.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Id of a token (its claim jti), or - to read it from stdin."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Of the user. Default: all.")
    ] = None,
    lift: Annotated[
        bool,
        typer.Option("--lift", help="Let a revoked --user log in again."),
    ] = False,
    config: Config = None,
) -> None:
    """Make tokens void, cut who is connected with them, and keep users from logging in.

    Running exchanges notice within a second. Whoever you give a new token is let in;
    by Globus Auth a revoked user is after --lift only.
    """
    from uuid import UUID

    if [user, mailbox, token].count(None) != 2:
        raise typer.BadParameter("name one of --user, --mailbox and --token.")
    if lift and user is None:
        raise typer.BadParameter(
            "--lift goes with --user: the others are void for ever."
        )
    if lift:
        asyncio.run(_lift(config, str(user), namespace))
        typer.echo(f"{user} may log in again; older tokens stay void.")
    elif user is not None:
        asyncio.run(_revoke(config, "user", user, namespace))
        where = f"the namespace {namespace}" if namespace else "all namespaces"
        typer.echo(f"Revoked {user} in {where}.")
    elif mailbox is not None:
        asyncio.run(_revoke(config, "mailbox", UUID(mailbox).hex))
        typer.echo(f"Revoked the mailbox {UUID(mailbox)}.")
    elif token is not None:
        token_id = _token_id(token)
        asyncio.run(_revoke(config, "token", token_id))
        typer.echo(f"Revoked the token {token_id}.")


async def _revoke(
    config: Path | None,
    kind: Literal["user", "mailbox", "token"],
    name: str,
    namespace: str | None = None,
) -> None:
    async with _authority(config) as authority:
        await authority.revocations.add(kind, name, namespace)


async def _lift(config: Path | None, user: str, namespace: str | None) -> None:
    async with _authority(config) as authority:
        try:
            await authority.revocations.lift(user, namespace)
        except LookupError as error:
            raise typer.BadParameter(str(error)) from error


def _token_id(given: str) -> str:
    """Return the id of the token that is meant; its text comes by standard input."""
    from academy.exchange.cloud.credentials import claims_of

    if given == "-":
        claims = claims_of(typer.get_text_stream("stdin").read().strip())
        if "jti" not in claims:
            raise typer.BadParameter("what standard input holds is no token.")
        return str(claims["jti"])
    if "jti" in (claims := claims_of(given)):
        raise typer.BadParameter(
            "everybody on this machine can read a command line: name the token by its "
            f"id, --token {claims['jti']}, or give it on standard input, --token -"
        )
    return given


def rotate_key(
    drop_older: Annotated[
        bool,
        typer.Option("--drop-older", help="Forget older keys: their tokens are void."),
    ] = False,
    config: Config = None,
) -> None:
    """Sign with a new key from now on; older ones verify what they have signed.

    Running exchanges notice within a second.
    """
    from academy.exchange.cloud.credentials import remember

    async def rotate() -> str:
        async with _authority(config) as authority:
            held = _remembered(authority)
            await authority.keys.rotate(drop_older=drop_older)
            for url, by in held.items():
                remember(url, token=authority.user_token(by.subject, by.namespace))
            left = len(authority.keys.keys) - 1
            return f"The key {authority.key_id} signs; {left} older ones verify."

    typer.echo(asyncio.run(rotate()))


def _remembered(authority: TokenAuthority) -> dict[str, Credentials]:
    """Return whose tokens programs of this user find, by url of this exchange."""
    from academy.exception import UnauthorizedError
    from academy.exchange.cloud.credentials import known_exchanges

    held = {}
    for url, facts in known_exchanges().items():
        with suppress(UnauthorizedError):  # it is another exchange's
            held[url] = authority.verify(facts.get("token"))
    return held


@asynccontextmanager
async def _authority(config: Path | None) -> AsyncIterator[TokenAuthority]:
    """Open what an exchange issues and checks tokens with."""
    from academy.exchange.cloud.config import ExchangeServingConfig
    from academy.exchange.cloud.security.auth import TokenAuthority

    settings = ExchangeServingConfig.settings(config)
    authority = settings.validate(ExchangeServingConfig).authority()
    if not isinstance(authority, TokenAuthority):
        raise typer.BadParameter("this exchange asks for no token (auth.method).")
    try:
        await authority.refresh()
        yield authority
    finally:
        await authority.close()
