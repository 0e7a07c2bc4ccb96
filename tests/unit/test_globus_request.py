"""What one launch asks of a Globus Compute endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from academy.executors.globus_compute import GlobusComputeExecutor

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


def executor(**options: Any) -> GlobusComputeExecutor:
    return GlobusComputeExecutor(ENDPOINT, **options)


def request(one: GlobusComputeExecutor, **submit_kwargs: Any) -> dict[str, Any]:
    """Return what is previewed for a launch."""
    one.validate(**submit_kwargs)
    preview = one.preview(**submit_kwargs)
    body: dict[str, Any] = json.loads(preview[preview.index("{") :])
    return body


def test_fields_of_a_resource_specification_are_variables_of_the_template() -> None:
    asked = {"nodes": 2, "walltime": "90m", "partition": "debug", "exclusive": False}
    assert request(executor(), **asked) == {
        "user_endpoint_config": {
            "nodes": 2,
            "walltime": "01:30:00",
            "queue": "debug",
            "exclusive": False,
        }
    }


def test_the_native_dictionaries_are_passed_on_unchanged() -> None:
    config = {"nodes": "two", "anything": [1, {"deep": None}], "é": 1.5}
    specification = {"num_nodes": 2, "priority": -1}
    native = {"user_endpoint_config": config, "resource_specification": specification}
    assert request(executor(), **native) == native


def test_a_launch_goes_over_its_executor_key_by_key() -> None:
    one = executor(
        resources={"walltime": "01:00:00", "queue": "cpu", "worker_init": "module a"},
        user_endpoint_config={"pool": "a", "size": 1},
        resource_specification={"priority": 1},
    )
    body = request(
        one,
        queue="gpu",
        worker_init="module b",
        user_endpoint_config={"size": 2},
        priority=0,
        resource_specification={"other": 1},
    )
    assert body == {
        "user_endpoint_config": {
            "walltime": "01:00:00",
            "queue": "gpu",
            "worker_init": "module a\nmodule b",
            "pool": "a",
            "size": 2,
        },
        "resource_specification": {"priority": 0, "other": 1},
    }
    assert request(one)["user_endpoint_config"]["queue"] == "cpu"


def test_priority_is_for_the_engine() -> None:
    assert request(executor(), priority=0) == {
        "resource_specification": {"priority": 0}
    }


def test_an_mpi_agent_takes_a_whole_block() -> None:
    one = executor(user_endpoint_config={"mpi": True})
    body = request(one, nodes=2, ranks_per_node=4, launcher_options="--verbose")
    assert body["resource_specification"] == {
        "num_nodes": 2,
        "ranks_per_node": 4,
        "num_ranks": 8,
        "launcher_options": "--verbose",
    }
    assert body["user_endpoint_config"]["nodes"] == 2
    assert request(one)["resource_specification"]["num_ranks"] == 1


def test_nothing_asked_is_nothing_sent() -> None:
    assert request(executor()) == {}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"nodez": 2}, "'nodez'.*Did you mean 'nodes'"),
        ({"walltime": "soon"}, "walltime.*'soon'"),
        ({"user_endpoint_config": ["nodes"]}, r"must be a dictionary, not \['nodes'\]"),
        ({"user_endpoint_config": {1: 2}}, "must be strings, not 1"),
        ({"user_endpoint_config": {"x": {1}}}, r"\['x'\].*JSON.*\{1\}"),
        ({"resource_specification": {"x": float("nan")}}, r"\['x'\].*JSON.*nan"),
        ({"nodes": 1, "user_endpoint_config": {"nodes": 2}}, "'nodes' twice"),
    ],
)
def test_what_is_wrong_is_named(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        executor().validate(**asked)
    with pytest.raises(ValueError, match=said):
        executor().submit(abs, -1, **asked)


def test_what_an_executor_is_made_with_is_checked_then() -> None:
    with pytest.raises(ValueError, match="'nodez'"):
        executor(resources={"nodez": 2})
    with pytest.raises(ValueError, match="'queue' twice"):
        executor(resources={"queue": "a"}, user_endpoint_config={"queue": "b"})
    with pytest.raises(ValueError, match="has a UUID for an id, not 'midway'"):
        GlobusComputeExecutor("midway")


def test_later_changes_to_a_dictionary_change_nothing() -> None:
    config = {"deep": {"size": 1}}
    one = executor(user_endpoint_config=config)
    config["deep"]["size"] = 2
    assert request(one)["user_endpoint_config"] == {"deep": {"size": 1}}
