"""What ``dns diff`` concludes from answers, and real answers from a real server on a real socket."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.dns.loopback import BLOB, Serve, zone
from undercroft.cli.comparisons import summary
from undercroft.cli.names import dns_lookup
from undercroft.dns import observations
from undercroft.dns.comparison import Comparison, State, Verdict, advice, compare
from undercroft.dns.observations import (
    HOSTS_FILE,
    OWN_NAMES,
    Observation,
    ResolverAddress,
    ask,
    hosts_file,
    observe,
    own_resolvers,
)
from undercroft.dns.requirements import Requirements, Source
from undercroft.errors import InvalidParameter

NAME = "0a1b2c3decs01.blob.core.windows.net"
REQUIRED = Requirements.of(
    [Source("door", "rg", "/networks/spoke", {NAME: ("10.20.1.6",)})],
    [BLOB],
    backup_suffix="backup.windowsazure.com",
    deployment="undercroft.internal",
)
PUBLIC = IPv4Network("203.0.113.0/24")
OTHERS = {IPv4Address("10.20.1.99"): "guest"}


def verdict(*said: Observation) -> tuple[Verdict, str]:
    """The verdict on the one name, and the advice as one text."""
    comparison = compare(REQUIRED.names, said, PUBLIC, OTHERS)[0]
    return comparison.verdicts[0], "\n".join(advice(REQUIRED, comparison))


def answered(*addresses: str, asked: str = "10.20.1.4", reason: str = "") -> Observation:
    return Observation(NAME, asked, "answered", addresses, reason=reason)


def test_the_right_address_twice_is_ok_and_needs_no_advice() -> None:
    found, said = verdict(answered("10.20.1.6"), answered("10.20.1.6"))
    assert (found.state, said) == ("ok", "")


@pytest.mark.parametrize(
    ("address", "words"),
    [("203.0.113.11", "public side"), ("10.20.1.99", "private endpoint 'guest'"), ("10.9.9.9", "10.9.9.9")],
)
def test_a_wrong_address_is_named_for_what_it_is(address: str, words: str) -> None:
    found, said = verdict(answered(address))
    assert found.state == "wrong"
    assert words in found.said
    assert f"10.20.1.6 {NAME}" in said


def test_a_missing_name_says_who_said_so_and_how_to_add_it() -> None:
    found, said = verdict(Observation(NAME, "168.63.129.16", "nxdomain", reason=f"zone {BLOB} has no such name"))
    assert found.state == "missing"
    assert f"zone {BLOB} has no such name" in found.said
    assert f"undercroft dns link-create {BLOB} -g rg --vnet-name spoke" in said
    found, said = verdict(Observation(NAME, "10.20.1.4", "nxdomain"))
    assert f"10.20.1.6 {NAME}" in said
    assert "undercroft dns export --endpoint door -g rg" in said


def test_of_several_endpoints_in_one_network_either_address_will_do() -> None:
    """A private zone has one record for both: the last one written (reference, pains B13)."""
    both = Requirements.of(
        [
            Source(name, "rg", "/networks/spoke", {NAME: (address,)})
            for name, address in (("a", "10.20.1.6"), ("b", "10.20.1.7"))
        ],
        [BLOB],
        backup_suffix="backup.windowsazure.com",
        deployment="undercroft.internal",
    )
    for addresses, state in (
        (("10.20.1.7",), "ok"),
        (("10.20.1.6", "10.20.1.7"), "ok"),
        (("10.20.1.7", "10.20.1.8"), "wrong"),
    ):
        comparison = compare(both.names, [answered(*addresses)], PUBLIC, {})[0]
        assert comparison.verdicts[0].state == state


def test_answers_that_change_are_intermittent() -> None:
    """Reference, pains B6: first private, then public."""
    found, said = verdict(answered("10.20.1.6"), answered("203.0.113.11"))
    assert found.state == "intermittent"
    assert "10.20.1.6 then 203.0.113.11, the public side" in found.said
    assert "Forward the public domain" in said


def test_validation_and_rebind_protection_are_recognized() -> None:
    found, said = verdict(Observation(NAME, "10.20.1.4", "failed", reason="SERVFAIL", unvalidated=True))
    assert found.state == "failed"
    assert "validate-except" in said
    found, said = verdict(Observation(NAME, "10.20.1.4", "nodata"))
    assert found.state == "missing"
    assert "private-domain" in said


def test_silence_is_unreachable_and_not_a_difference() -> None:
    comparison = compare(REQUIRED.names, [Observation(NAME, "10.20.1.4", "silent")], PUBLIC, {})[0]
    assert comparison.different == ()
    assert len(comparison.unreachable) == 1
    assert "10.20.1.4" in advice(REQUIRED, comparison)[0]


def test_a_stale_hosts_file_is_blamed() -> None:
    found, said = verdict(answered("10.9.9.9", asked=OWN_NAMES, reason=HOSTS_FILE))
    assert "from the hosts file" in found.said
    assert "wins over every DNS server" in said


def test_the_login_endpoint_must_have_some_address() -> None:
    names = (*REQUIRED.names, REQUIRED.login)
    missing = [Observation("login.undercroft.internal", "10.20.1.4", "nxdomain")]
    comparison = compare(names, missing, PUBLIC, {})[0]
    assert [one.state for one in comparison.verdicts] == ["missing"]
    assert "forward undercroft.internal" in advice(REQUIRED, comparison)[0]
    there = [Observation("login.undercroft.internal", "10.20.1.4", "answered", ("203.0.113.20",))]
    assert compare(names, there, PUBLIC, {})[0].verdicts[0].state == "ok"


async def test_a_real_server_is_asked_with_chain_and_reason(serve: Serve) -> None:
    served = await serve(zone(BLOB, {("0a1b2c3decs01", "A"): ("10.20.1.6",)}))
    resolver = ResolverAddress("127.0.0.1", served.port)
    found = await asyncio.to_thread(ask, resolver, f"0a1b2c3decs01.{BLOB}")
    assert (found.outcome, found.addresses) == ("answered", ("10.20.1.6",))
    found = await asyncio.to_thread(ask, resolver, NAME)
    assert found.chain == (f"0a1b2c3decs01.{BLOB}",)
    found = await asyncio.to_thread(ask, resolver, f"none.{BLOB}")
    assert found.outcome == "nxdomain"
    assert "no such name" in found.reason
    assert found.asked == f"127.0.0.1:{served.port}"


def test_nobody_there_is_found_out_once_for_all_names() -> None:
    """A port that is not bound: refused at once, or silent; either way the second name costs nothing."""
    said = observe((NAME, "b.example"), ResolverAddress("127.0.0.1", 1), 2)
    assert [one.outcome for one in said] == ["silent"] * 4
    assert [one.name for one in said] == [NAME, NAME, "b.example", "b.example"]


def test_a_resolver_that_waits_for_others_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As BIND does in a network without internet about a domain that it should forward and does not."""
    monkeypatch.setattr(observations, "_SECONDS", 0.2)
    monkeypatch.setattr(observations, "_PATIENCE", 0.1)
    asked: list[str] = []
    told: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while wire := server.recv(4096, socket.MSG_PEEK):
                wire, client = server.recvfrom(4096)
                query = dns.message.from_wire(wire)
                name = query.question[0].name.to_text(omit_final_dot=True)
                reply = dns.message.make_response(query)
                if name == NAME:
                    reply.answer.append(dns.rrset.from_text(f"{name}.", 10, "IN", "A", "10.20.1.6"))
                elif query.flags & dns.flags.RD:
                    asked.append(name)
                    continue
                else:
                    reply.set_rcode(dns.rcode.REFUSED)
                server.sendto(reply.to_wire(), client)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        try:
            names = ("login.undercroft.internal", "b.undercroft.internal", NAME)
            said = observe(names, ResolverAddress("127.0.0.1", port), 2, told.append)
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.1", port))
            thread.join()
    assert [one.outcome for one in said] == ["failed"] * 4 + ["answered"] * 2
    assert "although it answers other questions" in said[0].reason
    assert told[0] == f"waiting for what 127.0.0.1:{port} says of login.undercroft.internal", "while it waits"
    assert set(asked) == {"login.undercroft.internal"}, "one name of a domain is enough to wait for"
    comparison = compare((REQUIRED.login, *REQUIRED.names), said, PUBLIC, {})[0]
    words = "\n".join(advice(REQUIRED, comparison))
    assert "does it forward these domains" in words and "forward undercroft.internal to 168.63.129.16" in words
    assert "Nothing answers DNS" not in words


