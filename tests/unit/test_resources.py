"""What one launch may ask for: its spellings, its units, and what is refused."""

from __future__ import annotations

import contextlib
import math
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from academy.executors.resources import ResourceSpec
from academy.executors.spellings import ALIASES, REFUSED, TRANSLATED
from academy.executors.units import megabytes, parse_memory, parse_walltime

ALL = {
    "nodes": 2,
    "ranks_per_node": 4,
    "cpus_per_rank": 8,
    "gpus_per_node": 4,
    "memory_gb_per_node": 64.0,
    "walltime": "00:30:00",
    "queue": "debug",
    "account": "proj",
    "qos": "high",
    "constraint": "gpu&hbm80g",
    "reservation": "training",
    "exclusive": True,
    "priority": 7,
    "scheduler_options": "#SBATCH --nice=1",
    "worker_init": "module load python",
    "launcher_options": "--cpu-bind=cores",
}


def parse(submit_kwargs: dict[str, Any]) -> dict[str, Any]:
    return ResourceSpec.parse(submit_kwargs, "Executor 'gpu'").given()


def refusal(submit_kwargs: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"Executor 'gpu'") as caught:
        parse(submit_kwargs)
    assert not isinstance(caught.value, ValidationError)
    assert caught.value.__cause__ is None
    return str(caught.value)


# --- names


def test_every_field_is_read_under_its_own_name() -> None:
    assert parse(ALL) == ALL
    assert set(ALL) == set(ResourceSpec.model_fields)


def test_a_launch_that_asks_for_nothing_leaves_all_to_the_executor() -> None:
    assert parse({}) == {}
    assert parse({"nodes": None, "partition": None}) == {}


def test_an_alias_is_read_as_its_field() -> None:
    for alias, field in ALIASES.items():
        value = "64G" if field == "memory_gb_per_node" else ALL[field]
        assert parse({alias: value}) == {field: ALL[field]}


@pytest.mark.parametrize(
    ("asked", "read"),
    [
        # What an sbatch line says.
        (
            {"--nodes": 2, "--ntasks-per-node": 4, "--cpus-per-task": 8, "--mem": "8G"},
            {
                "nodes": 2,
                "ranks_per_node": 4,
                "cpus_per_rank": 8,
                "memory_gb_per_node": 8.0,
            },
        ),
        (
            {"N": 2, "p": "debug", "t": 5},
            {"nodes": 2, "queue": "debug"} | {"walltime": "00:05:00"},
        ),
        ({"gres": "gpu:4"}, {"gpus_per_node": 4}),
        ({"gres": "gpu"}, {"gpus_per_node": 1}),
        (
            {"gpus_per_task": 2, "ranks_per_node": 4},
            {"gpus_per_node": 8, "ranks_per_node": 4},
        ),
        (
            {"mem_per_cpu": "2G", "cpus_per_task": 8, "ntasks_per_node": 2},
            {"memory_gb_per_node": 32.0, "cpus_per_rank": 8, "ranks_per_node": 2},
        ),
        # PBS.
        (
            {"select": "2:ncpus=8:mpiprocs=4:ngpus=2:mem=64gb:system=polaris:host=n7"},
            {
                "nodes": 2,
                "cpus_per_rank": 2,
                "ranks_per_node": 4,
                "gpus_per_node": 2,
                "memory_gb_per_node": 64.0,
                "constraint": "system=polaris:host=n7",
            },
        ),
        ({"select": 3, "ncpus": 16}, {"nodes": 3, "cpus_per_rank": 16}),
        ({"select": "ncpus=16"}, {"nodes": 1, "cpus_per_rank": 16}),
        # Torque.
        (
            {"nodes": "2:ppn=8:gpus=1"},
            {"nodes": 2, "cpus_per_rank": 8, "gpus_per_node": 1},
        ),
        # Parsl and Globus Compute.
        (
            {"nodes_per_block": 2, "cores_per_node": 64, "max_workers_per_node": 4},
            {"nodes": 2, "cpus_per_rank": 16, "ranks_per_node": 4},
        ),
        (
            {"mem_per_worker": 2.5, "max_workers_per_node": 4},
            {"memory_gb_per_node": 10.0, "ranks_per_node": 4},
        ),
        # PSI/J.
        (
            {
                "node_count": 2,
                "processes_per_node": 4,
                "gpu_cores_per_process": 1,
                "duration": timedelta(minutes=90),
                "exclusive_node_use": True,
            },
            {
                "nodes": 2,
                "ranks_per_node": 4,
                "gpus_per_node": 4,
                "walltime": "01:30:00",
                "exclusive": True,
            },
        ),
    ],
)
def test_what_other_tools_say_is_translated(
    asked: dict[str, Any], read: dict[str, Any]
) -> None:
    assert parse(asked) == read


