"""What a manager was asked to launch, how often it may run, and what a worker gets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from academy.launch import AgentSpec
from academy.launch.spec import check_pickles, pack_agent

if TYPE_CHECKING:
    from academy.agent import Agent
    from academy.exchange.client import ExchangeClient
    from academy.exchange.factory import ExchangeFactory
    from academy.exchange.transport import AgentRegistration
    from academy.logging.configs.base import LogConfig
    from academy.runtime import RuntimeConfig

MAX_BACKOFF = 60.0
"""Seconds; the wait before a retry doubles up to this."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after how long, an agent that failed runs again.

    Attributes:
        max_retries: runs after the first one.
        backoff: seconds before the first retry; doubles with each, up to a minute,
            and varies by half so that agents that failed together come back apart.
    """

    max_retries: int
    backoff: float

    def __post_init__(self) -> None:
        for name, value in (
            ("max_retries", self.max_retries),
            ("retry_backoff", self.backoff),
        ):
            if value < 0:
                raise ValueError(f"{name} is not negative; it was {value}.")

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures."""
        longest = min(self.backoff * 2.0 ** min(failures - 1, 32), MAX_BACKOFF)
        return longest * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class LaunchRequest:
    """A launch that has been checked: all of it but the mailbox."""

    agent: Agent | type[Agent]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    config: RuntimeConfig
    executor_name: str
    executor: Executor | None
    submit_kwargs: Mapping[str, Any]
    name: str | None
    log_config: LogConfig | None

    @property
    def agent_type(self) -> type[Agent]:
        """The class of the agent."""
        return self.agent if isinstance(self.agent, type) else type(self.agent)

    def pack(self, client: ExchangeClient) -> bytes | None:
        """Return the packed agent; None if it runs in this process' memory.

        Raises:
            PicklingError: names the part of the launch that does not pickle.
        """
        if self.executor is None or isinstance(self.executor, ThreadPoolExecutor):
            return None
        check_pickles(client.factory(), "the exchange")
        return pack_agent(self.agent, self.args, self.kwargs)

    def spec(
        self,
        client: ExchangeClient,
        registration: AgentRegistration[Any],
        packed: bytes | None,
        config: RuntimeConfig,
    ) -> AgentSpec:
        """Return what the worker gets."""
        factory = client.factory()
        if isinstance(self.executor, ThreadPoolExecutor):
            factory = _for_threads(factory)
        return AgentSpec(
            self.agent if packed is None else packed,
            factory,
            registration,
            config,
            self.log_config,
            self.args if packed is None else (),
            self.kwargs if packed is None else {},
        )


def spec_of_run(
    run: int,
    client: ExchangeClient,
    retry: RetryPolicy,
    request: LaunchRequest,
    registration: AgentRegistration[Any],
    packed: bytes | None,
) -> AgentSpec:
    """Return what the worker gets in one of an agent's runs, counted from 1."""
    config = request.config
    if run <= retry.max_retries:
        # The mailbox is to be there for the next run.
        config = config.model_copy(update={"terminate_on_error": False})
    return request.spec(client, registration, packed, config)


def _for_threads(factory: ExchangeFactory) -> ExchangeFactory:
    from academy.exchange.bridge import BridgeFactory
    from academy.exchange.local import LocalExchangeFactory

    return (
        BridgeFactory(factory) if isinstance(factory, LocalExchangeFactory) else factory
    )
