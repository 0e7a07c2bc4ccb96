from __future__ import annotations

import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from academy.state import FileState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def state(path: Path) -> Iterator[FileState[Any]]:
    with FileState[Any](path) as state:
        yield state


def reopened(path: Path) -> dict[str, Any]:
    with FileState[Any](path) as state:
        return dict(state)


# --- a dict


def test_what_is_assigned_is_there_after_reopening(path: Path) -> None:
    with FileState[object](path) as state:
        state["steps"] = 7
        state["cluster"] = {"energy": -44.3, "atoms": [1, 2]}
        state["none"] = None
    assert reopened(path) == {
        "steps": 7,
        "cluster": {"energy": -44.3, "atoms": [1, 2]},
        "none": None,
    }


def test_it_behaves_as_a_dict_does(state: FileState[Any]) -> None:
    """Whatever is done to both, they stay equal, in order and in what they return."""
    random_ = random.Random(7)
    model: dict[str, Any] = {}

    def both(name: str, *args: Any) -> None:
        results = []
        for it in (state, model):
            try:
                results.append(getattr(it, name)(*args))
            except KeyError:
                results.append(KeyError)
        assert results[0] == results[1], (name, args)
        assert list(state.items()) == list(model.items()), (name, args)

    for i in range(150):
        key = random_.choice("abcd")
        both("__setitem__", key, i)
        both("__delitem__", random_.choice("abcd"))
        both("pop", random_.choice("abcd"))
        both("pop", random_.choice("abcd"), i)
        both("setdefault", random_.choice("abcd"), i)
        both("update", {"b": i, "e": i})
        both("get", random_.choice("abcd"))
        both("__contains__", random_.choice("abcd"))
        both("__len__")
        if i % 10 == 0:
            both("popitem")
            both("popitem")
        if i % 30 == 0:
            both("clear")
            both("popitem")
    assert state == model


def test_a_key_that_is_missing_is_a_key_error(state: FileState[Any]) -> None:
    with pytest.raises(KeyError, match="absent"):
        state["absent"]
    with pytest.raises(KeyError, match="absent"):
        del state["absent"]
    assert state.pop("absent", None) is None
    assert state.pop("absent", default=3) == 3


def test_keys_are_strings_only(state: FileState[Any]) -> None:
    state["5"] = "text"
    number: Any = 5
    with pytest.raises(TypeError, match="strings, not 5"):
        state[number] = 1
    with pytest.raises(KeyError):
        state[number]
    with pytest.raises(KeyError):
        del state[number]
    assert number not in state
    assert "5" in state


def test_it_can_be_changed_while_it_is_iterated_over(state: FileState[Any]) -> None:
    state.update(a=1, b=2)
    for key in state:
        state[key + key] = 0
        del state[key]
    assert list(state) == ["aa", "bb"]


def test_a_value_read_is_a_copy(state: FileState[Any]) -> None:
    state["list"] = [1]
    state["list"].append(2)
    assert state["list"] == [1]


def test_a_megabyte_value_is_kept(state: FileState[Any], path: Path) -> None:
    state["blob"] = os.urandom(1 << 20)
    assert reopened(path)["blob"] == state["blob"]


def test_missing_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "state.db"
    FileState[int](path).close()
    assert path.exists()


def test_a_pickled_state_opens_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FileState[int]("state.db") as state:
        state["steps"] = 7
        data = pickle.dumps(state)
    monkeypatch.chdir("/")
    with pickle.loads(data) as copy:
        assert dict(copy) == {"steps": 7}


# --- transactions


def test_a_transaction_that_fails_leaves_nothing_behind(
    state: FileState[Any], path: Path
) -> None:
    state.update(a=1, b=2)

    def fail() -> None:
        with state.transaction():
            state["a"] = 10
            state.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(state) == reopened(path) == {"a": 1, "b": 2}


def test_a_transaction_inside_another_is_undone_alone(state: FileState[Any]) -> None:
    with state.transaction():
        state["kept"] = 1
        with pytest.raises(pickle.PicklingError):
            state.update(lost=1, bad=threading.Lock())
        state["kept too"] = 2
    assert dict(state) == {"kept": 1, "kept too": 2}