def test_name_files_of_a_host_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert hosts_file(path) == frozenset()
    assert own_resolvers(path) == []
    path.write_text("10.0.0.4 A.example b # c.example\n# 10.0.0.5 d\n\n", "utf-8")
    assert hosts_file(path) == {"a.example", "b"}
    path.write_text("search x\nnameserver 10.0.0.4\nnameserver\nnameserver fe80::1\n", "utf-8")
    assert own_resolvers(path) == [ResolverAddress("10.0.0.4")]


@pytest.mark.parametrize("text", ["", "x", "10.0.0.4:", "10.0.0.4:0", "10.0.0.4:70000", "10.0.0.4:x"])
def test_what_is_no_resolver_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="ADDRESS"):
        ResolverAddress.parse(text)


def test_a_resolvers_trouble_is_said_once_however_often_it_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{silent.getsockname()[1]}"
        assert dns_lookup("a.example", server=server) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"** can't find a.example: {server}: The DNS operation timed out."


@pytest.mark.parametrize(
    ("names", "wrong", "words"),
    [
        (1, 0, "the one name is as it should be"),
        (2, 0, "all 2 names are as they should be"),
        (1, 1, "1 of 1 names is not as needed"),
        (2, 2, "2 of 2 names are not as needed"),
    ],
)
def test_one_name_is_one_name(names: int, wrong: int, words: str) -> None:
    ok: State = "ok"
    bad: State = "wrong"
    verdicts = tuple(Verdict(REQUIRED.names[0], bad if number < wrong else ok, "") for number in range(names))
    assert summary(Comparison("10.20.1.4", verdicts)) == words
