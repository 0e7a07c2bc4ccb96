"""Processes that end with the one that started them, and all that they started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.slurm.polling import until

# When the first process of a PID namespace dies, the kernel kills all others in it.
# That holds however it dies, and neither a double fork nor `setsid` escapes it.
_OWN_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
# Only root may make namespaces without making a user namespace first.
_AS_THIS_USER = () if os.geteuid() == 0 else ("--user", "--map-current-user")
# Ends its process together with the thread that started it.
_NO_ORPHAN = ("setpriv", "--pdeathsig", "KILL")
# What crashes in a test leaves its memory in no directory, least of all in a home.
_NO_CORE = ("prlimit", "--core=0:0")


def refusal(*unshare: str) -> str | None:
    """Say why this user may not have such namespaces here, as in many containers."""
    done = subprocess.run(
        ["unshare", *_AS_THIS_USER, *_OWN_PROCESSES, *unshare, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


class Daemons:
    """The daemons of a cluster, each with a PID namespace of its own.

    Args:
        logs: Directory for what they print.
        env: Their environment.
    """

    def __init__(self, logs: Path, env: Mapping[str, str]) -> None:
        self._logs = logs
        self._env = env
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, *command: str | Path, unshare: Sequence[str] = ()
    ) -> int:
        """Start a daemon, and return the process id of what watches over it.

        Args:
            name: What to call it.
            command: What to run, as process 1 of its namespace.
            unshare: Options for `unshare`: what else it shall have for itself.
        """
        namespaces = (*_AS_THIS_USER, *_OWN_PROCESSES, *unshare)
        with (self._logs / f"{name}.out").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*_NO_ORPHAN, *_NO_CORE, "unshare", *namespaces, *command],
                env=self._env,
                cwd=self._logs,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which ends this.
            )
        return self._running[name].pid

    def main_process(self, name: str) -> psutil.Process:
        """Return process 1 of a daemon's namespace."""
        [process] = psutil.Process(self._running[name].pid).children()
        return process

    def kill(self, *names: str) -> None:
        """Cut the power of some; returns when nothing of them is left."""
        watchers = [self._running.pop(name) for name in names]
        all_of_them = [
            process
            for watcher in watchers
            if watcher.poll() is None
            for process in psutil.Process(watcher.pid).children(recursive=True)
        ]
        for watcher in watchers:
            watcher.kill()
        for watcher in watchers:
            watcher.wait()
        until(lambda: not any(map(_lives, all_of_them)), "killed daemons to be gone")

    def kill_all(self) -> None:
        """Cut the power of all."""
        self.kill(*self._running)

    def check(self) -> None:
        """See that all are running.

        Raises:
            RuntimeError: One is not; says what it printed last.
        """
        for name, watcher in self._running.items():
            if watcher.poll() is not None:
                output = (self._logs / f"{name}.out").read_text(errors="replace")
                raise RuntimeError(
                    f"{name} ended with status {watcher.returncode}: {output[-2000:]}"
                )


def _lives(process: psutil.Process) -> bool:
    """Tell whether it runs; whoever inherits the dead may be slow to bury them."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Cleaner:
    """Removes what a cluster leaves when it ends, and when this process is killed.

    Args:
        directory: To be removed with all that is in it.
        links: Network links are removed whose names begin with this.
    """

    # Its standard input is a pipe that nobody writes to: it ends with the last process
    # that could. What is being killed may still write for a moment.
    _SCRIPT = """
        cat
        [ -z "$2" ] || for link in /sys/class/net/"$2"*; do
            ip link delete "${link##*/}" 2>/dev/null
        done
        for attempt in 1 2 3 4 5 6 7 8 9; do
            rm -rf "$1" 2>/dev/null && exit
            sleep 0.1
        done
        exec rm -rf "$1"
    """

    def __init__(self, directory: Path, links: str = "") -> None:
        self._process = subprocess.Popen(
            ["sh", "-c", self._SCRIPT, "cleaner", directory, links],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def clean(self) -> None:
        """Remove it now."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
