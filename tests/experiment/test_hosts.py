"""Which host this is, and connections over which nobody answers."""

from __future__ import annotations

import socket
import time

import pytest

from coterie.core import ConfigError
from coterie.experiment.hosts import interface_of, is_here, limit_silence, own_address
from faults import run_child


@pytest.mark.parametrize(("host", "here"), [("", True), ("127.0.0.1", True), ("localhost", True), ("192.0.2.1", False)])
def test_whether_a_host_is_this_one(host: str, here: bool) -> None:
    assert is_here(host) == here


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(ConfigError, match=r"names 'nobody.invalid', which is not known here"):
        is_here("nobody.invalid")


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_the_address_on_the_way_to_oneself(host: str) -> None:
    assert own_address(host, 29500) == "127.0.0.1"


def test_interfaces_by_their_address() -> None:
    assert interface_of("127.0.0.1") in dict(socket.if_nameindex()).values()
    assert interface_of("192.0.2.1") == ""


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such limit")
def test_connections_get_a_limit() -> None:
    def limited() -> list[int]:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            with socket.create_connection(server.getsockname()) as client:
                limit_silence(7)
                time.sleep(0.5)
                return [client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)]

    assert run_child(limited).value == [7000]
