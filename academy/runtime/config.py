"""What a caller may choose about how an agent runs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt

from academy.serialize import SerializationStrategy


class RuntimeConfig(BaseModel):
    """How an agent runs.

    Attributes:
        cancel_actions_on_shutdown: cancel the actions that run; else wait for them.
        max_sync_concurrency: threads for `agent_run_sync`; None means the number of
            CPUs and 4, at most 32.
        raise_loop_errors_on_shutdown: an error of a loop is an error of the agent.
        shutdown_on_loop_error: shut down when a loop fails.
        terminate_on_error: end the mailbox when the agent exits with an error.
        terminate_on_success: end the mailbox when it exits without one.
        default_serializer: how the agent's own calls encode their arguments.
        allowed_deserializers: what the agent decodes; None is anything.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    cancel_actions_on_shutdown: bool = True
    max_sync_concurrency: PositiveInt | None = None
    raise_loop_errors_on_shutdown: bool = True
    shutdown_on_loop_error: bool = True
    terminate_on_error: bool = True
    terminate_on_success: bool = True
    default_serializer: SerializationStrategy | None = None
    allowed_deserializers: frozenset[SerializationStrategy] | None = None
