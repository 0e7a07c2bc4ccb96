"""Why an agent ended that nobody had asked to: one error for each cause.

An agent's own exceptions come as they are. These stand for what happens to it from
outside: its job, its node, its environment. Each says where, and what was printed last.
"""

from __future__ import annotations

from academy.exception import AcademyError


class AgentLostError(AcademyError):
    """The agent's process is gone, and nobody knows why.

    Its subclasses stand for the causes that are known.

    Attributes:
        job_id: the batch job that it was in; "" if in none.
        host: the machine that it was on; "" if it never was on any.
        reason: the cause in the scheduler's, the engine's or our words.
        output: the last lines that the job printed.
    """

    what = "The agent was lost"
    """The cause in a few words; subclasses have their own."""

    def __init__(
        self, job_id: str = "", host: str = "", reason: str = "", output: str = ""
    ) -> None:
        super().__init__(job_id, host, reason, output)
        self.job_id = job_id
        self.host = host
        self.reason = reason
        self.output = output

    def __str__(self) -> str:
        job = f" in job {self.job_id}" if self.job_id else ""
        host = f" on {self.host}" if self.host else ""
        reason = f": {self.reason}" if self.reason else "."
        lines = self.output.rstrip().splitlines()
        output = "".join(f"\n  | {line}" for line in lines)
        said = f"\nThe last that it printed:{output}" if output else ""
        return f"{self.what}{job}{host}{reason}{said}"


class OutOfMemoryError(AgentLostError):
    """Its job, or its node, had no memory left."""

    what = "The agent ran out of memory"


class WalltimeReachedError(AgentLostError):
    """Its job ran for as long as it had asked for."""

    what = "The agent's job reached its walltime"


class PreemptedError(AgentLostError):
    """Its job had to make room for another one."""

    what = "The agent's job was preempted"


class JobCancelledError(AgentLostError):
    """Somebody cancelled its job."""

    what = "The agent's job was cancelled"


class NodeFailedError(AgentLostError):
    """Its node went down."""

    what = "The agent's node failed"


class WorkerDiedError(AgentLostError):
    """Its process died while its job went on (killed, crashed, `os._exit`)."""

    what = "The agent's process died"


class JobFailedError(AgentLostError):
    """Its job ended with an error that is none of the other causes."""

    what = "The agent's job failed"


class NeverStartedError(AgentLostError):
    """Its job never ran, and by what its scheduler says, never will."""

    what = "The agent's job never started"


class StartupError(AgentLostError):
    """Its job ran, and the agent could not begin there."""

    what = "The agent could not be started"


class MissingModuleError(StartupError, ModuleNotFoundError):
    """What the agent imports is not installed where it should run."""

    what = "The agent needs a module that is missing"


class ExchangeUnreachableError(StartupError):
    """The exchange cannot be reached from where the agent should run."""

    what = "The agent cannot reach its exchange"