def test_what_is_shared_among_ranks_counts_those_of_the_defaults() -> None:
    defaults = ResourceSpec(ranks_per_node=4)
    spec = ResourceSpec.parse({"ncpus": 32, "gpus_per_task": 1}, "X", defaults)
    assert spec.given() == {
        "ranks_per_node": 4,
        "cpus_per_rank": 8,
        "gpus_per_node": 4,
    }


@pytest.mark.parametrize(
    ("asked", "one", "other"),
    [
        ({"queue": "a", "partition": "b"}, "queue", "partition"),
        ({"nodes": 1, "num_nodes": 1}, "nodes", "num_nodes"),
        (
            {"select": "2:mpiprocs=3", "ranks_per_node": 3},
            "mpiprocs in select",
            "ranks",
        ),
        ({"ncpus": 4, "cpus_per_task": 4}, "ncpus", "cpus_per_task"),
        ({"--time": 5, "walltime": 5}, "--time", "walltime"),
    ],
)
def test_two_words_for_the_same_are_refused_by_their_names(
    asked: dict[str, Any], one: str, other: str
) -> None:
    message = refusal(asked)
    assert "both say" in message
    assert one in message
    assert other in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("node", "nodes"),
        ("wall_time", "walltime"),
        ("partion", "partition"),
        ("gpu_per_node", "gpus_per_node"),
        ("acount", "account"),
    ],
)
def test_an_unknown_key_is_refused_with_its_nearest_neighbour(
    key: str, nearest: str
) -> None:
    message = refusal({key: 1})
    assert f"takes no {key!r}. Did you mean {nearest!r}?" in message
    assert all(field in message for field in ALL)


def test_what_cannot_be_translated_is_refused_with_what_to_say() -> None:
    for key, hint in REFUSED.items():
        message = refusal({key: 1})
        assert f"takes no {key!r}: {hint}." in message
        assert any(word in message for word in (*ALL, "launch()", "Parsl config"))


def test_no_key_is_both_accepted_and_refused() -> None:
    assert not set(REFUSED) & {*TRANSLATED, *ALL}
    assert not set(TRANSLATED) & set(ALL)


