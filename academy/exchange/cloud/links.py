"""The connections of this process: one per event loop and exchange."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from academy.exchange.cloud.link import Link

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory

_links: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Link]] = (
    WeakKeyDictionary()
)


async def acquire(
    factory: HttpExchangeFactory, token: str | None, patience: float
) -> Link:
    """Return this event loop's link to a factory's exchange, connected.

    Each one acquired is to be released. A first connection is tried for `patience`
    seconds.

    Raises:
        ExchangeConnectionError: nobody answers, within the factory's retries.
        UnauthorizedError: the token is refused.
    """
    links = _links.setdefault(asyncio.get_running_loop(), {})
    key = factory.link_key(token)
    link = links.get(key)
    if link is None or link.failed:
        link = links[key] = Link(factory, token, patience)
    link.users += 1
    try:
        await link.ready()
    except BaseException:
        await release(link)
        raise
    return link


async def release(link: Link) -> None:
    """Give a link back; the last one closes it."""
    link.users -= 1
    if link.users == 0:
        links = _links.get(asyncio.get_running_loop(), {})
        if links.get(link.key) is link:
            del links[link.key]
        await link.close()
