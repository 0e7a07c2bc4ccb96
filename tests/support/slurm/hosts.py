"""A Slurm cluster whose nodes are hosts of their own."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.support.slurm.cluster import SlurmLab

# Reserved for testing networks, so that nobody has it in use for anything else.
_TEST_NETWORKS = ipaddress.IPv4Network("198.18.0.0/15")
_NODE = Path(__file__).with_name("node.sh")


class NetnsLab(SlurmLab):
    """A Slurm whose nodes have their own network, host name, processes and /tmp.

    They reach the login node, which is this machine, on the address of one bridge, and
    each other. There is no route to anything else. It needs root.

    Args:
        shared: Directories under the temporary one that nodes see, for they have a
            /tmp of their own. Everything elsewhere is shared.
        options: As for `SlurmLab`.
    """

    needs: Sequence[str] = (*SlurmLab.needs, "ip", "nsenter", "mount", "hostname")

    namespaces: Sequence[str] = ("--net", "--uts", "--mount")

    @classmethod
    def missing(cls) -> str | None:
        if os.geteuid() != 0:
            return "only root can make network hosts of virtual nodes"
        return super().missing()

    def __init__(
        self, nodes: int = 2, *, shared: Iterable[Path] = (), **options: Any
    ) -> None:
        super().__init__(nodes, **options)
        temporary = Path(tempfile.gettempdir())
        visible = (path for path in shared if path.is_relative_to(temporary))
        self.shared = [self.directory, *visible]
        self.network = _unused_network()
        self.address = str(self.network[1])
        # A link's name has at most 15 characters.
        self._links = f"slm{secrets.token_hex(3)}-"

    def start(self) -> None:
        bridge = f"{self._links}br"
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address}/{self.network.prefixlen}", "dev", bridge)
        _ip("link", "set", bridge, "up")
        super().start()

    def start_node(self, node: int) -> None:
        name, link = f"n{node}", f"{self._links}{node}"
        address = f"{self.node_address(node)}/{self.network.prefixlen}"
        make_host: tuple[str | Path, ...] = (
            _NODE,
            name,
            address,
            tempfile.gettempdir(),
            *self.shared,
        )
        pid = self.daemons.start(name, "bash", *make_host, unshare=self.namespaces)
        ours = os.readlink("/proc/self/ns/net")
        theirs = f"/proc/{pid}/ns/net"
        self._until(lambda: os.readlink(theirs) != ours, f"the network of {name}")
        peer = ("peer", "name", "eth0", "netns", str(pid))
        _ip("link", "add", link, "type", "veth", *peer)
        _ip("link", "set", link, "master", f"{self._links}br", "up")

    def node_address(self, node: int) -> str:
        """Return the address of a node."""
        return str(self.network[10 + node])

    def node_exec(self, node: int, *command: str) -> str:
        """Run a command on a node and return its standard output."""
        pid = self.daemons.main_process(f"n{node}").pid
        enter = ("nsenter", "-t", str(pid), "-n", "-u", "-m", "-p")
        return self.run(*enter, *command)

    def _link_prefix(self) -> str:
        return self._links

    def _node(self, node: int) -> str:
        return (
            f"NodeName=n{node} NodeAddr={self.node_address(node)} "
            f"Port={self.port + 1} {self._hardware()}"
        )


def _ip(*arguments: str) -> str:
    done = subprocess.run(
        ["ip", *arguments], text=True, check=False, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def _unused_network() -> ipaddress.IPv4Network:
    """Choose a network that no interface and no route of this machine knows.

    At random, because somebody else may be choosing at this moment.
    """
    routes = json.loads(_ip("-4", "-json", "route", "show", "table", "all"))
    known = [
        ipaddress.IPv4Network(route["dst"])
        for route in routes
        if route["dst"] != "default"
    ]
    # A route to more than all of them gives way to ours.
    used = [network for network in known if not _TEST_NETWORKS.subnet_of(network)]
    free = [
        network
        for network in _TEST_NETWORKS.subnets(new_prefix=24)
        if not any(network.overlaps(other) for other in used)
    ]
    return random.choice(free)
