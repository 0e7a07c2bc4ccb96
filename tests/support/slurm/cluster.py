"""A Slurm cluster whose nodes are virtual: all daemons on this one host."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.slurm.configuration import (
    HISTORY_IN_FILE,
    PARTITIONS,
    SLURM_CONF,
)
from tests.support.slurm.daemons import Cleaner, Daemons, refusal
from tests.support.slurm.pbs import TASK_PROLOG
from tests.support.slurm.polling import until

# Debian keeps daemons where the PATH of most users does not go.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
# A test run inside a batch job must not take that job, or its cluster, for ours.
_INHERITED = ("SLURM", "SBATCH_", "SRUN_", "SQUEUE_", "SALLOC_", "PBS_")
# Where the name of a Unix socket has to end, less what Slurm and munge append.
_LONGEST_DIRECTORY = 107 - len("/spool/n99/n99_1000000.4294967291")


class SlurmLab:
    """A Slurm of our own: munged, slurmctld and a slurmd for each virtual node.

    Use it as a context manager; it is up within a third of a second. Nodes are called
    n1, n2, …; all see the files of this machine. When this process is killed, the
    cluster and all its jobs are, and its directory is removed.

    Args:
        nodes: How many.
        cpus: What each of them has; it need not be true.
        memory_mb: What each of them has; it need not be true.
        gpus: What each of them has; only their numbers exist.
        partitions: What slurm.conf says of each partition.
        extra: Further lines of slurm.conf.

    Attributes:
        directory: The cluster's own, short because names of sockets in it are limited.
        address: Where nodes reach the login node, which is this machine.
        env: The environment in which Slurm's commands find this cluster.
    """

    needs: Sequence[str] = (
        *("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel"),
        *("scontrol", "sinfo", "srun", "unshare", "setpriv", "prlimit", "bash"),
    )
    # What nodes have for themselves, besides processes: options of `unshare`.
    namespaces: Sequence[str] = ()

    @classmethod
    def missing(cls) -> str | None:
        """Say what keeps this from running here, if anything does."""
        found = (shutil.which(name, path=_PATH) for name in cls.needs)
        absent = [name for name, at in zip(cls.needs, found, strict=True) if not at]
        if absent:
            hint = "on Debian, `make test` as root installs it"
            return f"no {', '.join(absent)} here; {hint}"
        return refusal(*cls.namespaces)

    def __init__(
        self,
        nodes: int = 2,
        *,
        cpus: int = 8,
        memory_mb: int = 8000,
        gpus: int = 0,
        partitions: Mapping[str, str] = PARTITIONS,
        extra: str = "",
    ) -> None:
        self.nodes = nodes
        self.cpus = cpus
        self.memory_mb = memory_mb
        self.gpus = gpus
        self.partitions = partitions
        self.extra = extra
        self.address = "127.0.0.1"
        self.directory = Path(tempfile.gettempdir(), f"slurm-{secrets.token_hex(4)}")
        if len(str(self.directory)) > _LONGEST_DIRECTORY:
            raise ValueError(f"TMPDIR is too long for sockets: {self.directory}")
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_INHERITED)
        }
        self.env |= {"SLURM_CONF": str(self.directory / "slurm.conf"), "PATH": _PATH}
        self.logs = self.directory / "log"
        self.daemons = Daemons(self.logs, self.env)
        self._said: dict[Path, int] = {}

    # --- the cluster

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._cleaner = Cleaner(self.directory, self._link_prefix())
            stack.callback(self.stop)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons, and wait until all nodes are idle."""
        self._write_files()
        directory = self.directory
        self.daemons.start(
            "munged",
            *("munged", "--foreground", f"--key-file={directory}/munge.key"),
            *(f"--socket={directory}/munge.sock", f"--pid-file={directory}/munged.pid"),
            f"--log-file={directory}/log/munged.log",
            f"--seed-file={directory}/munged.seed",
            *(() if os.geteuid() == 0 else ("--force",)),
        )
        self._until((directory / "munge.sock").exists, "munged")
        self._start_database()
        self.daemons.start("slurmctld", "slurmctld", "-D", "-i")
        # A slurmd that finds no slurmctld tries again a whole second later.
        self._until(lambda: self._answers(self.port), "slurmctld")
        for node in range(1, self.nodes + 1):
            self.start_node(node)
        self._until(self._all_idle, "all nodes to be idle")
        self._said = {log: log.stat().st_size for log in self._slurm_logs()}

    def stop(self) -> None:
        """End everything at once, jobs included, and remove the directory."""
        self.daemons.kill_all()
        self._cleaner.clean()

    def start_node(self, node: int) -> None:
        """Start a node, numbered from 1, that has not been started or has no power."""
        # slurmd does not reap orphans, and jobs are not over while there are zombies.
        # As process 1, bash does.
        wait = '"$@" & wait $!'
        self.daemons.start(
            f"n{node}", "bash", "-c", wait, "node", "slurmd", "-D", "-N", f"n{node}"
        )

    def power_off(self, node: int) -> None:
        """Let a node die: all its processes are killed, and Slurm is not told."""
        self.daemons.kill(f"n{node}")

    def mark_down(self, node: int) -> None:
        """Say that a node has failed, as an administrator may: its jobs end at once.

        It is back soon, for nothing is wrong with it.
        """
        down = (f"nodename=n{node}", "state=down", "reason=test")
        self.run("scontrol", "update", *down)

    def wait_until_idle(self) -> None:
        """Wait until all nodes are back, and nothing runs on them."""
        self._until(self._all_idle, "all nodes to be idle")

    # --- its jobs

    def run(self, *command: str | Path, check: bool = True) -> str:
        """Run a command on the login node and return its standard output.

        Raises:
            RuntimeError: It failed (unless check is False); says what it printed.
        """
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.directory,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            line = " ".join(map(str, command))
            said = done.stdout + done.stderr
            raise RuntimeError(f"{line}: status {done.returncode}: {said}")
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Return the state of each job that is in the queue: PENDING, RUNNING, …."""
        lines = self.run("squeue", "-h", "-o", "%i %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def job(self, job: str) -> dict[str, str]:
        """Return what `scontrol` says of a job, also one that has ended."""
        shown = self.run("scontrol", "-o", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def script(self, job: str) -> str:
        """Return the batch script of a job as Slurm was given it."""
        copy = self.directory / f"script-{job}"
        self.run("scontrol", "write", "batch_script", job, copy)
        return copy.read_text()

    def expire(self, job: str) -> None:
        """Have a job reach its walltime now; Slurm sees that within 30 s."""
        # "now" of a moment ago is in the past, which Slurm refuses.
        self.run("scontrol", "update", f"jobid={job}", "EndTime=now+2")

    def cancel_all(self) -> None:
        """Cancel all jobs, and wait until they are over."""

        def none_left() -> bool:
            for job in self.jobs():
                self.run("scancel", "--full", "--signal=KILL", job, check=False)
                self.run("scancel", job, check=False)
            return not self.jobs()

        until(none_left, "all jobs to be over")

    def last_words(self, lines: int = 20) -> dict[str, str]:
        """Return the end of each log, without what is usual when starting."""
        words = {}
        for log in self._slurm_logs():
            new = log.read_bytes()[self._said.get(log, 0) :]
            if new:
                text = new.decode(errors="replace")
                words[log.name] = "\n".join(text.splitlines()[-lines:])
        return words

    # --- how it is made

    def _slurm_logs(self) -> list[Path]:
        return sorted(self.logs.glob("slurm*.log"))

    def _link_prefix(self) -> str:
        return ""

    def _history(self) -> str:
        """Return the lines of slurm.conf that say where ended jobs are kept."""
        return HISTORY_IN_FILE.format(directory=self.directory)

    def _start_database(self) -> None:
        """Start what slurmctld needs for that."""

    def _write_files(self) -> None:
        directory = self.directory
        directory.mkdir(0o755)
        spools = (f"spool/n{node}" for node in range(1, self.nodes + 1))
        for name in ("state", "log", "dev", "tmp", *spools):
            (directory / name).mkdir(parents=True)
        key = directory / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.port = unused_ports(1 + self.nodes)
        partitions = self.partitions.items()
        (directory / "slurm.conf").write_text(
            SLURM_CONF.format(
                login=socket.gethostname().partition(".")[0],
                address=self.address,
                port=self.port,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                directory=directory,
                task_prolog=shutil.copy(TASK_PROLOG, directory),
                nodes="\n".join(map(self._node, range(1, self.nodes + 1))),
                partitions="\n".join(f"PartitionName={n} {o}" for n, o in partitions),
                history=self._history(),
                extra=self.extra,
            )
        )
        if self.gpus:
            files = self._devices()
            (directory / "gres.conf").write_text(f"Name=gpu Type=fake File={files}\n")

    def _node(self, node: int) -> str:
        """Return the line of slurm.conf for a node."""
        return (
            f"NodeName=n{node} NodeHostname={socket.gethostname().partition('.')[0]} "
            f"NodeAddr={self.address} Port={self.port + node} {self._hardware()}"
        )

    def _hardware(self) -> str:
        gres = f" Gres=gpu:fake:{self.gpus}" if self.gpus else ""
        return f"CPUs={self.cpus} RealMemory={self.memory_mb}{gres} State=UNKNOWN"

    def _devices(self) -> str:
        """Return devices to take for GPUs: Slurm sees to it that they are devices."""
        last = self.gpus - 1
        if os.geteuid() != 0:
            return f"/dev/tty[0-{last}]"
        like_null = os.makedev(1, 3)
        for gpu in range(self.gpus):
            device = self.directory / "dev" / f"nvidia{gpu}"
            os.mknod(device, 0o666 | stat.S_IFCHR, like_null)
        return f"{self.directory}/dev/nvidia[0-{last}]"

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((self.address, port), timeout=1).close()
            return True
        return False

    def _all_idle(self) -> bool:
        idle = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
        return len(set(idle.split())) == self.nodes

    def _until(self, look: Callable[[], bool], what: str) -> None:
        def checked() -> bool:
            self.daemons.check()
            return look()

        until(checked, what)


def unused_ports(count: int) -> int:
    """Return the first of a number of consecutive ports that nobody listens on.

    They are below those which are given to outgoing connections.
    """
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", port))
            return first
