from __future__ import annotations

import io
import json
import logging
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from academy.logging.configs.base import LogConfig
from academy.logging.configs.console import ConsoleLogging
from academy.logging.configs.file import FileLogging
from academy.logging.configs.jsonpool import JSONPoolLogging
from academy.logging.configs.multi import MultiLogging
from academy.logging.context import current_entity
from academy.logging.helpers import log_context
from academy.logging.recommended import recommended_logging

root = logging.getLogger()
of_user = logging.getLogger("campaign.replica")
of_academy = logging.getLogger("academy.manager")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class Counting(LogConfig):
    """A config of a user, who does not call the base class."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def init_logging(self) -> Callable[[], None]:
        self.events.append("set up")
        return lambda: self.events.append("torn down")


@dataclass(frozen=True)
class Frozen(LogConfig):
    level: int = 10

    def init_logging(self) -> Callable[[], None]:
        return lambda: None


@pytest.fixture(autouse=True)
def logging_is_left_as_it_was() -> Iterator[None]:
    def state() -> object:
        filters = [(handler, list(handler.filters)) for handler in root.handlers]
        return root.level, filters, of_user.isEnabledFor(logging.INFO)

    before = state()
    yield
    assert state() == before


@pytest.fixture
def handler_of_program() -> Iterator[Kept]:
    handler = Kept()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


# --- configs


@pytest.mark.parametrize(
    "config",
    [
        ConsoleLogging("WARNING", color=False, extra=True),
        FileLogging("run.log", 15),
        JSONPoolLogging("pool"),
        MultiLogging([ConsoleLogging(), JSONPoolLogging()]),
        Counting(),
        Frozen(20),
        recommended_logging("DEBUG", logfile="run.log", logfile_level="ERROR"),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_pickled_config_keeps_its_uuid_and_options(config: LogConfig) -> None:
    copy = pickle.loads(pickle.dumps(config))
    assert copy.uuid == config.uuid
    if not isinstance(config, MultiLogging):
        assert vars(copy) == vars(config)


def test_each_config_has_a_uuid_of_its_own() -> None:
    assert len({c.uuid for c in (Counting(), Counting(), Frozen(), Frozen())}) == 4


def test_an_unknown_level_names_itself_and_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r'"WARNNG".*mean "WARNING".*DEBUG') as info:
        recommended_logging("INFO", logfile="x.log", logfile_level="WARNNG")
    assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match="Known levels: CRITICAL"):
        ConsoleLogging("")
    with pytest.raises(ValueError, match="-5"):
        JSONPoolLogging(level=-5)


def test_a_level_may_be_a_number_or_a_name_in_any_case() -> None:
    assert ConsoleLogging("warning").level == ConsoleLogging(30).level == 30


def test_a_relative_path_starts_where_the_config_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "submit").mkdir()
    monkeypatch.chdir(tmp_path / "submit")
    config = pickle.dumps(MultiLogging([FileLogging("a.log"), JSONPoolLogging("b")]))
    monkeypatch.chdir(tmp_path)
    with log_context(pickle.loads(config)):
        pass
    assert (tmp_path / "submit" / "a.log").exists()
    assert (tmp_path / "submit" / "b").is_dir()


def test_a_path_in_the_home_directory_is_in_that_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FileLogging("~/deep/er/a.log")
    monkeypatch.setenv("HOME", str(tmp_path))
    with log_context(config):
        pass
    assert (tmp_path / "deep" / "er" / "a.log").exists()


# --- what is logged


def test_records_of_all_loggers_are_logged_from_the_level_on(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with log_context(FileLogging(path, "INFO")):
        of_academy.info("launched %s", "replica-1")
        of_user.info("step 1")
        of_user.debug("unseen")
    of_user.error("after the end")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    pattern = (
        r"\[\d{4}-\d\d-\d\d [\d:,]+\] INFO +\(academy.manager\) launched replica-1"
    )
    assert re.fullmatch(pattern, lines[0])
    assert lines[1].endswith("(campaign.replica) step 1")


def test_each_config_has_its_own_level(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    with log_context(MultiLogging([FileLogging(low, 10), FileLogging(high, 40)])):
        of_user.debug("detail")
        of_user.error("trouble")
    assert len(low.read_text().splitlines()) == 2
    assert len(high.read_text().splitlines()) == 1


def test_a_record_names_the_entity_in_whose_context_it_was_made(tmp_path: Path) -> None:
    text, pool = tmp_path / "run.log", tmp_path / "pool"
    with log_context(MultiLogging([FileLogging(text), JSONPoolLogging(pool)])):
        token = current_entity.set("AgentId<replica-1>")
        of_user.info("step 1")
        current_entity.reset(token)
        of_user.info("nobody in particular")
    first, second = text.read_text().splitlines()
    assert first.endswith("(campaign.replica) AgentId<replica-1> > step 1")
    assert second.endswith("(campaign.replica) nobody in particular")
    assert [row["entity"] for row in rows(pool)] == ["AgentId<replica-1>", None]


def test_extra_adds_process_source_and_the_fields_of_the_call(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with log_context(FileLogging(path, extra=True)):
        of_user.info("moved", extra={"energy": -44.3})
    assert re.search(
        r"moved pid=\d+ thread=\S+ source=\S+:\d+ energy=-44.3$", line(path)
    )


def test_text_that_is_not_unicode_is_logged_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with log_context(FileLogging(path)):
        of_user.info("file %s", "caf\udce9")
    assert line(path).endswith(r"file caf\udce9")


def line(path: Path) -> str:
    (only,) = path.read_text().splitlines()
    return only


# --- console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_console_is_what_standard_error_is_at_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with log_context(recommended_logging()):
        progress_bar = io.StringIO()
        monkeypatch.setattr(sys, "stderr", progress_bar)
        of_user.info("step 1")
    assert progress_bar.getvalue().endswith("(campaign.replica) step 1\n")


@pytest.mark.parametrize(
    ("stream", "color", "no_color", "colored"),
    [
        (Terminal(), True, "", True),
        (Terminal(), True, "1", False),
        (Terminal(), False, "", False),
        (io.StringIO(), True, "", False),
    ],
)
def test_colors_are_for_terminals_whose_user_wants_them(
    stream: io.StringIO,
    color: bool,
    no_color: str,
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", stream)
    with log_context(recommended_logging(color=color)):
        of_user.warning("hot")
    assert ("\x1b[33mWARNING" in stream.getvalue()) is colored


# --- JSON


def rows(directory: Path) -> list[dict[str, object]]:
    return [
        json.loads(line)
        for path in sorted(directory.iterdir())
        for line in path.read_text().splitlines()
    ]


def test_a_json_line_tells_what_is_known_of_a_record(tmp_path: Path) -> None:
    with log_context(JSONPoolLogging(tmp_path)):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            of_user.exception("failed", extra={"atoms": 13, "at": {1: object()}})
    (row,) = rows(tmp_path)
    assert row["message"] == "failed"
    assert row["level"] == "ERROR"
    assert row["logger"] == "campaign.replica"
    assert str(row["time"]).endswith("+00:00")
    assert "ValueError: two\nlines" in str(row["exception"])
    extra = row["extra"]
    assert isinstance(extra, dict)
    assert extra["atoms"] == 13
    assert extra["at"].startswith("{1: <object object")


def test_values_that_json_cannot_say_become_text(tmp_path: Path) -> None:
    loop: list[object] = []
    loop.append(loop)
    with log_context(JSONPoolLogging(tmp_path)):
        of_user.info("odd", extra={"nan": float("nan"), "loop": loop, "s": "\udce9"})
    (row,) = rows(tmp_path)
    assert row["extra"] == {"nan": "nan", "loop": "[[...]]", "s": "\udce9"}


def test_without_a_directory_the_pool_is_in_the_academy_home(
    academy_home: Path,
) -> None:
    config = JSONPoolLogging()
    with log_context(config):
        of_user.info("step 1")
    assert len(rows(academy_home / "logs" / str(config.uuid))) == 1


WORKER = """
import logging, os, pickle, sys
from academy.logging.helpers import log_context

