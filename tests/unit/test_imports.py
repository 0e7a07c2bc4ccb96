"""Import paths that users' programs contain, and what importing may cost."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

PATHS = {
    "academy.agent": ["Agent", "action", "loop", "event", "timer"],
    "academy.context": ["ActionContext", "AgentContext"],
    "academy.exception": [
        "AcademyRemoteError",
        "ActionCancelledError",
        "ActionInvalidStateError",
        "AgentInactiveError",
        "AgentNotInitializedError",
        "AgentTerminatedError",
        "BadEntityIdError",
        "DeserializationMethodProhibitedError",
        "ExceptionSerializationError",
        "ExchangeClientNotFoundError",
        "ExchangeError",
        "ForbiddenError",
        "IncompatibleNetworkProtocolError",
        "MailboxTerminatedError",
        "MessageTooLargeError",
        "PingCancelledError",
        "UnauthorizedError",
        "UserTerminatedError",
        "raise_exceptions",
    ],
    "academy.exchange": [
        "AgentExchangeClient",
        "ExchangeClient",
        "ExchangeFactory",
        "ExchangeTransport",
        "GlobusExchangeFactory",
        "GlobusExchangeTransport",
        "HttpExchangeFactory",
        "HttpExchangeTransport",
        "LocalExchangeFactory",
        "LocalExchangeTransport",
        "MailboxStatus",
        "UserExchangeClient",
    ],
    "academy.exchange.client": [
        "AgentExchangeClient",
        "ExchangeClient",
        "UserExchangeClient",
        "exchange_context",
    ],
    "academy.exchange.client_config": ["ExchangeClientConfig"],
    "academy.exchange.cloud": [
        "GlobusExchangeFactory",
        "HttpExchangeFactory",
        "spawn_http_exchange",
    ],
    "academy.exchange.cloud.app": ["create_app"],
    "academy.exchange.cloud.client": ["HttpExchangeFactory", "HttpExchangeTransport"],
    "academy.exchange.cloud.config": ["ExchangeServingConfig"],
    "academy.exchange.cloud.globus": [
        "GlobusExchangeFactory",
        "GlobusExchangeTransport",
    ],
    "academy.exchange.factory": ["ExchangeFactory"],
    "academy.exchange.local": ["LocalExchangeFactory", "LocalExchangeTransport"],
    "academy.exchange.mailbox_status": ["MailboxStatus"],
    "academy.exchange.transport": ["AgentRegistration", "ExchangeTransport"],
    "academy.handle": ["Handle", "ProxyHandle"],
    "academy.home": ["get_academy_home"],
    "academy.identifier": ["AgentId", "EntityId", "UserId"],
    "academy.logging.configs.base": ["LogConfig"],
    "academy.logging.configs.console": ["ConsoleLogging"],
    "academy.logging.configs.file": ["FileLogging"],
    "academy.logging.configs.jsonpool": ["JSONPoolLogging"],
    "academy.logging.configs.multi": ["MultiLogging"],
    "academy.logging.helpers": ["log_context"],
    "academy.logging.recommended": ["recommended_logging"],
    "academy.manager": ["Manager"],
    "academy.message": [
        "AcademyErrorResponse",
        "ActionRequest",
        "ActionResponse",
        "CancelRequest",
        "Message",
        "PingRequest",
        "ShutdownRequest",
        "SuccessResponse",
        "UserErrorResponse",
    ],
    "academy.run": [],
    "academy.runtime": ["Runtime", "RuntimeConfig"],
    "academy.serialize": [
        "NoPickleMixin",
        "SerializationStrategy",
        "allowed_deserializers",
        "default_serializer",
    ],
    "academy.socket": [
        "address_by_hostname",
        "address_by_interface",
        "open_port",
        "wait_connection",
    ],
    "academy.state": ["FileState"],
    "academy.stats": ["AgentStats"],
}

# Ids and configurations are pydantic models. Nothing else is worth its files on a
# shared file system, which every worker reads.
PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}

LOADED = """
import json, sys
before = set(sys.modules)
import {module}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names))))
"""


@pytest.mark.parametrize("path", PATHS)
def test_the_path_has_its_names(path: str) -> None:
    module = importlib.import_module(path)
    assert [name for name in PATHS[path] if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", ["academy.agent", "academy.manager"])
def test_importing_loads_no_library_but_pydantic(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {
        name
        for name in json.loads(process.stdout)
        if not name.startswith("_sysconfigdata_")  # Python's own, named by machine.
    }
    assert loaded - PYDANTIC == {"academy"}


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("academy.exchange.cloud.globus", "globus_sdk"),
        ("academy.exchange.cloud.links", "aiohttp"),
        ("academy.exchange.cloud.links", "pydantic_settings"),
    ],
)
def test_what_few_use_is_loaded_by_those_who_use_it(module: str, library: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert library not in json.loads(process.stdout)