def test_an_update_happens_wholly_or_not_at_all(state: FileState[Any]) -> None:
    with pytest.raises(pickle.PicklingError):
        state.update({"a": 1, "b": threading.Lock()})
    assert len(state) == 0


def test_threads_that_count_in_transactions_lose_no_count(
    state: FileState[Any],
) -> None:
    def count(_: int) -> None:
        for _ in range(25):
            with state.transaction():
                state["n"] = state.get("n", 0) + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    assert state["n"] == 100


COUNTER = """
import sys
from academy.state import FileState

state = FileState(sys.argv[1])
for _ in range(25):
    with state.transaction():
        state["n"] = state.get("n", 0) + 1
"""


def test_processes_that_count_in_transactions_lose_no_count(path: Path) -> None:
    command = [sys.executable, "-c", COUNTER, str(path)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert reopened(path) == {"n": 75}


# --- crashes

WRITER = """
import os, sys
from academy.state import FileState

state = FileState(sys.argv[1])
n = state.get("n", 0)
while True:
    n += 1
    state.update(n=n, blob=os.urandom(200_000), check=n)
    state["single"] = n
    print(n, flush=True)
"""


def test_a_kill_in_mid_write_loses_nothing_and_tears_nothing(path: Path) -> None:
    random_ = random.Random(11)
    journal = Path(f"{path}-journal")
    interrupted = 0
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        written = int(writer.stdout.readline())
        for _ in range(random_.randrange(5)):
            written = int(writer.stdout.readline())
        if random_.random() < 0.7:
            # SQLite writes to the state itself only while its journal exists.
            while not journal.exists() and writer.poll() is None:
                pass
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            written = int(line)
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        interrupted += journal.exists()
        state = reopened(path)
        assert state["n"] == state["check"]
        assert state["n"] in (written, written + 1)
        assert state["single"] in (written, written + 1)
        assert len(state["blob"]) == 200_000
        with sqlite3.connect(path) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
    assert interrupted, "no kill came in mid-write: this test has tested nothing"


# --- errors


def test_a_value_that_does_not_pickle_names_its_key_and_type(
    state: FileState[Any],
) -> None:
    state["lock"] = "old"
    with pytest.raises(pickle.PicklingError, match='"lock", a lock, does not pickle'):
        state["lock"] = threading.Lock()
    assert state["lock"] == "old"


def test_lambdas_and_local_classes_are_kept_too(
    state: FileState[Any], path: Path
) -> None:
    class Local:
        value = 3

    state["double"] = lambda x: 2 * x
    state["local"] = Local()
    assert reopened(path)["double"](4) == 8
    assert reopened(path)["local"].value == 3


def test_a_value_that_cannot_be_read_names_its_key(path: Path) -> None:
    code = (
        "import sys, types; from academy.state import FileState\n"
        "sys.modules['gone'] = gone = types.ModuleType('gone')\n"
        "exec('class Thing: pass', gone.__dict__)\n"
        "FileState(sys.argv[1])['thing'] = gone.Thing()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    with (
        FileState[Any](path) as state,
        pytest.raises(pickle.UnpicklingError, match=r'"thing" in .*state\.db.*gone'),
    ):
        state["thing"]


def test_a_file_of_another_kind_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("my precious notes, which are not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"state\.db is not a file that FileState"):
        FileState[int](path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE state (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"not a FileState\. It has state"):
        FileState[int](path)
    assert path.read_bytes() == before


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"state file {tmp_path}"):
        FileState[int](tmp_path)


def test_a_file_locked_by_another_process_is_a_timeout(
    path: Path, state: FileState[Any]
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        state._execute("PRAGMA busy_timeout = 10")
        with pytest.raises(TimeoutError, match="locked by another process"):
            state["a"] = 1
    finally:
        other.close()
    state["a"] = 1


def test_a_closed_state_says_so(state: FileState[Any]) -> None:
    state.close()
    state.close()
    for use in (lambda: state["a"], lambda: len(state), lambda: state.update(a=1)):
        with pytest.raises(ValueError, match=r"FileState\('.*state.db'\) is closed"):
            use()
