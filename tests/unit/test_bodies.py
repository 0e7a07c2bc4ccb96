"""Bodies of large messages: written in parts, and gone with their messages."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from academy.exception import ProtocolError, StorageError
from academy.exchange.mailbox import Limits, Mailbox
from academy.exchange.mailboxes import Mailboxes
from academy.exchange.store import LARGE, Changes, Envelope, MailboxRecord, Store
from academy.exchange.store.bodies import Body, FileBodies, ScratchBodies
from academy.exchange.store.memory import MemoryStore
from academy.exchange.store.sqlite import SqliteStore
from academy.exchange.uploads import Uploads

DEST, SRC, SESSION, KEY = b"D" * 16, b"S" * 16, b"s" * 16, b"K" * 16


@pytest.fixture(params=["memory", "process", "power"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store
    if request.param == "memory":
        store = MemoryStore(FileBodies(tmp_path / "exchange.db.bodies"))
    else:
        store = SqliteStore(tmp_path / "exchange.db", request.param)
    await store.open()
    yield store
    await store.close()


def files(folder: Path) -> set[str]:
    found = folder / "exchange.db.bodies"
    return {path.name for path in found.iterdir()} if found.exists() else set()


async def stored(store: Store, number: int, size: int = 10) -> Body:
    """Store a large message; return its body."""
    body = Body.new(size)
    await store.bodies.write(body.key, 0, bytes(size))
    envelope = Envelope(
        *(DEST, SRC, number.to_bytes(16, "big"), LARGE, body.packed(), size),
        number=number,
    )
    await store.commit(Changes(added=[envelope], large=[envelope]))
    return body


async def test_parts_come_back_from_anywhere(tmp_path: Path) -> None:
    bodies = FileBodies(tmp_path / "bodies")
    await bodies.write(KEY, 0, b"0123")
    await bodies.write(KEY, 4, b"4567")
    await bodies.write(KEY, 2, b"2345")
    assert await bodies.read(KEY, 3, 4) == b"3456"
    await bodies.close()


async def test_what_was_not_written_is_an_error(tmp_path: Path) -> None:
    for bodies in (FileBodies(tmp_path), ScratchBodies(tmp_path)):
        with pytest.raises(StorageError, match=KEY.hex()):
            await bodies.read(KEY, 0, 1)
        await bodies.write(KEY, 0, b"0123")
        with pytest.raises(StorageError, match="ends at 4 bytes"):
            await bodies.read(KEY, 2, 4)
        await bodies.close()


async def test_nobody_else_can_read_bodies(tmp_path: Path) -> None:
    bodies = FileBodies(tmp_path / "bodies")
    await bodies.write(KEY, 0, b"secret")
    await bodies.close()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "bodies").iterdir()]
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "bodies").stat().st_mode) == 0o700


async def test_a_message_takes_its_body_along(store: Store, tmp_path: Path) -> None:
    first, second, third = [await stored(store, number) for number in (1, 2, 3)]
    await store.commit(Changes(settled=[(DEST, 2)]))
    await store.bodies.close()
    assert files(tmp_path) == {first.key.hex(), third.key.hex()}
    await store.commit(Changes(cleared=[DEST]))
    await store.bodies.close()
    assert files(tmp_path) == set()
    assert second.key != first.key


async def test_a_large_message_counts_with_all_its_bytes(
    store: Store, tmp_path: Path
) -> None:
    body = await stored(store, 1, 5000)
    contents = await store.open()
    assert contents.waiting == {DEST: (1, 5000)}
    (envelope,) = await store.pending(DEST, 0, 9)
    assert (envelope.size, Body.unpacked(envelope.payload)) == (5000, body)


async def test_bodies_that_no_message_refers_to_go_when_a_store_is_opened(
    store: Store, tmp_path: Path
) -> None:
    body = await stored(store, 1)
    await store.bodies.write(KEY, 0, b"of an upload when the exchange was killed")
    await store.open()
    assert files(tmp_path) == {body.key.hex()}
    await store.commit(Changes(settled=[(DEST, 1)]))
    await store.close()
    assert files(tmp_path) == set()


async def test_scratch_bodies_end_with_their_process(tmp_path: Path) -> None:
    """One that was killed leaves them to the next."""

    def folders() -> set[Path]:
        return set(tmp_path.glob("bodies-*"))

    program = (
        "import asyncio, os, sys\n"
        "from academy.exchange.store.bodies import ScratchBodies\n"
        f"asyncio.run(ScratchBodies({str(tmp_path)!r}).write(b'K' * 16, 0, b'0'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", program]
    await asyncio.to_thread(subprocess.run, command, check=False)
    left = folders()
    assert len(left) == 1

    mine, other = ScratchBodies(tmp_path), ScratchBodies(tmp_path)
    await mine.write(KEY, 0, b"0")
    assert not left & folders()
    await other.write(KEY, 0, b"0")
    assert await mine.read(KEY, 0, 1) == b"0"
    await mine.close()
    await other.close()
    assert not folders()


# --- uploads


@pytest.fixture
async def bodies(tmp_path: Path) -> AsyncIterator[FileBodies]:
    bodies = FileBodies(tmp_path)
    yield bodies
    await bodies.close()


@pytest.fixture
def box() -> Mailbox:
    return Mailbox(MailboxRecord(DEST, True))


async def test_an_upload_reserves_room_until_it_is_dropped(
    bodies: FileBodies, box: Mailbox, tmp_path: Path
) -> None:
    uploads = Uploads(bodies, Mailboxes(Limits()))
    uploads.begin(SESSION, 1, box, 100)
    assert (box.count, box.bytes) == (1, 100)
    assert await uploads.write(SESSION, 1, 0, bytes(60)) == (60, 100)
    assert uploads.received(SESSION, 1) == 60
    uploads.drop(SESSION, 1)
    assert (box.count, box.bytes) == (0, 0)
    assert await uploads.write(SESSION, 1, 60, bytes(40)) is None
    await bodies.close()
    assert os.listdir(tmp_path) == []


async def test_parts_that_do_not_fit_are_refused(
    bodies: FileBodies, box: Mailbox
) -> None:
    uploads = Uploads(bodies, Mailboxes(Limits()))
    uploads.begin(SESSION, 1, box, 100)
    for offset, size in ((1, 10), (0, 101)):
        with pytest.raises(ProtocolError, match="of an upload of 100 bytes"):
            await uploads.write(SESSION, 1, offset, bytes(size))
    with pytest.raises(ProtocolError, match="not complete"):
        uploads.finish(SESSION, 1, Envelope(DEST, SRC, KEY, 0, b"", 0))
    uploads.clear()


async def test_a_client_that_does_not_come_back_loses_its_uploads(
    bodies: FileBodies, box: Mailbox
) -> None:
    uploads = Uploads(bodies, Mailboxes(Limits()), patience=0)
    for number in (1, 2):
        uploads.begin(SESSION, number, box, 100)
    uploads.disconnected(SESSION)
    uploads.connected(SESSION)
    await asyncio.sleep(0.01)
    assert len(uploads) == 2
    uploads.disconnected(SESSION)
    async with asyncio.timeout(10):
        while len(uploads):
            await asyncio.sleep(0.001)
    assert (box.count, box.bytes) == (0, 0)