# --- values


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"nodes": 0}, "nodes must be a whole number of at least 1, not 0"),
        ({"nodes": True}, "nodes must be a whole number of at least 1, not True"),
        ({"nodes": 1.5}, "nodes must be a whole number of at least 1, not 1.5"),
        ({"nodes": "two"}, "not 'two'"),
        ({"nodes": "2"}, "nodes must be a whole number of at least 1, not '2'"),
        ({"nodes": "1-4"}, "not '1-4'"),
        ({"num_nodes": -1}, "num_nodes (nodes) must be a whole number of at least 1"),
        ({"gpus_per_node": -1}, "must be a whole number of at least 0, not -1"),
        ({"priority": 1.5}, "priority must be a whole number, not 1.5"),
        ({"exclusive": 1}, "exclusive must be True or False, not 1"),
        ({"exclusive": "user"}, "exclusive must be True or False, not 'user'"),
        ({"queue": 7}, "queue must be a string, not 7"),
        ({"queue": ""}, "unlike ''"),
        ({"worker_init": 7}, "worker_init must be a string or a list of lines"),
        ({"scheduler_options": ["#SBATCH", 7]}, "must be a string or a list of lines"),
        ({"launcher_options": ["-v"]}, "launcher_options must be a string"),
        ({"mem": 16000}, 'mem needs a unit, such as "16G", not 16000'),
        ({"duration": 90}, 'duration needs a unit, such as "90m" or a timedelta'),
        ({"mem_per_cpu": "2G"}, "mem_per_cpu needs cpus_per_rank"),
        ({"gpus_per_task": 1}, "gpus_per_task needs ranks_per_node"),
        ({"ncpus": 7, "ranks_per_node": 2}, "must divide by ranks_per_node=2"),
        ({"ncpus": "many"}, "ncpus must be a whole number of at least 1, not 'many'"),
        ({"mem_per_worker": "lots"}, "mem_per_worker must be like 16 (GB)"),
        ({"select": "1:ncpus=2+2:ncpus=4"}, "or one chunk such as"),
        ({"select": "2:ncpus=x"}, "select has 'ncpus=x', which is no whole number"),
        ({"select": "2:ompthreads=4"}, "select has 'ompthreads=4': say cpus_per_rank"),
        ({"select": ""}, "or one chunk such as '2:ncpus=8:ngpus=1', not ''"),
        ({"gres": "gpu:a100:4"}, "'#SBATCH --gres=gpu:a100:4'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    asked: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(asked)


INJECTIONS = [
    "debug\n#SBATCH --uid=0",
    "debug; rm -rf ~",
    "$(id)",
    "`id`",
    "debug #",
    "-Wgroup_list=root",
    "de bug",
    'de"bug',
    "debug\u2028#PBS -q x",
    "debug\r",
]


@pytest.mark.parametrize("value", INJECTIONS)
def test_a_value_cannot_add_anything_to_a_script_or_command(value: str) -> None:
    for field in ("queue", "account", "qos", "constraint", "reservation"):
        assert f"{field} must consist of letters" in refusal({field: value})


@pytest.mark.parametrize(
    "value",
    ["-v; id", "-v | tee x", "-v\n-x", "$(id)", "`id`", "-v 'x", "-v # x", '"$(id)"'],
)
def test_launcher_options_cannot_end_their_command(value: str) -> None:
    assert "options of one command" in refusal({"launcher_options": value})


@pytest.mark.parametrize(
    "value", ["--cpu-bind=cores -l", "--mem=$MEM", "-x 'a|b'", '-x "a;$B"', r"a\;b"]
)
def test_launcher_options_may_quote_and_use_variables(value: str) -> None:
    assert parse({"launcher_options": value}) == {"launcher_options": value}


def test_lines_may_be_given_as_a_list() -> None:
    lines = ["module load a", "module load b"]
    assert parse({"worker_init": lines}) == {"worker_init": "\n".join(lines)}


# --- units


@pytest.mark.parametrize(
    ("value", "walltime"),
    [
        (30, "00:30:00"),
        (0.5, "00:01:00"),
        (1.1, "00:02:00"),
        (90, "01:30:00"),
        (2880, "48:00:00"),
        ("00:30:00", "00:30:00"),
        ("00:00:30", "00:01:00"),
        ("1:02:03", "01:03:00"),
        ("100:00:00", "100:00:00"),
        ("1-12:00:00", "36:00:00"),
        ("2-0", "48:00:00"),
        ("1-12:30", "36:30:00"),
        ("90m", "01:30:00"),
        ("90min", "01:30:00"),
        ("1h30m", "01:30:00"),
        ("2d", "48:00:00"),
        ("1d2h3m4s", "26:04:00"),
        ("90s", "00:02:00"),
        (" 1H ", "01:00:00"),
        (timedelta(hours=1, seconds=1), "01:01:00"),
    ],
)
def test_a_walltime_is_read_in_any_unit(value: Any, walltime: str) -> None:
    assert parse({"walltime": value}) == {"walltime": walltime}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, "must be longer than nothing, not 0"),
        (-5, "must be longer than nothing, not -5"),
        ("00:00:00", "must be longer than nothing"),
        (timedelta(0), "must be longer than nothing"),
        (math.nan, "must be like 90 (minutes)"),
        (math.inf, "must be like 90 (minutes)"),
        (10**400, "must be like 90 (minutes)"),
        ("9" * 5000 + "d", "must be like 90 (minutes)"),
        (True, "must be like 90 (minutes)"),
        ("", "must be like 90 (minutes)"),
        ("soon", "must be like 90 (minutes)"),
        ("1h 30m", "must be like 90 (minutes)"),
        ("30:00", "write '30:00:00' or '00:30:00' instead of '30:00'"),
        ("30", 'has no unit: write "30m" or "30s" instead of \'30\''),
        ("00:61:00", "has minutes or seconds above 59"),
        ("1-00:61", "has minutes or seconds above 59"),
        (["1h"], "must be like 90 (minutes)"),
    ],
)
def test_a_walltime_that_may_mean_several_things_is_refused(
    value: Any, reason: str
) -> None:
    assert reason in refusal({"walltime": value})


