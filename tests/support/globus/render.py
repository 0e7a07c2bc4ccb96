"""Run by the endpoint's Python: renders templates with the endpoint's own code.

Reads lines of JSON, [folder, variables]; answers each with a line of JSON: what a user
endpoint would be, or an error.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import globus_compute_endpoint.endpoint.config.utils as endpoint
import yaml
from globus_compute_endpoint.endpoint.config import CoreEndpointConfig
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity


def render(folder: Path, variables: dict[str, Any]) -> dict[str, Any]:
    """Return what a user endpoint with these variables would be."""
    template = folder / "user_config_template.yaml.j2"
    text = endpoint.render_config_user_template(
        CoreEndpointConfig(),
        endpoint.load_user_config_template(template),
        template,
        MappedPosixIdentity(pwd.getpwuid(os.getuid()), "ada", "ada"),
        endpoint.load_user_config_schema(folder / "user_config_schema.json"),
        variables,
        {},
    )
    config = endpoint.load_config_yaml(text)
    executor = config.engine.executor
    provider = executor.provider
    kinds = (str, int, float, bool, list, type(None))
    return {
        "yaml": yaml.safe_load(text),
        "idle_heartbeats_soft": config.idle_heartbeats_soft,
        "engine": type(config.engine).__name__,
        "executor": {k: v for k, v in vars(executor).items() if isinstance(v, kinds)},
        "provider": {k: v for k, v in vars(provider).items() if isinstance(v, kinds)},
        "launcher": type(provider.launcher).__name__,
        "overrides": getattr(provider.launcher, "overrides", ""),
    }


def main() -> None:
    """Answer all lines."""
    for line in sys.stdin:
        folder, variables = json.loads(line)
        try:
            answer = render(Path(folder), variables)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
