"""What a use of an action is before anybody says what it is for: await, or iterate."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Coroutine,
    Generator,
)
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from academy.handle import Handle

R = TypeVar("R")


class Call(Coroutine[Any, Any, R], AsyncIterator[R]):
    """A call of an action: await it once, or iterate over it with `async for`.

    Nothing has been sent before that. The coroutine is made at once, so that Python
    warns of a call that nobody awaits.
    """

    __slots__ = ("_args", "_coroutine", "_handle", "_kwargs", "_name", "_stream")

    def __init__(
        self,
        handle: Handle[Any],
        name: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._handle = handle
        self._name = name
        self._args = args
        self._kwargs = kwargs
        self._coroutine: Coroutine[Any, Any, R] = handle._call(name, args, kwargs)
        self._stream: AsyncGenerator[R, None] | None = None

    def __repr__(self) -> str:
        return f"Call({self._handle}, {self._name!r})"

    # --- a coroutine, which tasks run as such

    def __await__(self) -> Generator[Any, Any, R]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """Run until the next wait; for event loops."""
        return self._coroutine.send(value)

    def throw(self, *args: Any) -> Any:
        """Raise an error where the call waits; for event loops."""
        return self._coroutine.throw(*args)

    def close(self) -> None:
        """Give up a call that was not awaited."""
        self._coroutine.close()

    # --- an async iterator

    def __aiter__(self) -> AsyncGenerator[R, None]:
        if self._stream is None:
            self._coroutine.close()  # so that nobody misses its await
            self._stream = self._handle._iterate(self._name, self._args, self._kwargs)
        return self._stream

    def __anext__(self) -> Coroutine[Any, Any, R]:
        return self.__aiter__().__anext__()

    async def aclose(self) -> None:
        """End the stream, and so the action."""
        await self.__aiter__().aclose()


async def _looks_like(*args: Any, **kwargs: Any) -> Any:
    """Have the signature of every action."""


class BoundAction:
    """An action of a handle: call it as if it were a coroutine function.

    To `inspect` it is one as well: frameworks ask, before they await what it returns.
    """

    __slots__ = ("__name__", "_handle")
    __code__ = _looks_like.__code__
    __defaults__: ClassVar[None] = None
    __kwdefaults__: ClassVar[None] = None
    __annotations__ = _looks_like.__annotations__

    def __init__(self, handle: Handle[Any], name: str) -> None:
        self._handle = handle
        self.__name__ = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> Call[Any]:
        return Call(self._handle, self.__name__, args, kwargs)

    def __repr__(self) -> str:
        return f"<action {self.__name__} of {self._handle}>"
