"""What a message says: requests and responses, and how each becomes bytes.

A payload (arguments, result, exception) stays encoded until someone asks for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from uuid import UUID

from academy.exception import (
    ActionCancelledError,
    ActionInterruptedError,
    ActionInvalidStateError,
    IncompatibleNetworkProtocolError,
    MailboxTerminatedError,
    MessageExpiredError,
    PingCancelledError,
    RequestsNotServedError,
)
from academy.identifier import EntityId, entity_id
from academy.serialize import (
    PICKLE,
    Part,
    Payload,
    SerializationStrategy,
    load_exception,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE_FORMAT = 1
"""Version of the binary form."""

_STRATEGIES: tuple[SerializationStrategy | None, ...] = (
    None,
    SerializationStrategy.PICKLE,
    SerializationStrategy.JSON,
)


class ActionRequest:
    """Asks an agent to run one of its actions."""

    __slots__ = (
        "action",
        "arguments",
        "exception_serialization",
        "result_serialization",
    )
    code: ClassVar[int] = 1
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(
        self,
        action: str,
        arguments: Payload,
        result_serialization: SerializationStrategy | None = None,
        exception_serialization: SerializationStrategy | None = None,
    ) -> None:
        self.action = action
        self.arguments = arguments
        self.result_serialization = result_serialization
        self.exception_serialization = exception_serialization

    @classmethod
    def of(
        cls,
        action: str,
        pargs: Sequence[Any] = (),
        kargs: dict[str, Any] | None = None,
        strategy: SerializationStrategy = PICKLE,
        **serializations: SerializationStrategy | None,
    ) -> ActionRequest:
        """Make a request from live arguments."""
        value = (tuple(pargs), kargs or {})
        return cls(action, Payload(strategy, value), **serializations)

    def get_args(self) -> tuple[Any, ...]:
        """Decode the positional arguments."""
        return tuple(self.arguments.load()[0])

    def get_kwargs(self) -> dict[str, Any]:
        """Decode the keyword arguments."""
        return dict(self.arguments.load()[1])

    @property
    def result_strategy(self) -> SerializationStrategy:
        """How the caller wants the result: as the arguments unless it said."""
        return self.result_serialization or self.arguments.strategy

    @property
    def exception_strategy(self) -> SerializationStrategy:
        """How the caller wants an exception: as the result unless it said."""
        return self.exception_serialization or self.result_strategy

    def _fields(self) -> list[Part]:
        head = _action_head(
            self.action, self.result_serialization, self.exception_serialization
        )
        return [head, *self.arguments.parts()]

    @classmethod
    def _read(cls, data: memoryview) -> ActionRequest:
        end = 3 + data[2]
        return cls(
            str(data[3:end], "utf-8"),
            Payload.from_bytes(data[end:]),
            _STRATEGIES[data[0]],
            _STRATEGIES[data[1]],
        )


@lru_cache(maxsize=1024)
def _action_head(
    action: str,
    result: SerializationStrategy | None,
    exception: SerializationStrategy | None,
) -> bytes:
    name = action.encode()
    strategies = (_STRATEGIES.index(result), _STRATEGIES.index(exception))
    return bytes((*strategies, len(name))) + name


class CancelRequest:
    """Asks an agent to cancel the action that runs for a request."""

    __slots__ = ("target",)
    code: ClassVar[int] = 2
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(self, target: bytes) -> None:
        self.target = target

    @property
    def target_tag(self) -> UUID:
        """Tag of the request to cancel."""
        return UUID(bytes=self.target)

    def _fields(self) -> list[Part]:
        return [self.target]

    @classmethod
    def _read(cls, data: memoryview) -> CancelRequest:
        return cls(bytes(data[:16]))


class PingRequest:
    """Asks an entity whether it is there."""

    __slots__ = ()
    code: ClassVar[int] = 3
    kind: ClassVar[Literal["request"]] = "request"

    def _fields(self) -> list[Part]:
        return []

    @classmethod
    def _read(cls, _: memoryview) -> PingRequest:
        return cls()


class ShutdownRequest:
    """Asks an agent to shut down; `terminate` overrides its configuration."""

    __slots__ = ("terminate",)
    code: ClassVar[int] = 4
    kind: ClassVar[Literal["request"]] = "request"

    def __init__(self, terminate: bool | None = None) -> None:
        self.terminate = terminate

    def _fields(self) -> list[Part]:
        return [bytes(((None, False, True).index(self.terminate),))]

    @classmethod
    def _read(cls, data: memoryview) -> ShutdownRequest:
        return cls((None, False, True)[data[0]])


class ActionResponse:
    """The result of an action."""

    __slots__ = ("result",)
    code: ClassVar[int] = 5
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(self, result: Payload) -> None:
        self.result = result

    def get_result(self) -> Any:
        """Decode the result."""
        return self.result.load()

    def _fields(self) -> list[Part]:
        return self.result.parts()

    @classmethod
    def _read(cls, data: memoryview) -> ActionResponse:
        return cls(Payload.from_bytes(data))


class SuccessResponse:
    """A request that has no result was served."""

    __slots__ = ()
    code: ClassVar[int] = 6
    kind: ClassVar[Literal["response"]] = "response"

    def get_result(self) -> None:
        """There is none."""

    def _fields(self) -> list[Part]:
        return []

    @classmethod
    def _read(cls, _: memoryview) -> SuccessResponse:
        return cls()


class AcademyErrorResponse:
    """The request failed for a reason of this package, named by a code."""

    __slots__ = ("error_code", "mailbox_id", "text")
    code: ClassVar[int] = 7
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(
        self, error_code: int, mailbox_id: EntityId | None = None, text: str = ""
    ) -> None:
        self.error_code = error_code
        self.mailbox_id = mailbox_id
        self.text = text

    @classmethod
    def of(cls, error: Exception) -> AcademyErrorResponse | None:
        """Translate an error that has a code; None for any other."""
        if isinstance(error, MailboxTerminatedError):
            return cls(0, error.uid, error.reason)
        if isinstance(error, MessageExpiredError):
            return cls(_EXPIRED, error.uid)
        for code, kind in _ERROR_CODES.items():
            if type(error) is kind:
                first = error.args[0] if error.args else None
                return cls(code, text="" if first is None else str(first))
        return None

    def get_exception(self) -> Exception:
        """Return the error that the code stands for."""
        if self.error_code == 0 and self.mailbox_id is not None:
            return MailboxTerminatedError(self.mailbox_id, self.text)
        if self.error_code == _EXPIRED and self.mailbox_id is not None:
            return MessageExpiredError(self.mailbox_id)
        if self.error_code == 5:
            return IncompatibleNetworkProtocolError(self.text, MESSAGE_FORMAT)
        kind = _ERROR_CODES.get(self.error_code)
        if kind is None:
            return RequestsNotServedError(f"unknown error code {self.error_code}")
        return kind(self.text) if self.text else kind()

    def _fields(self) -> list[Part]:
        box = self.mailbox_id
        head = bytes((self.error_code, 0 if box is None else 1 + (box.role == "agent")))
        return [head, b"" if box is None else box.uid.bytes, self.text.encode()]

    @classmethod
    def _read(cls, data: memoryview) -> AcademyErrorResponse:
        if not data[1]:
            return cls(data[0], None, str(data[2:], "utf-8"))
        box = entity_id(data[1] == 2, bytes(data[2:18]))
        return cls(data[0], box, str(data[18:], "utf-8"))


_EXPIRED = 7
_ERROR_CODES: dict[int, type[Exception]] = {
    1: PingCancelledError,
    2: ActionInvalidStateError,
    3: ActionCancelledError,
    4: RequestsNotServedError,
    6: ActionInterruptedError,
}


class UserErrorResponse:
    """The action raised an exception of its own."""

    __slots__ = ("exception",)
    code: ClassVar[int] = 8
    kind: ClassVar[Literal["response"]] = "response"

    def __init__(self, exception: Payload) -> None:
        self.exception = exception

    def get_exception(self) -> BaseException:
        """Decode the exception."""
        return load_exception(self.exception)

    def _fields(self) -> list[Part]:
        return self.exception.exception_parts()

    @classmethod
    def _read(cls, data: memoryview) -> UserErrorResponse:
        return cls(Payload.from_bytes(data))