@pytest.mark.parametrize(
    ("value", "memory_gb"),
    [
        (16, 16.0),
        (1.5, 1.5),
        ("16G", 16.0),
        ("16gb", 16.0),
        ("16 GiB", 16.0),
        ("64000M", 62.5),
        ("1T", 1024.0),
        ("1048576k", 1.0),
        ("0.5g", 0.5),
    ],
)
def test_memory_is_read_in_any_unit(value: Any, memory_gb: float) -> None:
    assert parse({"memory_gb_per_node": value}) == {"memory_gb_per_node": memory_gb}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("16000", 'has no unit: write "16000G" or "16000M"'),
        (0, "must be more than nothing"),
        ("0M", "must be more than nothing"),
        (True, "must be like 16 (GB)"),
        ("16Q", "must be like 16 (GB)"),
        ("9" * 400 + "G", "must be like 16 (GB)"),
        (10**400, "must be like 16 (GB)"),
        (math.nan, "must be like 16 (GB)"),
        (None, None),
    ],
)
def test_memory_without_a_unit_is_refused(value: Any, reason: str | None) -> None:
    if reason is None:
        assert parse({"memory_gb_per_node": value}) == {}
    else:
        assert reason in refusal({"memory_gb_per_node": value})


@given(st.timedeltas(timedelta(microseconds=1), timedelta(days=999)))
def test_a_walltime_is_whole_minutes_and_never_shorter_than_asked_for(
    asked: timedelta,
) -> None:
    hours, minutes, seconds = map(int, parse_walltime(asked).split(":"))
    got = timedelta(hours=hours, minutes=minutes)
    assert seconds == 0
    assert minutes < 60
    assert asked <= got
    assert got - asked < timedelta(minutes=1)


@given(st.integers(1, 10**6))
def test_a_walltime_reads_what_it_writes(minutes: int) -> None:
    written = parse_walltime(minutes)
    assert parse_walltime(written) == written == parse_walltime(f"{minutes}m")
    assert parse_walltime(minutes / 60 * 60) == written


@given(st.floats(0.001, 10**6))
def test_memory_in_megabytes_is_never_less_than_asked_for(memory_gb: float) -> None:
    whole = megabytes(parse_memory(memory_gb))
    assert memory_gb * 1024 - 1e-5 <= whole < memory_gb * 1024 + 1


@given(st.text())
def test_any_text_is_read_or_refused_with_advice(text: str) -> None:
    for read in (parse_walltime, parse_memory):
        with contextlib.suppress(ValueError):
            assert read(text)
            continue
        with pytest.raises(ValueError, match=re.escape(repr(text))):
            read(text)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.timedeltas(),
    st.lists(st.text(), max_size=2),
    st.from_regex(r"[0-9]:([a-z]+=[a-z0-9]+:)*", fullmatch=True),
)


@given(st.dictionaries(st.sampled_from([*ALL, *TRANSLATED]), ANYTHING, max_size=3))
def test_whatever_a_launch_asks_for_is_a_specification_or_a_refusal(
    submit_kwargs: dict[str, Any],
) -> None:
    read = parsed_or_refused(submit_kwargs)
    if isinstance(read, str):
        assert "Executor 'gpu'" in read
    else:
        made: Any = ResourceSpec
        assert made(**read).given() == read


def parsed_or_refused(submit_kwargs: dict[str, Any]) -> dict[str, Any] | str:
    try:
        return parse(submit_kwargs)
    except ValueError as e:
        return str(e)


# --- over defaults


def test_a_launch_goes_over_the_defaults_of_its_executor() -> None:
    defaults = ResourceSpec.parse({"nodes": 2, "queue": "a", "walltime": 60}, "X")
    spec = ResourceSpec.parse({"queue": "b", "nodes": None}, "X", defaults)
    assert spec.given() == {"nodes": 2, "queue": "b", "walltime": "01:00:00"}
    assert spec == ResourceSpec(queue="b").over(defaults)


def test_lines_of_a_launch_come_after_those_of_the_defaults() -> None:
    names = ("scheduler_options", "worker_init", "launcher_options")
    defaults = ResourceSpec.parse(dict.fromkeys(names, "-a"), "X")
    spec = ResourceSpec.parse(dict.fromkeys(names, "-b"), "X", defaults)
    assert spec.scheduler_options == spec.worker_init == "-a\n-b"
    assert spec.launcher_options == "-a -b"


def test_the_constructor_reads_values_as_parsing_does() -> None:
    made: Any = ResourceSpec
    assert made(walltime=90, memory_gb_per_node="16G").given() == {
        "walltime": "01:30:00",
        "memory_gb_per_node": 16.0,
    }
    with pytest.raises(ValidationError, match="must be a whole number"):
        made(nodes="two")
    with pytest.raises(ValidationError, match="frozen"):
        made(nodes=2).nodes = 3
