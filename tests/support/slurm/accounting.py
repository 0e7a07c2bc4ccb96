"""A Slurm cluster with an accounting database, as most sites have one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.slurm.cluster import SlurmLab, unused_ports

# What `mariadb-install-db` does, for which there is no package of its own.
_TABLES = [
    Path("/usr/share/mysql", f"{name}.sql")
    for name in ("mysql_system_tables", "mysql_performance_tables")
]

_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
DebugLevel=info
LogFile={directory}/log/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={storage}
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct
"""

_HISTORY = """\
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={directory}/munge.sock
AccountingStorageEnforce=associations,limits,qos"""

_ACCOUNTS = (
    "add account physics cluster=lab",
    "add user root account=physics",
    "add qos high priority=100",
    "modify user root set qos=normal,high defaultqos=normal",
)


class AccountingLab(SlurmLab):
    """A Slurm with slurmdbd and a MariaDB, where `sacct` knows what became of jobs.

    Its one account is "physics", and its qualities of service are "normal" and "high".
    It is up within five seconds, and needs root.
    """

    needs: Sequence[str] = (
        *SlurmLab.needs,
        "slurmdbd",
        "sacctmgr",
        "sacct",
        "mariadbd",
    )

    @classmethod
    def missing(cls) -> str | None:
        if os.geteuid() != 0:
            return "only root may start a slurmdbd here"
        return super().missing()

    def _history(self) -> str:
        self._storage = unused_ports(2)
        return _HISTORY.format(directory=self.directory, port=self._storage + 1)

    def _start_database(self) -> None:
        directory, storage = self.directory, self._storage
        data = directory / "database"
        data.mkdir()
        server = ("mariadbd", "--no-defaults", f"--datadir={data}", "--user=root")
        small = ("--innodb-log-file-size=8M", "--skip-log-bin")
        tables = "".join(path.read_text() for path in _TABLES)
        subprocess.run(
            [*server, *small, "--bootstrap"],
            env=self.env,
            input=f"create database mysql;\nuse mysql;\n{tables}",
            text=True,
            capture_output=True,
            check=True,
        )
        self.daemons.start(
            "mariadbd",
            *(*server, *small, "--skip-grant-tables", "--bind-address=127.0.0.1"),
            *(f"--port={storage}", f"--socket={directory}/database.sock"),
            *(f"--pid-file={directory}/mariadbd.pid", "--innodb-buffer-pool-size=64M"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"),
        )
        self._until(lambda: self._answers(storage), "mariadbd")
        configuration = directory / "slurmdbd.conf"
        configuration.touch(0o600)
        configuration.write_text(
            _SLURMDBD.format(directory=directory, port=storage + 1, storage=storage)
        )
        self.daemons.start("slurmdbd", "slurmdbd", "-D")
        self._until(lambda: self._answers(storage + 1), "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "lab")
        for words in _ACCOUNTS:
            self.run("sacctmgr", "-i", *words.split())
