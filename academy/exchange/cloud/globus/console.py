"""Which groups of Globus a mailbox is shared with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from academy.exchange.cloud.v1.messages import write_entity
from academy.exchange.cloud.v1.requests import V1Requests

if TYPE_CHECKING:
    from academy.exchange.cloud.client import HttpExchangeFactory
    from academy.identifier import EntityId


class ExchangeConsole:
    """Shares mailboxes of whoever asks, at an exchange with Globus Auth.

    Members of a group may find an agent that is shared with it, ask for its status, and
    call it. Each method raises `ForbiddenError` if somebody else owns the mailbox, and
    `BadEntityIdError` if there is none.
    """

    def __init__(self, factory: HttpExchangeFactory) -> None:
        self._factory = factory

    async def share_mailbox(self, uid: EntityId, group_id: UUID | str) -> None:
        """Let the members of a group use a mailbox."""
        await self._ask("POST", uid, group_id=str(group_id))

    async def get_shared_groups(self, uid: EntityId) -> list[str]:
        """Return the ids of the groups that a mailbox is shared with."""
        found: list[str] = (await self._ask("GET", uid))["group_ids"]
        return found

    async def remove_shared_group(self, uid: EntityId, group_id: UUID | str) -> None:
        """Share a mailbox with a group no more."""
        await self._ask("DELETE", uid, group_id=str(group_id))

    async def _ask(self, method: str, uid: EntityId, **parameters: Any) -> Any:
        patience, mailbox = self._factory.first_patience, json.dumps(write_entity(uid))
        async with V1Requests(self._factory) as requests:
            return await requests.ask(
                method,
                "/mailbox/share",
                about=uid,
                patience=patience,
                mailbox=mailbox,
                **parameters,
            )
