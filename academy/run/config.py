"""One agent from a file, without a manager.

The agent keeps its mailbox from run to run: the first one writes what it needs for
that back into the file, as `[agent_registration]`::

    [exchange]
    exchange_type = "http"                # or "globus"; then its factory's parameters
    url = "https://login1:8700"

    [agent]
    constructor = "my_package.Archive"    # then its keyword arguments,
    path = "/scratch/archive"             # or only pickle = "agent.pkl"

    [config]                              # of RuntimeConfig
    max_sync_concurrency = 4
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import pickle
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from academy.agent import Agent
from academy.exception import (
    AcademyError,
    BadEntityIdError,
    MailboxTerminatedError,
)
from academy.exchange.transport import AgentRegistration
from academy.home import write_private
from academy.identifier import AgentId
from academy.launch.ending import shutdown_from_outside
from academy.runtime import Runtime, RuntimeConfig

if TYPE_CHECKING:
    from academy.exchange.factory import ExchangeFactory

logger = logging.getLogger(__name__)

SECTIONS = ("exchange", "agent", "config", "agent_registration")
FACTORIES = {
    "http": "academy.exchange.cloud.client.HttpExchangeFactory",
    "globus": "academy.exchange.cloud.globus.GlobusExchangeFactory",
}
"""By exchange_type, what makes clients; imported when asked for."""
OF_GLOBUS = ("exchange_type", "client_id", "secret")
"""What a registration at an exchange with Globus Auth has besides."""


class RunConfigError(AcademyError, ValueError):
    """The file that describes an agent cannot be followed."""


@dataclass(frozen=True)
class RunConfig:
    """What a file says about the agent to run.

    Attributes:
        path: the file.
        exchange_factory: where the agent's mailbox is.
        agent: the `[agent]` section.
        config: how the agent runs; by default its mailbox stays when it ends.
        registration: the mailbox of earlier runs, if there were any.
    """

    path: Path
    exchange_factory: ExchangeFactory
    agent: Mapping[str, Any]
    config: RuntimeConfig
    registration: AgentRegistration[Any] | None

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Read a file.

        Raises:
            FileNotFoundError: it does not exist.
            RunConfigError: it is not TOML, or something in it is not known; names the
                section, the key and the nearest right one.
        """
        path = Path(path)
        try:
            sections = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise RunConfigError(f"{path} is not TOML: {error}") from error
        try:
            _check_keys(sections, SECTIONS)
            for name in ("exchange", "agent"):
                if not isinstance(sections.get(name), dict):
                    raise RunConfigError(f"there is no section [{name}]")
            return cls(
                path,
                _factory(sections["exchange"]),
                sections["agent"],
                _runtime_config(sections.get("config", {})),
                _registration(sections.get("agent_registration")),
            )
        except RunConfigError as error:
            raise RunConfigError(f"{path}: {error}") from error

    def build(self) -> Agent:
        """Make the agent.

        Raises:
            RunConfigError: what `[agent]` names is not to be had, or is no agent.
        """
        try:
            return _agent(self.agent, self.path.parent)
        except RunConfigError as error:
            raise RunConfigError(f"{self.path}: [agent] {error}") from error

    async def registered(self, agent: Agent) -> AgentRegistration[Any]:
        """Return the agent's mailbox; a new one is written back into the file."""
        if self.registration is not None:
            return self.registration
        async with await self.exchange_factory.create_user_client() as client:
            registration = await client.register_agent(type(agent))
            try:
                self._write_back(registration)
            except BaseException:
                await client.terminate(registration.agent_id)
                raise
        return registration

    def _write_back(self, registration: AgentRegistration[Any]) -> None:
        facts = {
            field.name: getattr(registration, field.name)
            for field in fields(registration)
        }
        aid = facts.pop("agent_id")
        facts = {"uid": str(aid.uid), "name": aid.name, **facts}
        lines = [f"{k} = {json.dumps(v)}" for k, v in facts.items() if v is not None]
        section = "\n".join(["[agent_registration]", *lines, ""])
        # A link is to stay one; the token is for nobody else.
        path = self.path.resolve()
        write_private(path, f"{path.read_text().rstrip()}\n\n{section}")


