"""Where the bytes of large messages lie, and when they go.

A store keeps a reference in place of the payload of a large message: the key of its
body, and how large that is. A body goes when its message does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, Protocol, TypeVar

from academy.exception import StorageError
from academy.home import local_directory

if TYPE_CHECKING:
    from academy.exchange.store import Changes
    from academy.serialize import Part

P = ParamSpec("P")
R = TypeVar("R")

_REFERENCE = struct.Struct("<16sQ")


class Body(NamedTuple):
    """The bytes of a large message: their key, and how many there are."""

    key: bytes
    size: int

    @classmethod
    def new(cls, size: int) -> Body:
        """Choose a key that nobody else has."""
        return cls(os.urandom(16), size)

    def packed(self) -> bytes:
        """Return the reference that is stored in place of a payload."""
        return _REFERENCE.pack(*self)

    @classmethod
    def unpacked(cls, reference: bytes) -> Body:
        """Read a reference."""
        return cls(*_REFERENCE.unpack(reference))


class Bodies(Protocol):
    """Storage of bodies, beside a store.

    Each coroutine raises `StorageError` if it cannot do what it is to do.
    """

    async def write(self, key: bytes, offset: int, data: Part) -> None:
        """Write bytes at an offset; the first write of a key makes its body."""

    async def read(self, key: bytes, offset: int, size: int) -> bytes:
        """Return bytes that were written."""

    async def sync(self, keys: Iterable[bytes]) -> None:
        """Wait until bodies would survive a power cut."""

    def delete(self, keys: Iterable[bytes]) -> None:
        """Have bodies go, after what was asked for before; nobody waits for it."""

    async def sweep(self, kept: Collection[bytes]) -> None:
        """Delete all bodies but these: uploads that a killed exchange has left."""

    async def close(self) -> None:
        """Finish the work at hand. May be called twice."""


class References:
    """Which of the stored messages have a body, by mailbox and number."""

    __slots__ = ("_keys",)

    def __init__(self, keys: dict[bytes, dict[int, bytes]] | None = None) -> None:
        self._keys = keys or {}

    def keys(self) -> set[bytes]:
        """Return the keys of all bodies."""
        return {key for box in self._keys.values() for key in box.values()}

    def follow(self, changes: Changes) -> list[bytes]:
        """Learn of a transaction; return the keys of the bodies that it leaves over."""
        if not self._keys and not changes.large:  # as in nearly every transaction
            return []
        for envelope in changes.large:
            body = Body.unpacked(envelope.payload)
            self._keys.setdefault(envelope.dest, {})[envelope.number] = body.key
        gone = []
        for dest, number in changes.settled:
            box = self._keys.get(dest)
            if box is not None and number in box:
                gone.append(box.pop(number))
                if not box:
                    del self._keys[dest]
        for dest in changes.cleared:
            gone += self._keys.pop(dest, {}).values()
        return gone


class FileBodies:
    """Keeps each body in a file (mode 0600) of one folder.

    One thread does what is asked for, in order: a file system that has to wait for its
    disk does not stop the event loop, and nothing is deleted before it was written.
    Files are open for a moment only, however many transfers there are.

    Args:
        folder: made (mode 0700) with the first body; on a local disk.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._worker: ThreadPoolExecutor | None = None

    async def write(self, key: bytes, offset: int, data: Part) -> None:
        await self._ask(self._write, key, offset, data)

    async def read(self, key: bytes, offset: int, size: int) -> bytes:
        return await self._ask(self._read, key, offset, size)

    async def sync(self, keys: Iterable[bytes]) -> None:
        await self._ask(self._sync, list(keys))

    def delete(self, keys: Iterable[bytes]) -> None:
        if keys := list(keys):
            self._executor().submit(self._delete, keys)

    async def sweep(self, kept: Collection[bytes]) -> None:
        if self._folder.exists():
            await self._ask(self._sweep, {key.hex() for key in kept})

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.shutdown)

    def _executor(self) -> ThreadPoolExecutor:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "bodies")
        return self._worker

    async def _ask(self, work: Callable[P, R], *args: P.args, **_: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor(), work, *args)
        except OSError as error:
            raise StorageError(f"cannot use {self._folder}: {error}") from error

    # --- in the thread

    def _write(self, key: bytes, offset: int, data: Part) -> None:
        flags = os.O_WRONLY | os.O_CREAT
        try:
            file = os.open(self._path(key), flags, 0o600)
        except FileNotFoundError:
            self._make_folder()
            file = os.open(self._path(key), flags, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(file, rest, offset)
                offset += written
                rest = rest[written:]
        finally:
            os.close(file)

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _read(self, key: bytes, offset: int, size: int) -> bytes:
        file = os.open(self._path(key), os.O_RDONLY)
        try:
            data = os.pread(file, size, offset)
        finally:
            os.close(file)
        if len(data) != size:
            raise OSError(f"{self._path(key)} ends at {offset + len(data)} bytes")
        return data

    def _sync(self, keys: list[bytes]) -> None:
        for path in (*map(self._path, keys), self._folder):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)

    def _delete(self, keys: list[bytes]) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                self._path(key).unlink()

    def _sweep(self, kept: set[str]) -> None:
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def _path(self, key: bytes) -> Path:
        return self._folder / key.hex()


class ScratchBodies(FileBodies):
    """Keeps bodies in a folder that ends with its process.

    A process that was killed leaves its folder behind; the next one deletes it. The
    kernel holds a lock on the folder for as long as its process lives.

    Args:
        parent: where the folder is made, with the first body. Default: the Academy
            home, or a directory on a local disk where that is not on one.
    """

    def __init__(self, parent: str | Path | None = None) -> None:
        super().__init__("/nowhere")
        self._parent = parent
        self._lock: int | None = None

    def _path(self, key: bytes) -> Path:
        if self._lock is None:
            raise FileNotFoundError(f"{key.hex()}: no body has been written yet")
        return super()._path(key)

    def _make_folder(self) -> None:
        parent = local_directory() if self._parent is None else Path(self._parent)
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever makes or sweeps folders does it alone: between being made and being
        # locked, a folder looks like one of a process that was killed.
        guard = os.open(parent / "bodies.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            for folder in parent.glob("bodies-*"):
                _remove_unused(folder)
            self._folder = Path(tempfile.mkdtemp(prefix="bodies-", dir=parent))
            self._lock = os.open(self._folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        finally:
            os.close(guard)

    async def close(self) -> None:
        await super().close()
        if self._lock is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder)
            os.close(self._lock)
            self._lock, self._folder = None, Path("/nowhere")


def _remove_unused(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # its process lives
    else:
        shutil.rmtree(folder)
    finally:
        os.close(lock)
