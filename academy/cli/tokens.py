"""`academy exchange token`, `revoke` and `rotate-key`: who may use an exchange."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from academy.exchange.cloud.config import AuthConfig
    from academy.exchange.cloud.security.auth import Authority

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

    from academy.exchange.cloud.security.auth import DEFAULT_NAMESPACE, TokenAuthority

    authority = _auth(config).authority()
    assert isinstance(authority, TokenAuthority)
    space = namespace or user or DEFAULT_NAMESPACE
    name = user or getpass.getuser()
    typer.echo(authority.user_token(name, space, lifetime))


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
    config: Config = None,
) -> None:
    """Make tokens void, and cut who is connected with them.

    Running exchanges notice within a second.
    """
    from uuid import UUID

    if [user, mailbox, token].count(None) != 2:
        raise typer.BadParameter("name one of --user, --mailbox and --token.")
    _, revocations = _auth(config).files()
    if user is not None:
        revocations.add("user", user, namespace)
        where = f"in the namespace {namespace}" if namespace else "in all namespaces"
        typer.echo(f"Revoked {user} {where}.")
    elif mailbox is not None:
        revocations.add("mailbox", UUID(mailbox).hex)
        typer.echo(f"Revoked the mailbox {UUID(mailbox)}.")
    elif token is not None:
        token_id = _token_id(token)
        revocations.add("token", token_id)
        typer.echo(f"Revoked the token {token_id}.")


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
    auth = _auth(config)
    keys, _ = auth.files()
    before = auth.authority()
    keys.rotate(drop_older=drop_older)
    _sign_remembered(before, auth.authority())
    left = len(keys.keys) - 1
    typer.echo(f"The key {next(iter(keys.keys))} signs; {left} older ones verify.")


def _sign_remembered(before: Authority, after: Authority) -> None:
    """Replace the tokens that programs of this user find by those of a new key."""
    from academy.exception import UnauthorizedError
    from academy.exchange.cloud.credentials import known_exchanges, remember

    for url, facts in known_exchanges().items():
        try:
            held = before.verify(facts.get("token"))
        except UnauthorizedError:
            continue  # of another exchange
        token = after.user_token(held.subject, held.namespace)
        remember(url, token=token)


def _auth(config: Path | None) -> AuthConfig:
    from academy.exchange.cloud.config import ExchangeServingConfig

    settings = ExchangeServingConfig.settings(config)
    auth = settings.validate(ExchangeServingConfig).auth
    if auth.method == "none":
        raise typer.BadParameter("this exchange asks for no token (auth.method).")
    return auth
