"""Storage in one SQLite file: what a hosted exchange uses unless told otherwise.

The file belongs to one exchange at a time. It should lie on a local disk: on a network
file system it is safe only as long as one machine at a time uses it.

Source: https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

from academy.exception import StorageError
from academy.exchange.store import LARGE, Changes, Contents, Envelope, MailboxRecord
from academy.exchange.store.bodies import Bodies, Body, FileBodies, References

logger = logging.getLogger(__name__)

Durability: TypeAlias = Literal["process", "power"]

CHECKPOINT_BYTES = 16_000_000
"""Size of the write-ahead log from which on it is copied into the database."""

KEPT_LOG_BYTES = 4_000_000
"""What stays of the log's file when it starts from its beginning again.

To write over a file costs less than to extend one. But one that never shrank would not
tell how much there is to copy.
"""

CHECK_EVERY = 16
"""Commits between two looks at that size."""

COPIED_BYTES = 10_000
"""Size of a payload below which a copy costs less than looking for its adapter."""

_SCHEMA_VERSION = 3
_SCHEMA = """
create table if not exists mailbox(
    uid blob primary key, agent int, name text, classes text, epoch int,
    incarnation blob, terminated int, creator text, reason text,
    groups text
) without rowid;
create table if not exists message(
    dest blob, number int, src blob, tag blob, flags int, lease int, payload blob,
    primary key(dest, number)
) without rowid;
create table if not exists session(uid blob primary key, sequence int) without rowid;
create table if not exists expiry(
    dest blob, number int, due real, primary key(dest, number)
) without rowid;
create index if not exists expiry_due on expiry(due);
"""
_UPGRADES = {
    1: "alter table mailbox add column reason text",
    2: "alter table mailbox add column groups text",
}
"""By schema version, what makes a database of that version one of the next."""
_PUT_MAILBOX = "insert or replace into mailbox values(?,?,?,?,?,?,?,?,?,?)"
_PUT_MESSAGE = "insert into message values(?,?,?,?,?,?,?)"
_PUT_SESSION = "insert or replace into session values(?,?)"
_PUT_EXPIRY = "insert or replace into expiry values(?,?,?)"
_REMOVE = "delete from mailbox where uid=?"
_LEASE = "update message set lease=? where dest=? and number=?"
_SETTLE = "delete from message where dest=? and number=?"
_CLEAR = "delete from message where dest=?"
_PENDING = (
    "select number, src, tag, flags, lease, payload from message "
    "where dest=? and number>? order by number limit ?"
)
# Most messages are settled before they expire. Of those nothing is left but a row here.
_SETTLED_MEANWHILE = (
    "delete from expiry where due<=? and not exists(select 1 from message as m "
    "where m.dest=expiry.dest and m.number=expiry.number)"
)
_EXPIRED = (
    "select dest, number, src, tag, flags, lease, payload "
    "from expiry join message using(dest, number) where due<=? order by due limit ?"
)
_NEXT_EXPIRY = "select min(due) from expiry"
_CHECKPOINT = "pragma wal_checkpoint(passive)"
_WAITING = "select dest, count(*), sum(length(payload)) from message group by dest"
_LARGE = f"select dest, number, payload from message where flags & {LARGE}"


class SqliteStore:
    """Keeps mailboxes and messages in a SQLite file.

    Args:
        path: the database; made (mode 0600) if it does not exist.
        durability: "process" survives the death of any process, and costs no wait
            for the disk; "power" also waits until the disk has each transaction, so
            that it survives a power cut. Transactions group whatever came meanwhile.
        bodies: where those of large messages are kept. Default: in files of the folder
            `PATH.bodies`.
    """

    def __init__(
        self,
        path: str | Path,
        durability: Durability = "process",
        bodies: Bodies | None = None,
    ) -> None:
        self.bodies = bodies or FileBodies(f"{path}.bodies")
        self._references = References()
        self._path = Path(path)
        self._durability = durability
        self._db: sqlite3.Connection | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._lock_file: int | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        self._log = Path(f"{path}-wal")
        self._commits = 0

    async def open(self) -> Contents:
        await self.close()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600)
            self._lock()
            self._db = _connect(self._path)
            contents = self._load(self._db)
        except (OSError, sqlite3.Error) as error:
            raise self._failure("open", error) from error
        await self.bodies.sweep(self._references.keys())
        return contents

    def _lock(self) -> None:
        # A second exchange on the same file would break every rule. The kernel lets
        # go of the lock when this process ends, however it ends.
        self._lock_file = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"{self._path} is in use by another exchange: stop that one first, or "
                "configure another path."
            ) from error

    def _load(self, db: sqlite3.Connection) -> Contents:
        db.execute("pragma journal_mode=wal")
        full = self._durability == "power"
        db.execute(f"pragma synchronous={'full' if full else 'normal'}")
        # Checkpoints wait for the disk: they are made in a thread, not in a commit.
        db.execute("pragma wal_autocheckpoint=0")
        db.execute(f"pragma journal_size_limit={KEPT_LOG_BYTES}")
        # One that was killed has left its log, and who is killed often would never
        # come to shorten it.
        if self._log.exists() and self._log.stat().st_size > CHECKPOINT_BYTES:
            db.execute("pragma wal_checkpoint(truncate)").fetchone()
        (version,) = db.execute("pragma user_version").fetchone()
        while version in _UPGRADES:
            db.execute("begin")
            db.execute(_UPGRADES[version])
            version += 1
            db.execute(f"pragma user_version={version}")
            db.execute("commit")
        if version not in (0, _SCHEMA_VERSION):
            raise StorageError(
                f"{self._path} was written by another version of academy-hpc (schema "
                f"{version}, this one reads {_SCHEMA_VERSION}): use another file."
            )
        db.executescript(_SCHEMA)
        db.execute(f"pragma user_version={_SCHEMA_VERSION}")
        last = db.execute("select max(number) from message").fetchone()[0] or 0
        waiting = {uid: (n, size) for uid, n, size in db.execute(_WAITING)}
        keys: dict[bytes, dict[int, bytes]] = {}
        for dest, number, reference in db.execute(_LARGE):
            body = Body.unpacked(reference)
            keys.setdefault(dest, {})[number] = body.key
            count, size = waiting[dest]
            waiting[dest] = count, size - len(reference) + body.size
        self._references = References(keys)
        return Contents(
            mailboxes=[_record(row) for row in db.execute("select * from mailbox")],
            sessions=dict(db.execute("select uid, sequence from session")),
            waiting=waiting,
            last_number=last,
        )

    @property
    def commit_now(self) -> Callable[[Changes], None] | None:
        return self._write_here if self._durability == "process" else None

    def _write_here(self, changes: Changes) -> None:
        self._write(changes)
        self._written(changes)

    async def commit(self, changes: Changes) -> None:
        if self._durability == "process":
            self._write_here(changes)
            return
        if changes.large:
            large = [Body.unpacked(envelope.payload) for envelope in changes.large]
            await self.bodies.sync(body.key for body in large)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "sqlite")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._write, changes)
        self._written(changes)

    def _written(self, changes: Changes) -> None:
        if keys := self._references.follow(changes):
            self.bodies.delete(keys)
        self._commits += 1
        if not self._commits % CHECK_EVERY and self._checkpoint is None:
            self._start_checkpoint()

    def _write(self, changes: Changes) -> None:
        db = self._open_db()
        try:
            db.execute("begin")
            if changes.mailboxes:
                db.executemany(_PUT_MAILBOX, map(_row, changes.mailboxes.values()))
            if changes.added:
                db.executemany(_PUT_MESSAGE, map(_message_row, changes.added))
            if changes.leased:
                leases = [(e.lease, e.dest, e.number) for e in changes.leased]
                db.executemany(_LEASE, leases)
            if changes.settled:
                settled = [(bytearray(uid), number) for uid, number in changes.settled]
                db.executemany(_SETTLE, settled)
            for uid in changes.cleared:
                db.execute(_CLEAR, (uid,))
            if changes.sessions:
                db.executemany(_PUT_SESSION, changes.sessions.items())
            if changes.expiries:
                db.executemany(_PUT_EXPIRY, changes.expiries)
            for uid in changes.removed:
                db.execute(_REMOVE, (uid,))
            db.execute("commit")
        except Exception as error:
            if db.in_transaction:
                db.execute("rollback")
            raise self._failure("write", error) from error

    async def pending(self, dest: bytes, after: int, limit: int) -> list[Envelope]:
        try:
            rows = self._open_db().execute(_PENDING, (dest, after, limit)).fetchall()
        except sqlite3.Error as error:
            raise self._failure("read", error) from error
        return [_envelope(dest, *row) for row in rows]

    async def expired(
        self, now: float, limit: int
    ) -> tuple[list[Envelope], float | None]:
        db = self._open_db()
        try:
            if limit:
                db.execute(_SETTLED_MEANWHILE, (now,))
            rows = db.execute(_EXPIRED, (now, limit)).fetchall()
            (due,) = db.execute(_NEXT_EXPIRY).fetchone()
        except sqlite3.Error as error:
            raise self._failure("read", error) from error
        return [_envelope(*row) for row in rows], due

    def _start_checkpoint(self) -> None:
        if self._log.stat().st_size < CHECKPOINT_BYTES:
            return
        self._checkpoint = asyncio.get_running_loop().create_task(
            self._run_checkpoint()
        )

    async def _run_checkpoint(self) -> None:
        try:
            await asyncio.to_thread(_checkpoint, self._path)
            # The log starts from its beginning again only when all of it was copied,
            # and commits went on meanwhile: the little that they wrote follows here,
            # where no commit can come in between.
            if self._worker is not None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._worker, self._finish_checkpoint)
            else:
                self._finish_checkpoint()
        except sqlite3.Error as error:
            logger.warning("no checkpoint of %s: %s", self._path, error)
        finally:
            self._checkpoint = None

    def _finish_checkpoint(self) -> None:
        if self._db is not None:
            self._db.execute(_CHECKPOINT).fetchone()

    async def close(self) -> None:
        await self.bodies.close()
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StorageError(f"{self._path} is closed")
        return self._db

    def _failure(self, what: str, error: Exception) -> StorageError:
        return StorageError(f"cannot {what} {self._path}: {error}")


def _connect(path: Path) -> sqlite3.Connection:
    # Used by one thread at a time: the loop's, or the one that waits for the disk.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _checkpoint(path: Path) -> None:
    db = _connect(path)
    try:
        db.execute(_CHECKPOINT).fetchone()
    finally:
        db.close()


def _message_row(e: Envelope) -> tuple[object, ...]:
    # sqlite3 looks for an adapter of each parameter that is bytes, which takes a third
    # of the time of an insert. It knows that a bytearray needs none.
    payload = e.payload
    if len(payload) < COPIED_BYTES:
        payload = bytearray(payload)
    dest, src, tag = bytearray(e.dest), bytearray(e.src), bytearray(e.tag)
    return dest, e.number, src, tag, e.flags, e.lease, payload


def _envelope(
    dest: bytes,
    number: int,
    src: bytes,
    tag: bytes,
    flags: int,
    lease: int,
    payload: bytes,
) -> Envelope:
    size = Body.unpacked(payload).size if flags & LARGE else len(payload)
    return Envelope(dest, src, tag, flags, payload, size, 0, number, lease)


def _row(record: MailboxRecord) -> tuple[object, ...]:
    return (
        record.uid,
        record.agent,
        record.name,
        ",".join(record.classes),
        record.epoch,
        record.incarnation,
        record.terminated,
        record.creator,
        record.reason,
        ",".join(record.groups),
    )


def _record(row: tuple[Any, ...]) -> MailboxRecord:
    uid, agent, name, classes, epoch, incarnation, terminated, *rest = row
    creator, reason, groups = rest
    return MailboxRecord(
        uid,
        bool(agent),
        name,
        tuple(classes.split(",")) if classes else (),
        epoch,
        incarnation,
        bool(terminated),
        creator,
        reason or "",
        tuple(groups.split(",")) if groups else (),
    )
