"""A dict on disk, for what an agent must not lose.

SQLite keeps it, since that is the only store in the standard library that survives a
kill at any instant, or a power cut, and lets two processes write at once without harm;
`dbm` and `shelve` do neither. It uses a rollback journal, not a write-ahead log: that
needs shared memory, which the network file systems of clusters do not have.
"""

from __future__ import annotations

import os
import pickle
import sqlite3
import threading
from collections.abc import Generator, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from academy.serialize import dumps

T = TypeVar("T")

_APPLICATION_ID = 0x41634453
"""Marks an SQLite file as a FileState, so that no other database is written to."""

_MISSING: Any = object()


class FileState(MutableMapping[str, T]):
    """A dict in a file: keys are strings, values are what pickles.

    When an assignment returns it is on disk; a crash at any instant leaves the state
    before it or after it. Threads and processes can share one file. Items keep the
    order of their insertion, as in a dict.

    A value read is a copy: after changing it, assign it again. Each write waits for
    the disk (milliseconds); `update` and `transaction` write many items for the price
    of one. Pickling the object pickles the path: a worker opens the same file.

    Example:
        >>> from academy.state import FileState
        >>> with FileState[int]("state.db") as state:
        ...     state["steps"] = state.get("steps", 0) + 1

    Args:
        path: The file; it and its parent directories are made if missing.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is something else than a FileState.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock = threading.RLock()
        self._depth = 0
        self._database: sqlite3.Connection | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as exc:
            raise self._explained(exc) from exc
        try:
            self._execute("PRAGMA synchronous = FULL")
            if not self._is_ours():
                with self.transaction():
                    self._initialise()
        except BaseException:
            self.close()
            raise

    def _is_ours(self) -> bool:
        return self._execute("PRAGMA application_id") == [(_APPLICATION_ID,)]

    def _initialise(self) -> None:
        if self._is_ours():
            return  # another process was quicker
        if tables := self._execute("SELECT name FROM sqlite_master"):
            raise ValueError(
                f"{self.path} is an SQLite database, but not a FileState. It has "
                f"{', '.join(str(name) for (name,) in tables)}."
            )
        self._execute(
            "CREATE TABLE state (key TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL)"
        )
        self._execute(f"PRAGMA application_id = {_APPLICATION_ID}")

    def _execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._database is None:
                raise ValueError(f"{self!r} is closed.")
            try:
                return self._database.execute(sql, values).fetchall()
            except sqlite3.Error as exc:
                raise self._explained(exc) from exc

    def _explained(self, exc: sqlite3.Error) -> Exception:
        name = getattr(exc, "sqlite_errorname", "")
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return ValueError(
                f"{self.path} is not a file that FileState has written ({exc})."
            )
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return TimeoutError(f"{self.path} is locked by another process ({exc}).")
        hint = ""
        if name.startswith(("SQLITE_IOERR_LOCK", "SQLITE_PROTOCOL")):
            hint = " Its file system seems to have no file locks; use another."
        return OSError(f"Cannot use the state file {self.path}: {exc}.{hint}")

    @contextmanager
    def transaction(self) -> Generator[Self]:
        """Make all that the block does one step: all of it happens, or nothing.

        Other threads and processes wait, so a value can be read, changed and written
        safely. An exception undoes the block. Do not await inside: other tasks of this
        thread would take part.

        Example:
            >>> with FileState[int]("account.db") as state:
            ...     with state.transaction():
            ...         state["balance"] = state.get("balance", 100) - 5
            ...         state["payments"] = state.get("payments", 0) + 1
        """
        with self._lock:
            begin, commit, rollback = "BEGIN IMMEDIATE", "COMMIT", ["ROLLBACK"]
            if self._depth:
                inner = f"level{self._depth}"
                begin, commit = f"SAVEPOINT {inner}", f"RELEASE {inner}"
                rollback = [f"ROLLBACK TO {inner}", commit]
            self._execute(begin)
            self._depth += 1
            try:
                yield self
                self._execute(commit)
            except BaseException:
                # After a full disk, for example, SQLite has rolled back by itself.
                if self._database is not None and self._database.in_transaction:
                    for statement in rollback:
                        self._execute(statement)
                raise
            finally:
                self._depth -= 1

    def _find(self, column: str, key: object) -> list[tuple[Any, ...]]:
        if not isinstance(key, str):  # SQLite would find "5" for 5
            return []
        return self._execute(f"SELECT {column} FROM state WHERE key = ?", key)

    def __getitem__(self, key: str) -> T:
        found = self._find("value", key)
        if not found:
            raise KeyError(key)
        try:
            value: T = pickle.loads(found[0][0])
        except Exception as exc:
            raise pickle.UnpicklingError(
                f'The value of "{key}" in {self.path} cannot be read here: {exc!r}'
            ) from exc
        return value

    def __setitem__(self, key: str, value: T) -> None:
        _require_string(key)
        try:
            data = dumps(value)
        except Exception as exc:
            raise pickle.PicklingError(
                f'The value for "{key}", a {type(value).__name__}, does not pickle: '
                f"{exc}"
            ) from exc
        # An upsert, since REPLACE would move the key to the end.
        self._execute(
            "INSERT INTO state (key, value) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            key,
            data,
        )

    def __delitem__(self, key: str) -> None:
        with self.transaction():
            if key not in self:
                raise KeyError(key)
            self._execute("DELETE FROM state WHERE key = ?", key)

    def __contains__(self, key: object) -> bool:
        return bool(self._find("1", key))

    def __iter__(self) -> Iterator[str]:
        """Return the keys there are now; the state may change while they are used."""
        rows = self._execute("SELECT key FROM state ORDER BY rowid")
        return iter([str(key) for (key,) in rows])

    def __len__(self) -> int:
        return int(self._execute("SELECT COUNT(*) FROM state")[0][0])

    # What a dict does in one step, and the mixins of MutableMapping in several:

    def update(self, other: Any = (), /, **items: T) -> None:
        with self.transaction():
            super().update(other, **items)

    def setdefault(self, key: str, default: T = None, /) -> T:  # type: ignore[assignment]  # None is a T wherever it is used
        with self.transaction():
            return super().setdefault(key, default)

    def pop(self, key: str, /, default: Any = _MISSING) -> Any:
        with self.transaction():
            if default is _MISSING:
                return super().pop(key)
            return super().pop(key, default)

    def popitem(self) -> tuple[str, T]:
        with self.transaction():
            for key in reversed(list(self)):
                return key, self.pop(key)
            raise KeyError("popitem(): the state is empty")

    def clear(self) -> None:
        self._execute("DELETE FROM state")

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def _require_string(key: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"Keys of a FileState are strings, not {key!r}.")