with log_context(pickle.load(sys.stdin.buffer)):
    logging.getLogger("worker").info("parent")
    if os.fork():
        os.wait()
    else:
        logging.getLogger("worker").info("child")
        os._exit(0)
    logging.getLogger("worker").info("parent")
"""


def test_every_process_writes_a_file_of_its_own_even_after_a_fork(
    tmp_path: Path,
) -> None:
    config = pickle.dumps(JSONPoolLogging(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], input=config, check=True)
    assert len(list(tmp_path.iterdir())) == 4
    for path in tmp_path.iterdir():
        said = [json.loads(line) for line in path.read_text().splitlines()]
        assert {path.name.split(".")[-2]} == {str(row["pid"]) for row in said}
        assert [row["message"] for row in said] in (["parent"] * 2, ["child"])


# --- users of one config


def test_a_config_is_set_up_once_and_torn_down_when_its_last_user_leaves() -> None:
    config = Counting()
    with log_context(config):
        with log_context(config), log_context(Counting()):
            pass
        assert config.events == ["set up"]
    assert config.events == ["set up", "torn down"]
    with log_context(config):
        pass
    assert config.events == ["set up", "torn down"] * 2


def test_copies_of_a_config_are_set_up_as_one(tmp_path: Path) -> None:
    config = FileLogging(tmp_path / "run.log")
    with log_context(config), log_context(pickle.loads(pickle.dumps(config))):
        of_user.info("once")
    assert line(config.logfile).endswith("once")


def test_part_of_a_multi_config_is_shared_with_its_other_users(tmp_path: Path) -> None:
    part = FileLogging(tmp_path / "run.log")
    with log_context(part):
        with log_context(MultiLogging([part, part])):
            of_user.info("once")
        assert line(part.logfile).endswith("once")
        of_user.info("twice")
    assert len(part.logfile.read_text().splitlines()) == 2


def test_users_may_come_and_go_in_many_threads(tmp_path: Path) -> None:
    config, path = Counting(), tmp_path / "run.log"
    both = MultiLogging([config, FileLogging(path)])
    threads = 8
    barrier = threading.Barrier(threads)

    def use(_: int) -> None:
        barrier.wait()
        for _ in range(50):
            with log_context(both):
                of_user.info("line")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(use, range(threads)))
    assert len(path.read_text().splitlines()) == threads * 50
    assert config.events == ["set up", "torn down"] * (len(config.events) // 2)


def test_no_config_does_nothing() -> None:
    before = root.level, list(root.handlers)
    with log_context(None):
        assert (root.level, root.handlers) == before


# --- the program's own logging


def test_levels_are_undone_and_not_cached(tmp_path: Path) -> None:
    assert not of_user.isEnabledFor(logging.INFO)
    with log_context(FileLogging(tmp_path / "run.log", "INFO")):
        assert of_user.isEnabledFor(logging.INFO)
        assert not of_user.isEnabledFor(logging.DEBUG)
    assert not of_user.isEnabledFor(logging.INFO)


def test_set_ups_that_overlap_end_in_any_order(tmp_path: Path) -> None:
    before = root.level
    first, second = (
        log_context(FileLogging(tmp_path / "a", 10)),
        log_context(FileLogging(tmp_path / "b", 20)),
    )
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert root.level == 20
    second.__exit__(None, None, None)
    assert root.level == before


def test_handlers_of_the_program_get_what_they_would_get_without_ours(
    tmp_path: Path, handler_of_program: Kept
) -> None:
    verbose = logging.getLogger("verbose")
    verbose.setLevel(logging.DEBUG)
    try:
        with log_context(FileLogging(tmp_path / "run.log", "DEBUG")):
            of_user.info("only for ours")
            of_user.warning("warning")
            logging.getLogger("verbose.child").debug("wanted by its logger")
            root.info("only for ours")
    finally:
        verbose.setLevel(logging.NOTSET)
    assert handler_of_program.messages == ["warning", "wanted by its logger"]
    assert len((tmp_path / "run.log").read_text().splitlines()) == 4


def test_a_level_that_the_program_sets_meanwhile_stays(
    tmp_path: Path, handler_of_program: Kept
) -> None:
    before = root.level
    try:
        with log_context(FileLogging(tmp_path / "run.log", "DEBUG")):
            root.setLevel(logging.INFO)
            of_user.info("wanted now")
        assert root.level == logging.INFO
    finally:
        root.setLevel(before)
    assert handler_of_program.messages == ["wanted now"]


def test_a_lower_level_of_the_program_is_not_raised(tmp_path: Path) -> None:
    before = root.level
    root.setLevel(logging.DEBUG)
    try:
        with log_context(FileLogging(tmp_path / "run.log", "ERROR")):
            assert root.level == logging.DEBUG
        assert root.level == logging.DEBUG
    finally:
        root.setLevel(before)


# --- errors


def test_an_error_in_the_block_tears_the_set_up_down(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        log_context(FileLogging(tmp_path / "run.log")),
    ):
        raise ZeroDivisionError


def test_a_set_up_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    good = FileLogging(tmp_path / "good.log")
    config = MultiLogging([good, FileLogging(tmp_path)])
    for _ in range(2):
        with pytest.raises(IsADirectoryError), log_context(config):
            pass
    of_user.error("nobody listens")
    assert good.logfile.read_text() == ""


@pytest.mark.parametrize("kind", [FileLogging, JSONPoolLogging])
def test_a_file_that_cannot_be_written_is_named_with_where_its_path_ends(
    kind: Callable[[Path], LogConfig], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("")
    with (
        pytest.raises(NotADirectoryError) as info,
        log_context(kind(tmp_path / "data" / "logs" / "run.log")),
    ):
        pass
    assert str(tmp_path / "data" / "logs") in str(info.value)
    assert f"in {tmp_path / 'data'} (" in str(info.value)


def test_a_pool_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    # No file of a directory in /proc can be made, not even by root.
    with (
        pytest.raises(OSError, match=r"Cannot write a log file .*\.jsonl"),
        log_context(JSONPoolLogging("/proc/self/task")),
    ):
        pass


# --- cost


def test_importing_the_logging_modules_loads_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import academy.logging.recommended, academy.logging.helpers\n"
        "import academy.logging.configs.jsonpool\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    new = set(done.stdout.split()) - sys.stdlib_module_names
    assert new == {"academy"}
