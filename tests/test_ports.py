"""Free ports: really free, in a row, and none that an outgoing connection may take meanwhile."""

import socket
from pathlib import Path

import pytest

from rig.links.ports import FIRST, LAST, free_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_can_be_listened_on_and_lie_below_those_of_outgoing_connections() -> None:
    lowest = int(RANGE.read_text().split()[0]) if RANGE.exists() else LAST
    for _ in range(20):
        first = free_port(3)
        assert FIRST <= first <= LAST - 3
        if lowest >= LAST:  # as systems are shipped
            assert first + 2 < lowest
        servers = [socket.create_server(("127.0.0.1", first + k)) for k in range(3)]
        for server in servers:
            server.close()


def test_two_that_ask_before_either_listens_get_different_ones() -> None:
    assert len({free_port() for _ in range(50)}) > 45


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port(2)
    drawn = iter([taken - FIRST, taken - 1 - FIRST, taken - FIRST, 0])
    monkeypatch.setattr("rig.links.ports.secrets.randbelow", lambda n: next(drawn))
    with socket.create_server(("127.0.0.1", taken + 1)):
        monkeypatch.setattr("rig.links.ports.TRIES", 1)
        with pytest.raises(OSError, match="no 2 ports in a row are free"):
            free_port(2)  # its second one is taken
        assert free_port(1) == taken - 1
