"""One end of a WebSocket: messages come in as plain calls, and leave as such.

picows calls back with each frame while the socket is read, where a stream would wake a
task that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from academy.exception import ProtocolError

frames_logger = logging.getLogger(__name__)
"""What picows has to say. It reports each connection as INFO, and so do we."""
frames_logger.setLevel(logging.WARNING)

_BINARY, _CLOSE = WSMsgType.BINARY, WSMsgType.CLOSE
_GOODBYE_SECONDS = 1.0
_REASSURED_SECONDS = 1.0
_REASON_BYTES = 120


class WebSocket(WSListener):
    """One end of a WebSocket, from its handshake on.

    Invariants: `_take` gets the messages; until `start` they wait in `_early`, and
    after the end they are dropped. `_fragments` has what came of a message whose end
    is to come. `_room` is there while the far side does not keep up.

    Args:
        max_message_bytes: largest message that is taken; None for any.
        heartbeat: seconds of silence after which the far side is pinged.

    Attributes:
        opened: whether the handshake is over.
        ended: done when nothing more will be taken: says why, or has the error that
            taking a message has raised.
        code: with which the far side has closed; None when it went without a word.
    """

    def __init__(
        self, max_message_bytes: int | None = None, heartbeat: float = math.inf
    ) -> None:
        self._heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._max_message_bytes = max_message_bytes
        self._early: list[bytes] = []
        self._take: Callable[[bytes], object] = self._early.append
        self._fragments: list[bytes] | None = None
        self._room: asyncio.Future[None] | None = None
        self._left: Callable[[], object] = bool
        self._closing = False
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.opened = False
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.code: int | None = None

    def start(
        self, take: Callable[[bytes], object], left: Callable[[], object] = bool
    ) -> None:
        """Hand over each message, beginning with those that are here.

        Args:
            take: is given them.
            left: called when the far side says that it goes, and when it is gone. Who
                waits for `ended` learns of it when others may have sent it something.
        """
        self._left = left
        early, self._take = self._early, take
        for message in early:
            self._hand_over(message)

    def send(self, message: bytes) -> asyncio.Future[None] | None:
        """Send a message; return what there is to wait for before the next.

        It is done when the far side keeps up, or cancelled when that is gone.
        """
        self._transport.send(_BINARY, message)
        return self._room

    def pause_reading(self) -> None:
        """Read no more for now; what was read is still handed over."""
        self._transport.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.underlying_transport.resume_reading()

    async def rest(self, seconds: float) -> None:
        """Read nothing for so long, as a live peer of one that counts as live.

        What the far side sends is not looked at meanwhile, the answers to pings
        included: each side would take the other for dead.
        """
        every = min(_REASSURED_SECONDS, self._heartbeat / 4)
        until = self._loop.time() + seconds
        while (left := until - self._loop.time()) > 0:
            self._transport.notify_user_specific_pong_received()
            self._transport.send_pong()
            await asyncio.sleep(min(left, every))

    def stop(self) -> None:
        """Take nothing more."""
        self._take = _drop

    def fail(self, error: Exception) -> None:
        """Take nothing more, because of an error."""
        self.stop()
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # who waits may be gone: no complaint about it

    async def close(self, code: int = WSCloseCode.OK.value, reason: str = "") -> None:
        """Say goodbye, wait a second for the far side to do so, and hang up."""
        self._closing = True
        self.stop()
        self._transport.send_close(
            WSCloseCode(code), reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        )
        try:
            await asyncio.wait([self._gone], timeout=_GOODBYE_SECONDS)
        finally:
            # At once: TLS would say goodbye when the event loop may be gone.
            self._transport.disconnect(graceful=False)
        await asyncio.wait([self._gone])

    # --- what picows calls

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.opened = True

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind is _BINARY and frame.fin and self._fragments is None:
            self._hand_over(frame.get_payload_as_bytes())
        elif kind is _CLOSE:
            self._closed(transport, frame)
        elif kind in (_BINARY, WSMsgType.CONTINUATION):
            self._collect(frame)
        elif kind is WSMsgType.TEXT:
            self.fail(ProtocolError("a TEXT message is not expected"))

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        # Whatever comes is a sign of life; the answer to a ping may be behind a lot.
        self._transport.notify_user_specific_pong_received()
        return bool(frame.msg_type is WSMsgType.PONG)

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._gone.set_result(None)
        self._left()
        if self._room is not None:
            self._room.cancel()
        if self.ended.done():
            return
        # Without a word of the far side: what we have said, picows has said for us.
        said = transport.close_handshake and transport.close_handshake.sent
        if not said:
            self.ended.set_result("the connection is broken")
        elif self._closing:
            self.ended.set_result("it was closed here")
        elif said.code is WSCloseCode.GOING_AWAY:
            self.ended.set_result("no answer in time")
        else:
            self.ended.set_exception(ProtocolError(said.reason))

    # ---

    def _hand_over(self, message: bytes) -> None:
        try:
            self._take(message)
        except Exception as error:
            self.fail(error)

    def _collect(self, frame: WSFrame) -> None:
        """Put a message together that comes in several frames."""
        if (frame.msg_type is _BINARY) is (self._fragments is not None):
            self.fail(ProtocolError("a fragment belongs to no message"))
            return
        fragments = self._fragments = self._fragments or []
        fragments.append(frame.get_payload_as_bytes())
        limit = self._max_message_bytes
        if limit is not None and sum(map(len, fragments)) > limit:
            self.fail(ProtocolError(f"a message is above {limit} bytes"))
        elif frame.fin:
            self._fragments = None
            self._hand_over(b"".join(fragments))

    def _closed(self, transport: WSTransport, frame: WSFrame) -> None:
        code, reason = frame.get_close_code(), frame.get_close_reason()
        self.code = code.value
        self._left()
        if self._closing:
            transport.disconnect(graceful=False)
        else:
            transport.send_close(code)
            transport.disconnect()
        if not self.ended.done():
            why = f"closed with code {self.code}"
            self.ended.set_result(f"{why}: {reason}" if reason else why)
        self.stop()


def _drop(message: bytes) -> None:
    """Lose what nobody takes any more."""
