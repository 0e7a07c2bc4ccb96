"""Addresses and ports of this machine."""

from __future__ import annotations

import ipaddress
import socket
import time

_POLL_INTERVAL = 0.02
# Interfaces of bridges and of their ends, by the beginnings of their names: Docker,
# Podman, LXC, libvirt, Kubernetes.
_VIRTUAL = ("docker", "br-", "veth", "virbr", "podman", "cni", "lxc", "flannel", "cali")


def open_port() -> int:
    """Return a TCP port that nobody listens on at the moment.

    Another program may take it before you do. Where you can, bind port 0 instead and
    read the port from the socket.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_connection(host: str, port: int, timeout: float | None = None) -> None:
    """Wait until something accepts TCP connections at an address.

    Blocks the calling thread; in a coroutine use `asyncio.to_thread`.

    Args:
        host: Name or address to connect to.
        port: Port to connect to.
        timeout: Seconds to wait; None waits for as long as it takes.

    Raises:
        TimeoutError: Nothing answered in time; names host, port and the last error.
        socket.gaierror: There is no such host.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.001)
        try:
            if _connects(host, port, left):
                return
            reason = "connection refused"
        except socket.gaierror as exc:
            if exc.errno != socket.EAI_AGAIN:
                raise socket.gaierror(
                    exc.errno, f'Unknown host "{host}": {exc.strerror}'
                ) from exc
            reason = str(exc.strerror)
        except OSError as exc:
            reason = exc.strerror or str(exc)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"Nothing accepted a connection at {host}:{port} within {timeout:g} s "
                f"(last error: {reason})."
            )
        time.sleep(_POLL_INTERVAL)


def _connects(host: str, port: int, timeout: float | None) -> bool:
    with socket.create_connection((host, port), timeout) as sock:
        # Connecting to a free local port can pick that very port as the source, and
        # then TCP connects the socket to itself.
        return bool(sock.getsockname() != sock.getpeername())


def address_by_hostname() -> str:
    """Return the IPv4 address that this machine's host name stands for.

    On many laptops this is a loopback address, which other machines cannot reach.

    Raises:
        OSError: The host name has no address; lists the interfaces there are.
    """
    hostname = socket.gethostname()
    try:
        return socket.gethostbyname(hostname)
    except OSError as exc:
        raise OSError(
            f'The host name "{hostname}" of this machine has no address '
            f"({exc.strerror}). Use address_by_interface(name) with one of "
            f"{_listing(_interfaces())}."
        ) from exc


def address_by_interface(name: str) -> str:
    """Return the IPv4 address of a network interface, such as `eth0` or `hsn0`.

    Raises:
        ValueError: There is no such interface, or it has no IPv4 address; lists those
            there are.
    """
    interfaces = _interfaces()
    if name in interfaces:
        return interfaces[name]
    raise ValueError(
        f'No network interface "{name}" with an IPv4 address. '
        f"This machine has {_listing(interfaces)}."
    )


def reachable_addresses() -> list[str]:
    """Return the IPv4 addresses at which other machines may reach this one.

    Those of the interfaces that are up, as they come, except that those of virtual
    networks within this machine (of containers, of virtual machines) are last. Nobody
    is asked; which of them another machine reaches is for that machine to find out.

    Returns:
        Without loopback addresses, so nothing on a machine without a network.
    """
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        (name.startswith(_VIRTUAL), address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET and name in up
    ]
    found.sort(key=lambda entry: entry[0])  # stable: the order is kept otherwise
    return [address for _, address in found if not is_loopback(address)]


def is_loopback(host: str) -> bool:
    """Tell whether a name or address stands for this machine wherever it is used."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _interfaces() -> dict[str, str]:
    import psutil

    return {
        name: address.address
        for name, addresses in psutil.net_if_addrs().items()
        for address in reversed(addresses)  # so that the first one wins
        if address.family == socket.AF_INET
    }


def _listing(interfaces: dict[str, str]) -> str:
    return ", ".join(f'"{name}" ({at})' for name, at in interfaces.items()) or "none"
