from __future__ import annotations

import socket
import threading

import psutil
import pytest

from academy.socket import (
    address_by_hostname,
    address_by_interface,
    is_loopback,
    open_port,
    reachable_addresses,
    wait_connection,
)


def test_an_open_port_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", open_port())) as server:
        assert server.getsockname()[1] > 0


def test_waiting_ends_at_once_when_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        wait_connection("127.0.0.1", server.getsockname()[1], timeout=10)


@pytest.mark.parametrize("timeout", [None, 10])
def test_waiting_ends_when_something_begins_to_listen(timeout: float | None) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # refuses connections until it listens
        port = server.getsockname()[1]
        waiter = threading.Thread(
            target=wait_connection, args=("127.0.0.1", port, timeout)
        )
        waiter.start()
        server.listen()
        connection, _ = server.accept()
        connection.close()
        waiter.join()


def test_a_timeout_names_host_port_and_the_last_error() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        expected = (
            rf"127\.0\.0\.1:{port} within 0\.1 s \(last error: Connection refused"
        )
        with pytest.raises(TimeoutError, match=expected):
            wait_connection("127.0.0.1", port, timeout=0.1)


def test_a_host_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(OSError, match=r"no-such-host\.invalid"):
        wait_connection("no-such-host.invalid", 80, timeout=0.1)


def test_waiting_for_a_free_port_never_connects_to_itself() -> None:
    """A source port picked at random can be the very port that is connected to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    original = socket.create_connection

    def from_same_port(
        address: tuple[str, int], timeout: float | None
    ) -> socket.socket:
        return original(address, timeout, source_address=address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_connection", from_same_port)
        with pytest.raises(TimeoutError):
            wait_connection("127.0.0.1", port, timeout=0.1)


def test_an_interface_has_its_address() -> None:
    name, address = next(
        (name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    )
    assert address_by_interface(name) == address


def test_an_unknown_interface_is_an_error_that_lists_those_there_are() -> None:
    loopback = next(n for n in psutil.net_if_addrs() if n.startswith("lo"))
    with pytest.raises(ValueError, match=rf'"eth99".*"{loopback}" \(127\.0\.0\.1\)'):
        address_by_interface("eth99")


def test_the_address_of_the_host_name_is_an_ipv4_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert address_by_hostname() == "127.0.0.1"


def test_a_host_name_without_an_address_is_an_error_that_lists_the_interfaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.invalid")
    with pytest.raises(OSError, match=r'"node7\.invalid".*\(127\.0\.0\.1\)'):
        address_by_hostname()


# --- reachable addresses


def test_others_may_reach_the_addresses_of_interfaces_that_are_up() -> None:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    expected = {
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and name in up
    }
    found = reachable_addresses()
    assert set(found) == {at for at in expected if not at.startswith("127.")}
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("login1", False),
    ],
)
def test_a_loopback_address_is_known_as_one(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
