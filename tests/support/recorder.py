"""An agent that leaves a durable trace, in a process that a test kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from academy.agent import Agent, action
from academy.exchange import AgentRegistration, ExchangeFactory
from academy.launch import AgentSpec
from academy.runtime import RuntimeConfig

RUN = """\
import sys
from academy.launch import run_agent
run_agent(open(sys.argv[1], "rb").read())
"""


class Recorder(Agent):
    """Appends to a file what it was asked to do, before it answers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def agent_on_startup(self) -> None:
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @action
    async def record(self, sender: int, number: int) -> int:
        os.write(self.file, b"%d %d\n" % (sender, number))
        return number

    @action(idempotent=True)
    async def record_again(self, sender: int, number: int) -> int:
        os.write(self.file, b"%d %d\n" % (sender, number))
        return number


def recorded(path: Path) -> dict[int, list[int]]:
    """Return the numbers that were recorded, in order, by sender."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for line in path.read_text().splitlines():
        sender, number = map(int, line.split())
        numbers[sender].append(number)
    return dict(numbers)


class RecorderProcess:
    """A process that runs a Recorder, and can be killed and started again."""

    def __init__(
        self,
        folder: Path,
        factory: ExchangeFactory,
        registration: AgentRegistration[Any],
    ) -> None:
        self.trace = folder / "trace"
        self._log = folder / "agent.log"
        self._spec = folder / "spec"
        spec = AgentSpec(
            Recorder, factory, registration, RuntimeConfig(), args=(self.trace,)
        )
        self._spec.write_bytes(spec.pack())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(self._spec)], stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it without a chance to do anything about it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def __enter__(self) -> RecorderProcess:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            self.kill()
