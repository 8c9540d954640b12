"""HOST:PORT as commands take it."""

from __future__ import annotations

import socket

import pytest

from casam_core.errors import DeploymentError
from scenarios.deploy.addresses import address_of, host_and_port
from scenarios.deploy.monitoring.status import status_server


def test_an_address_is_a_port_of_this_machine_unless_a_host_is_named() -> None:
    assert address_of("9095", "--metrics") == ("127.0.0.1", 9095)
    assert address_of("0.0.0.0:9095", "--metrics") == ("0.0.0.0", 9095)
    for wrong in ("", "here", ":9095", "1:2:x", "70000", "0", "1:70000"):
        with pytest.raises(DeploymentError, match=r"--metrics: expected PORT or HOST:PORT, found"):
            address_of(wrong, "--metrics")


def test_an_address_of_version_6_stands_in_brackets() -> None:
    assert host_and_port("[2001:db8::1]:9092", "--listen") == ("2001:db8::1", 9092)
    for wrong in ("2001:db8::1:9092", "[::1]", "https://fl:9092", "fl:0", "fl:99999", "9092"):
        with pytest.raises(DeploymentError, match=r"--listen: expected HOST:PORT, found"):
            host_and_port(wrong, "--listen")


def test_metrics_answer_at_an_address_of_version_6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no address of version 6")
    with status_server("::1", 0, {}) as server:
        assert server.server_address[0] == "::1"
