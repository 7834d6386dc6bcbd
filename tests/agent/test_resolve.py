"""The private name first; the public one only when that does not resolve or connect; every failed leg is named."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.agent.peer import PRIVATE, PUBLIC, Peer
from undercroft.agent.resolve import Dialer, LegFailed, SystemResolver, Target, looks_private, trust_only


@pytest.fixture
def target(peer: Peer) -> Target:
    private = f"{PRIVATE}:{peer.port('private')}".replace("{svc}", "id1")
    return Target(private, f"{PUBLIC}:{peer.port('public')}".replace("{svc}", "id1"))


def dialer(peer: Peer, *, public_fallback: bool = True) -> Dialer:
    context = trust_only(peer.authority.cert_pem.bytes().decode())
    return Dialer(context, peer.names, public_fallback=public_fallback, timeout=2)


def reach(peer: Peer, target: Target, *, public_fallback: bool = True) -> tuple[str, str]:
    connection, route = dialer(peer, public_fallback=public_fallback).dial(target)
    connection.close()
    return route.path, route.because


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses: bound, not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_the_private_name_is_taken_and_the_public_one_not_even_asked_for(peer: Peer, target: Target) -> None:
    assert reach(peer, target) == ("private", "")
    assert all("privatelink" in name for name in peer.names.asked)


def test_nxdomain_leads_to_the_public_name_and_is_remembered_as_the_reason(peer: Peer, target: Target) -> None:
    peer.hide_private_names()
    path, because = reach(peer, target)
    assert path == "public"
    assert "NXDOMAIN" in because and "168.63.129.16" in because and "privatelink" in because


def test_a_refused_connection_leads_to_the_public_name(peer: Peer, target: Target, dead_port: int) -> None:
    assert target.private is not None
    refused = Target(f"{target.private.split(':')[0]}:{dead_port}", target.public)
    path, because = reach(peer, refused)
    assert path == "public"
    assert f"127.0.0.1:{dead_port} refused" in because


def test_a_reset_before_tls_counts_as_no_connection(peer: Peer, target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset() -> None:
            connection, _ = server.accept()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        assert target.private is not None
        unmapped = Target(f"{target.private.split(':')[0]}:{server.getsockname()[1]}", target.public)
        path, because = reach(peer, unmapped)
        thread.join()
    assert path == "public" and "was closed by the other side" in because


def test_without_fallback_the_private_leg_is_the_error(peer: Peer, target: Target) -> None:
    peer.hide_private_names()
    with pytest.raises(LegFailed, match="publicFallback is off") as caught:
        reach(peer, target, public_fallback=False)
    assert caught.value.leg == "name" and "NXDOMAIN" in caught.value.message


def test_a_resolver_that_does_not_answer_causes_no_fallback(peer: Peer, target: Target) -> None:
    peer.names.table[PRIVATE.replace("{svc}", "id1")] = ()
    with pytest.raises(LegFailed, match="no answer to the DNS question") as caught:
        reach(peer, target)
    assert caught.value.leg == "resolver"
    assert not any(name.startswith("pod01") for name in peer.names.asked)


def test_a_certificate_of_somebody_else_causes_no_fallback(peer: Peer, target: Target) -> None:
    stranger = Dialer(trust_only(trustme.CA().cert_pem.bytes().decode()), peer.names)
    with pytest.raises(LegFailed, match="certificate is not this deployment's") as caught:
        stranger.dial(target)
    assert caught.value.leg == "tls"
    assert not any(name.startswith("pod01") for name in peer.names.asked)


def test_a_certificate_for_another_name_is_refused(peer: Peer) -> None:
    peer.names.table["other.example"] = ("127.0.0.1",)
    with pytest.raises(LegFailed, match=r"other\.example") as caught:
        dialer(peer).dial(Target(f"other.example:{peer.port('private')}", None))
    assert caught.value.leg == "tls"


def test_when_both_fail_both_are_named(peer: Peer, target: Target) -> None:
    peer.names.table.clear()
    with pytest.raises(LegFailed) as caught:
        reach(peer, target)
    assert "by the private name" in caught.value.message and "by the public name" in caught.value.message


def test_the_next_address_is_tried(peer: Peer, target: Target) -> None:
    peer.names.table[PRIVATE.replace("{svc}", "id1")] = ("127.9.9.9", "127.0.0.1")
    assert reach(peer, target)[0] == "private"


def test_only_modern_tls_and_checked_names(peer: Peer) -> None:
    context = trust_only(peer.authority.cert_pem.bytes().decode())
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1


def test_the_system_resolver_names_the_resolver(tmp_path: Path) -> None:
    configuration = tmp_path / "resolv.conf"
    configuration.write_text("search x\nnameserver 168.63.129.16\n# nameserver 1.1.1.1\nnameserver 10.0.0.4\n")
    assert SystemResolver(configuration).servers() == "resolver 168.63.129.16, 10.0.0.4"
    assert "names no resolver" in SystemResolver(tmp_path / "absent").servers()
    assert SystemResolver().addresses("localhost")
    with pytest.raises(LegFailed):
        SystemResolver(configuration).addresses("a" * 70 + ".example")


@pytest.mark.parametrize(
    ("address", "private"),
    [("10.1.0.4", True), ("172.31.0.1", True), ("203.0.113.11", False), ("20.60.1.4", False), ("fd00::1", True)],
)
def test_which_addresses_look_private(address: str, private: bool) -> None:
    assert looks_private(address) is private
