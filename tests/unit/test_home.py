from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from academy.home import (
    get_academy_home,
    local_directory,
    private_directory,
    write_private,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the home


def test_the_home_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_HOME", str(tmp_path / "here"))
    assert get_academy_home() == tmp_path / "here"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("unset", [None, ""])
def test_without_a_word_of_the_environment_it_is_in_the_user_s_home(
    unset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ACADEMY_HOME")
    if unset is not None:
        monkeypatch.setenv("ACADEMY_HOME", unset)
    assert get_academy_home() == tmp_path / ".local" / "share" / "academy"


def test_it_is_an_absolute_path_even_if_the_environment_s_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACADEMY_HOME", "here")
    assert get_academy_home() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ACADEMY_HOME", "~/there")
    assert get_academy_home() == tmp_path / "there"


# --- a local disk


def test_a_home_on_a_local_disk_takes_files_that_machines_must_not_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_HOME", str(tmp_path / "not" / "made" / "yet"))
    assert local_directory() == tmp_path / "not" / "made" / "yet"


def test_for_a_home_on_a_network_file_system_there_is_a_directory_of_the_user_s_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No network file system can be had in a test: /proc, which is none, stands for it.
    monkeypatch.setenv("ACADEMY_HOME", "/proc/academy")
    assert local_directory(shared={"proc"}) == Path(f"/var/tmp/academy-{os.getuid()}")


# --- private directories


def test_a_private_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    path = private_directory(tmp_path / "parent" / "home")
    assert path == tmp_path / "parent" / "home"
    assert mode(path) == 0o700
    assert private_directory(path) == path


def test_a_directory_that_others_may_read_but_not_write_is_accepted(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    private_directory(tmp_path)
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize("bits", [0o770, 0o707])
def test_a_directory_that_others_can_write_is_refused_with_the_remedy(
    bits: int, tmp_path: Path
) -> None:
    tmp_path.chmod(bits)
    with pytest.raises(PermissionError, match=f"mode 0{bits:o}.*chmod go-w {tmp_path}"):
        private_directory(tmp_path)


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.getuid() == 0:
        os.chown(tmp_path, 12345, -1)
        theirs = tmp_path
    else:
        theirs = Path("/")
    with pytest.raises(PermissionError, match=f"{theirs} belongs to user id"):
        private_directory(theirs)


# --- private files


@pytest.mark.parametrize("content", ["secret: é\n", b"\x80\x05spec"])
def test_a_private_file_is_for_its_owner_only(
    content: str | bytes, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        path = write_private(tmp_path / "token", content)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    data = content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == data


def test_a_file_that_was_readable_by_all_is_private_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert mode(path) == 0o600
    assert path.read_text() == "new"


def test_missing_directories_of_a_private_file_are_private(tmp_path: Path) -> None:
    write_private(tmp_path / "specs" / "a.pkl", b"")
    assert mode(tmp_path / "specs") == 0o700


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = write_private(tmp_path / "token", "a" * 300_000)
    done = threading.Event()
    seen: set[tuple[int, frozenset[str]]] = set()

    def read() -> None:
        while not done.is_set():
            text = path.read_text()
            seen.add((len(text), frozenset(text)))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in "bc" * 20:
        write_private(path, letter * 300_000)
    done.set()
    reader.join()
    assert seen
    assert seen <= {(300_000, frozenset(letter)) for letter in "abc"}


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()  # a file cannot replace a directory
    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "token", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_importing_home_loads_nothing_of_the_rest_of_the_package() -> None:
    code = (
        "import sys, academy.home; print(*(m for m in sys.modules if 'academy' in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    loaded = {name for name in done.stdout.split() if not name.startswith("__editable")}
    assert loaded == {"academy", "academy.home"}