def _check_keys(given: Iterable[str], known: Iterable[str], where: str = "") -> None:
    names = sorted(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            hint = f' did you mean "{near[0]}"?' if near else ""
            raise RunConfigError(
                f'{where}unknown key "{key}";{hint} Known: {", ".join(names)}.'
            )


def _factory(section: Mapping[str, Any]) -> ExchangeFactory:
    parameters = dict(section)
    kind = parameters.pop("exchange_type", None)
    if kind not in FACTORIES:
        raise RunConfigError(
            f"[exchange] exchange_type is {kind!r}; this version supports: "
            f"{', '.join(FACTORIES)}."
        )
    module, _, name = FACTORIES[kind].rpartition(".")
    make = getattr(importlib.import_module(module), name)
    known = inspect.signature(make).parameters.keys() - {"config", "globus_app"}
    _check_keys(parameters, known, "[exchange] ")
    try:
        factory: ExchangeFactory = make(**parameters)
    except (TypeError, ValueError) as error:
        raise RunConfigError(f"[exchange] {error}") from error
    return factory


def _runtime_config(section: Mapping[str, Any]) -> RuntimeConfig:
    from pydantic import ValidationError

    _check_keys(section, RuntimeConfig.model_fields, "[config] ")
    kept = {"terminate_on_error": False, "terminate_on_success": False}
    try:
        return RuntimeConfig.model_validate(kept | dict(section))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise RunConfigError(f"[config] {'; '.join(problems)}") from error


def _registration(section: Mapping[str, Any] | None) -> AgentRegistration[Any] | None:
    if section is None:
        return None
    known = ("uid", "name", "token", *OF_GLOBUS)
    _check_keys(section, known, "[agent_registration] ")
    try:
        uid = UUID(str(section.get("uid")))
    except ValueError as error:
        raise RunConfigError(
            f"[agent_registration] uid is {section.get('uid')!r}, which no run has "
            "written. Remove the section to get a new mailbox."
        ) from error
    aid: AgentId[Any] = AgentId(uid=uid, name=section.get("name"))
    further = {key: section[key] for key in OF_GLOBUS if key in section}
    if not further:
        return AgentRegistration(aid, section.get("token"))
    from academy.exchange.cloud.globus import GlobusAgentRegistration

    if missing := [key for key in OF_GLOBUS if key not in further]:
        raise RunConfigError(
            f"[agent_registration] {', '.join(missing)} is missing. Remove the section "
            "to get a new mailbox."
        )
    return GlobusAgentRegistration(aid, section.get("token"), **further)


def _agent(section: Mapping[str, Any], folder: Path) -> Agent:
    arguments = dict(section)
    constructor, pickled = (
        arguments.pop("constructor", None),
        arguments.pop("pickle", None),
    )
    if (constructor is None) == (pickled is None):
        raise RunConfigError("needs either constructor = or pickle =.")
    if pickled is not None:
        _check_keys(arguments, (), f"pickle = {pickled!r} takes no arguments: ")
        agent = _unpickled(folder / pickled)
    else:
        agent = _made(str(constructor), arguments)
    if not isinstance(agent, Agent):
        raise RunConfigError(
            f"{constructor or pickled} makes {agent!r}, which is no Agent."
        )
    return agent


def _made(name: str, arguments: Mapping[str, Any]) -> Any:
    make = _imported(name)
    try:
        signature = inspect.signature(make)
    except ValueError:  # written in C
        return make(**arguments)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise RunConfigError(
            f"{name}{signature} does not take these: {error}."
        ) from error
    return make(**arguments)


def _unpickled(path: Path) -> Any:
    try:
        return pickle.loads(path.read_bytes())
    except Exception as error:
        raise RunConfigError(
            f"pickle = {str(path)!r} cannot be read: {error!r}"
        ) from error


def _imported(name: str) -> Any:
    """Import what a dotted path names: a class in a module, or in another class."""
    module, _, attribute = name.rpartition(".")
    try:
        if not module:
            raise ImportError("it has no module, as in package.module.Class")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module or "." not in module:
                raise
            found = _imported(module)
        return getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise RunConfigError(
            f'constructor = "{name}" cannot be imported: {error}'
        ) from error


async def run(config: RunConfig) -> None:
    """Run the agent until it shuts down, or until SIGTERM or SIGINT.

    Raises:
        RunConfigError: the file names what is not to be had.
        ExchangeError: the exchange is out of reach, or does not know the mailbox.
        Exception: what the agent failed of.
    """
    agent = config.build()
    registration = await config.registered(agent)
    runtime = Runtime(
        agent,
        exchange_factory=config.exchange_factory,
        registration=registration,
        config=config.config,
    )
    logger.info("%s at %r", registration.agent_id, config.exchange_factory)
    with shutdown_from_outside(runtime, expected=True):
        try:
            await runtime.run_until_complete()
        except (BadEntityIdError, MailboxTerminatedError) as error:
            if error.uid == registration.agent_id:
                error.add_note(
                    f"It is that of [agent_registration] in {config.path}: remove the "
                    "section to get a new one."
                )
            raise
