"""What one launch asks of an endpoint: read, checked, and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from academy.executors.globus_compute.task import run_task
from academy.executors.resources import ResourceSpec

CONFIG = "user_endpoint_config"
SPECIFICATION = "resource_specification"
NATIVE = (CONFIG, SPECIFICATION)


@dataclass(frozen=True)
class Request:
    """The part of a submission that says where and how its tasks run.

    Attributes:
        user_endpoint_config: variables of the endpoint's template.
        resource_specification: what its engine takes for one task.
    """

    user_endpoint_config: Mapping[str, Any]
    resource_specification: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Equal for requests that may share a submission."""
        return json.dumps(self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, Any]:
        """Return its part of the body of a submission; what is empty is left out."""
        body = {
            CONFIG: dict(self.user_endpoint_config),
            SPECIFICATION: dict(self.resource_specification),
        }
        return {key: value for key, value in body.items() if value}

    def preview(self, endpoint_id: str) -> str:
        """Return what is sent for one task, but for the pickled agent itself."""
        body = json.dumps(self.as_json(), indent=2)
        name = f"{run_task.__module__}.{run_task.__qualname__}"
        return (
            "# GlobusComputeExecutor: one task for each agent, in\n"
            f"# POST /v3/endpoints/{endpoint_id}/submit\n"
            f"# function: {name}\n{body}\n"
        )


@dataclass(frozen=True)
class Defaults:
    """What an executor asks for in all launches that do not say otherwise.

    Attributes:
        resources: what its templates' variables stand for.
        user_endpoint_config: as in `Request`.
        resource_specification: as in `Request`.
    """

    resources: ResourceSpec
    user_endpoint_config: Mapping[str, Any]
    resource_specification: Mapping[str, Any]


def read_defaults(
    resources: Mapping[str, Any] | None,
    user_endpoint_config: Mapping[str, Any] | None,
    resource_specification: Mapping[str, Any] | None,
    taker: str,
) -> Defaults:
    """Check what an executor is made with, and copy it.

    Raises:
        ValueError: Says which key or value is wrong, and what would be right.
    """
    native = {CONFIG: user_endpoint_config, SPECIFICATION: resource_specification}
    copies = {name: _native(name, value, taker) for name, value in native.items()}
    spec = ResourceSpec.parse(resources or {}, taker)
    _check_given_once(spec.given(), copies, taker)
    return Defaults(spec, copies[CONFIG], copies[SPECIFICATION])


def read_request(
    submit_kwargs: Mapping[str, Any], defaults: Defaults, taker: str
) -> Request:
    """Put together what a launch asks for, and what its executor does.

    Fields of a ResourceSpec become variables of the templates that we ship, by the same
    names; `priority`, and the size of an MPI task, are for the engine. Entries of the
    two native dictionaries go over these, and are passed on as they are.

    Raises:
        ValueError: Says which key or value is wrong, and what would be right.
    """
    native = {name: _native(name, submit_kwargs.get(name), taker) for name in NATIVE}
    asked = {key: value for key, value in submit_kwargs.items() if key not in NATIVE}
    _check_given_once(ResourceSpec.parse(asked, taker).given(), native, taker)
    resources = ResourceSpec.parse(asked, taker, defaults.resources).given()
    priority = resources.pop("priority", None)
    config = {**defaults.user_endpoint_config, **resources, **native[CONFIG]}
    specification = {**defaults.resource_specification}
    if config.get("mpi"):
        specification |= _mpi(config)
    if priority is not None:
        specification["priority"] = priority
    return Request(config, specification | native[SPECIFICATION])


def _native(name: str, value: Any, taker: str) -> dict[str, Any]:
    """Return a copy of a native dictionary that JSON can carry unchanged."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} of {taker} must be a dictionary, not {value!r}.")
    for key, one in value.items():
        if not isinstance(key, str):
            raise ValueError(f"Keys of {name} must be strings, not {key!r} ({taker}).")
        try:
            json.dumps(one, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}[{key!r}] must be something that JSON has, not {one!r} "
                f"({taker}): {error}"
            ) from error
    return {key: json.loads(json.dumps(one)) for key, one in value.items()}


def _check_given_once(
    asked: Mapping[str, Any], native: Mapping[str, Mapping[str, Any]], taker: str
) -> None:
    for name, values in native.items():
        for key in asked:
            if key in values:
                raise ValueError(f"{taker} was given {key!r} twice, once in {name}.")


def _mpi(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resource specification of a task that takes a whole block.

    Source: https://parsl.readthedocs.io/en/stable/userguide/apps/mpi_apps.html
    """
    nodes = config.get("nodes", 1)
    ranks = config.get("ranks_per_node", 1)
    size = {"num_nodes": nodes, "ranks_per_node": ranks, "num_ranks": nodes * ranks}
    options = config.get("launcher_options")
    return {**size, "launcher_options": options} if options else size
