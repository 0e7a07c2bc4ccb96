"""Storage in Redis or Valkey: what several exchange servers share.

A namespace belongs to one server at a time. Whoever has got the newest token for it
(see `academy.exchange.store.redis_leases`) may read and write; every other one is
refused, by Redis itself, however late it notices that it owns the namespace no more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from itertools import chain
from typing import Any

from academy.exception import StorageError
from academy.exchange.store import (
    LARGE,
    Changes,
    Contents,
    Envelope,
    MailboxRecord,
    redis_scripts as scripts,
)
from academy.exchange.store.bodies import Bodies, Body, References
from academy.exchange.store.redis_bodies import RedisBodies
from academy.exchange.store.redis_server import RedisServer

STEP_BYTES = 1_000_000
"""Bytes from which on operations of one commit go into the next step."""
STEP_OPERATIONS = 2_000
"""Their number: Redis serves nobody else while it works on a step (a few ms)."""
PAGE = 1_000
"""Mailboxes or sessions that are read at once."""

_HEADER = struct.Struct("<16s16sBQ")
_REFERENCE = struct.Struct("<QQ")
_PACKED = len(Body.new(0).packed())
"""Bytes of what is stored in place of a large payload."""

Operation = tuple[bytes | str | int, ...]


class RedisStore:
    """Keeps the mailboxes and messages of one namespace in Redis.

    After a `StorageError` for want of an answer the commit may have been done. To open
    the store again tells what is there.

    Args:
        server: where.
        namespace: whose.
        token: shows that the namespace is ours.
    """

    def __init__(self, server: RedisServer, namespace: str, token: int) -> None:
        self.bodies: Bodies = RedisBodies(server, namespace, token)
        self._references = References()
        self._server = server
        self._namespace = namespace
        self._token = token
        self._meta = server.key(namespace, "meta")
        self._commits = 0
        self._last = 0
        self._closed = False

    async def open(self) -> Contents:
        if self._closed:
            raise self._closed_error()
        while await self._run(scripts.REPLAY):
            pass
        commits, last = await self._run(scripts.STATE)
        self._commits, self._last = int(commits or 0), int(last or 0)
        contents = Contents(last_number=self._last)
        async for _, packed in self._pages("HSCAN", "mailboxes"):
            contents.mailboxes += map(_record, packed)
        async for uids, sequences in self._pages("HSCAN", "sessions"):
            contents.sessions.update(zip(uids, map(int, sequences), strict=True))
        async for uids, _ in self._pages("SSCAN", "boxes"):
            await self._count_waiting(contents.waiting, uids)
        await self._load_references(contents.waiting)
        return contents

    async def _pages(
        self, command: str, name: str
    ) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
        """Read a hash or a set: members not seen before, and their values."""
        key, cursor = self._server.key(self._namespace, name), 0
        known: set[bytes] = set()
        while True:
            cursor, page = await self._server.call(command, key, cursor, "COUNT", PAGE)
            fresh = [field for field in page if field not in known]
            known.update(fresh)
            yield fresh, [page[f] for f in fresh] if command == "HSCAN" else []
            if not cursor:
                return

    async def _load_references(self, waiting: dict[bytes, tuple[int, int]]) -> None:
        """Learn which messages are large, and drop bodies that belong to none."""
        keys: dict[bytes, dict[int, bytes]] = {}
        async for found, references in self._pages("HSCAN", "references"):
            for key, reference in zip(found, references, strict=True):
                number, size = _REFERENCE.unpack_from(reference)
                dest = reference[_REFERENCE.size :]
                keys.setdefault(dest, {})[number] = key
                count, total = waiting[dest]
                waiting[dest] = count, total + size - _PACKED
        self._references = References(keys)
        await self.bodies.sweep(self._references.keys())

    async def _count_waiting(
        self, waiting: dict[bytes, tuple[int, int]], uids: list[bytes]
    ) -> None:
        after = b""
        while uids:
            done, after, found = await self._run(
                scripts.WAITING, STEP_BYTES, after, *uids
            )
            for uid, count, size in found:
                before = waiting.get(uid, (0, 0))
                waiting[uid] = (before[0] + count, before[1] + size)
            uids = uids[done:]

    @property
    def commit_now(self) -> None:
        return None

    async def commit(self, changes: Changes) -> None:
        if self._closed:
            raise self._closed_error()
        last = self._last_of(changes.added)
        commit = self._commits + 1
        gone = self._references.follow(changes)
        steps = list(_steps(changes, gone))
        head = (self._token, commit)
        if len(steps) <= 1:
            operations = steps[0] if steps else ()
            await self._write(scripts.COMMIT, *head, last, *operations)
        else:
            for index, operations in enumerate(steps):
                await self._server.run(
                    scripts.STAGE, self._meta, *head, index, *operations
                )
            await self._write(scripts.SEAL, *head, last)
            while await self._run(scripts.REPLAY):
                pass
        self._commits, self._last = commit, last
        self.bodies.delete(gone)

    def _last_of(self, added: list[Envelope]) -> int:
        # Redis would notice as well, but in the middle of a commit.
        last = self._last
        for envelope in added:
            if envelope.number <= last:
                raise StorageError(
                    f"cannot write to {self._server!r}: number {envelope.number} of a "
                    f"message is not UNIQUE (the last one was {last})"
                )
            last = envelope.number
        return last

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        if self._closed:
            raise self._closed_error()
        rows = await self._run(scripts.PENDING, dest, after, limit)
        return [_envelope(dest, *row) for row in rows]

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        if self._closed:
            raise self._closed_error()
        rows, due = await self._run(scripts.EXPIRED, repr(now), limit)
        return [_envelope(*row) for row in rows], float(due) if due else None

    async def close(self) -> None:
        # The connections are the server's, which other namespaces use as well.
        self._closed = True
        await self.bodies.close()

    async def _run(self, script: str, *arguments: Any) -> Any:
        return await self._server.run(script, self._meta, self._token, *arguments)

    async def _write(self, script: str, *arguments: Any) -> None:
        await self._server.write(script, self._meta, *arguments)

    def _closed_error(self) -> StorageError:
        return StorageError(
            f"namespace {self._namespace!r} of {self._server!r} is closed"
        )


def _steps(changes: Changes, gone: list[bytes]) -> Iterator[list[bytes | str | int]]:
    """Cut a commit into runs of operations that Redis does at once.

    Args:
        changes: what is committed.
        gone: keys of the bodies that it leaves over.
    """
    step: list[bytes | str | int] = []
    size = count = 0
    unreferenced: Iterator[Operation] = (("u", key) for key in gone)
    for operation in chain(_operations(changes), unreferenced):
        step += operation
        count += 1
        # The last part of an operation is the only one that can be large.
        part = operation[-1]
        size += len(part) if isinstance(part, bytes) else 0
        if size >= STEP_BYTES or count >= STEP_OPERATIONS:
            yield step
            step, size, count = [], 0, 0
    if step:
        yield step


def _operations(changes: Changes) -> Iterator[Operation]:
    # What settles comes first: see `redis_scripts`. So what is settled in the same
    # commit that adds or leases it is neither added nor leased.
    gone: set[int] = set()
    if changes.settled and (changes.added or changes.leased):
        gone = {number for _, number in changes.settled}
    for uid, number in changes.settled:
        yield "s", uid, number
    for e in changes.added:
        if e.number not in gone:
            header = _HEADER.pack(e.src, e.tag, e.flags, e.lease)
            yield "a", e.dest, e.number, header, e.payload
    for e in changes.large:
        if e.number not in gone:
            body = Body.unpacked(e.payload)
            yield "b", body.key, _REFERENCE.pack(e.number, body.size) + e.dest
    for e in changes.leased:
        if e.number not in gone:
            yield "l", e.dest, e.number, e.lease
    for uid, record in changes.mailboxes.items():
        yield "m", uid, _packed(record)
    for uid, sequence in changes.sessions.items():
        yield "q", uid, sequence
    for uid in changes.cleared:
        yield "c", uid
    for uid, number, due in changes.expiries:
        yield "e", uid, number, repr(due)
    for uid in changes.removed:
        yield "x", uid


def _envelope(
    dest: bytes, number: bytes, header: bytes, payload: bytes, lease: bytes
) -> Envelope:
    src, tag, flags, first_lease = _HEADER.unpack(header)
    size = Body.unpacked(payload).size if flags & LARGE else len(payload)
    return Envelope(
        dest,
        src,
        tag,
        flags,
        payload,
        size,
        number=int(number),
        lease=int(lease) if lease else first_lease,
    )


def _packed(record: MailboxRecord) -> bytes:
    content = asdict(record)
    content["uid"], content["incarnation"] = record.uid.hex(), record.incarnation.hex()
    return json.dumps(content).encode()


def _record(packed: bytes) -> MailboxRecord:
    content = json.loads(packed)
    content["uid"] = bytes.fromhex(content["uid"])
    content["incarnation"] = bytes.fromhex(content["incarnation"])
    content["classes"] = tuple(content["classes"])
    content["groups"] = tuple(content["groups"])
    return MailboxRecord(**content)
