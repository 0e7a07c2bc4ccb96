"""What a link asks its exchange, and what it is told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from academy.exchange.cloud import protocol
from academy.exchange.cloud.writer import Writer
from academy.exchange.errors import unpack_error

Item = TypeVar("Item")
Told = Callable[[Any], None]


@dataclass(slots=True)
class Call:
    """A call without a reply.

    Attributes:
        content: method and arguments.
        done: gets the result or the error.
        after: sequence number of the last message that was posted before it.
        then: told the result at once, before anything that came behind it is read.
    """

    content: dict[str, Any]
    done: asyncio.Future[Any]
    after: int = 0
    then: Told | None = None


class Calls:
    """The calls without a reply; most of them survive their connection.

    Invariant: `_own` are the numbers of those that a connection makes for itself, which
    end with it.
    """

    __slots__ = ("_numbers", "_open", "_own")

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, Call] = {}
        self._own: set[int] = set()

    def begin(
        self, content: dict[str, Any], after: int, then: Told | None
    ) -> tuple[int, asyncio.Future[Any]]:
        """Keep a call to be sent; return its number, and what gets the result."""
        number = next(self._numbers)
        done = asyncio.get_running_loop().create_future()
        self._open[number] = Call(content, done, after, then)
        return number, done

    def drop(self, number: int) -> None:
        """Wait no more for a reply."""
        self._open.pop(number, None)

    def ask(
        self, writer: Writer, then: Told | None = None, /, **content: Any
    ) -> asyncio.Future[Any]:
        """Make a call for one connection."""
        number, done = self.begin(content, 0, then)
        done.add_done_callback(_retrieve)
        self._own.add(number)
        writer.put(protocol.numbered(protocol.CALL, number, content))
        return done

    def tell(self, writer: Writer, **content: Any) -> None:
        """Make a call for one connection whose result nobody waits for."""
        writer.put(protocol.numbered(protocol.CALL, next(self._numbers), content))

    def forget_own(self) -> None:
        """Learn that the connection that has made calls for itself is gone."""
        for number in self._own:
            self._open.pop(number, None)
        self._own.clear()

    def to_repeat(self) -> Iterator[tuple[int, bytes]]:
        """Return what is sent again: behind which message, and the record."""
        for number, call in self._open.items():
            if number not in self._own:
                record = protocol.numbered(protocol.CALL, number, call.content)
                yield call.after, record

    def replied(self, record: memoryview) -> None:
        """Take a REPLY record."""
        number, reply = protocol.read_numbered(record)
        call = self._open.pop(number, None)
        if call is None or call.done.done():
            return
        if "error" in reply:
            call.done.set_exception(unpack_error(reply))
            return
        if call.then is not None:
            call.then(reply["result"])
        call.done.set_result(reply["result"])

    def fail(self, error: Exception) -> None:
        """Tell everybody who waits that no reply will come."""
        calls, self._open = self._open, {}
        for call in calls.values():
            if not call.done.done():
                call.done.set_exception(error)


def batched(
    items: Iterable[Item], size: int = protocol.MAILBOXES_AT_ONCE
) -> list[list[Item]]:
    """Cut items into lists of at most `size`, as one call takes them."""
    whole = list(items)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Tell asyncio that nobody need hear of an error."""
    if not done.cancelled():
        done.exception()
