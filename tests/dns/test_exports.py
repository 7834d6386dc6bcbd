"""Configuration files, from values to text: goldens that people can read, and the servers' own checkers where there are any."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.peers import peer
from undercroft.dns.exports import hosts
from undercroft.dns.exports.formats import FORMATS, SEVERAL_FILES, check, render
from undercroft.dns.exports.plan import Mode, Plan, stamp_in
from undercroft.dns.requirements import AZURE_DNS, Requirements, Source, forwarder_addresses
from undercroft.errors import Conflict, InvalidParameter

GOLDENS = Path(__file__).parent / "goldens"
"""Each is what a person would install. Sources of the forms: BIND 9.18 ARM, unbound.conf(5), dnsmasq(8), CoreDNS's forward and hosts
plugins, Microsoft's DnsServer module. Rewritten with UNDERCROFT_WRITE_GOLDENS=1, then read before they are committed."""

VAULT = "8726350008099341699-ab-pod01"
ZONE = "privatelink.we.backup.windowsazure.com"
ZONES = (
    ZONE,
    "privatelink.queue.core.windows.net",
    "privatelink.blob.core.windows.net",
    "privatelink.blob.storage.azure.net",
)
CONFIGS = {
    f"{VAULT}-id1.{ZONE}": ("10.20.1.4",),
    f"{VAULT}-rec2.{ZONE}": ("10.20.1.5",),
    "0a1b2c3decs01.blob.core.windows.net": ("10.20.1.6",),
    "0a1b2c3decs01.queue.core.windows.net": ("10.20.1.7",),
}
MODES: tuple[Mode, ...] = ("forward", "records")
KINDS = [(format, mode) for format in FORMATS for mode in MODES if mode == "records" or format not in ("hosts", "json")]


def source(
    configs: Mapping[str, tuple[str, ...]] = CONFIGS, name: str = "door", network: str = "/networks/spoke"
) -> Source:
    return Source(name, "rg", network, configs)


def required(*sources: Source, zones: tuple[str, ...] = ZONES) -> Requirements:
    return Requirements.of(
        sources or (source(),), zones, backup_suffix="backup.windowsazure.com", deployment="undercroft.internal"
    )


def plan(mode: Mode = "records", needs: Requirements | None = None, folder: str = "/etc/bind/undercroft") -> Plan:
    return Plan(needs or required(), mode, (AZURE_DNS,), datetime(2026, 11, 27, 3, tzinfo=UTC), 10, folder)


@pytest.mark.parametrize(("format", "mode"), KINDS)
def test_the_files_are_these(format: str, mode: Mode) -> None:
    folder = GOLDENS / f"{format}-{mode}"
    files = render(format, plan(mode))
    if os.environ.get("UNDERCROFT_WRITE_GOLDENS"):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file.name).write_text(file.text, "utf-8")
    assert {file.name for file in files} == {path.name for path in folder.iterdir()}
    for file in files:
        assert file.text == (folder / file.name).read_text("utf-8")
    assert len(files) == 1 or format in SEVERAL_FILES


@pytest.mark.parametrize("mode", MODES)
def test_named_accepts_them(mode: Mode, tmp_path: Path) -> None:
    for file in render("bind", plan(mode, folder=str(tmp_path))):
        (tmp_path / file.name).write_text(file.text, "utf-8")
    main = tmp_path / "named.conf"
    main.write_text(
        f'options {{ directory "{tmp_path}"; include "{tmp_path}/undercroft.options"; }};\n'
        f'include "{tmp_path}/undercroft.conf";\n',
        "utf-8",
    )
    run(peer("named-checkconf"), "-z", main)


@pytest.mark.parametrize("mode", MODES)
def test_unbound_accepts_them(mode: Mode, tmp_path: Path) -> None:
    (tmp_path / "undercroft.conf").write_text(render("unbound", plan(mode))[0].text, "utf-8")
    main = tmp_path / "unbound.conf"
    main.write_text(
        f'server:\n    directory: "{tmp_path}"\n    chroot: ""\n    username: ""\ninclude: "{tmp_path}/undercroft.conf"\n',
        "utf-8",
    )
    run(peer("unbound-checkconf"), main)


@pytest.mark.parametrize("mode", MODES)
def test_dnsmasq_accepts_them(mode: Mode, tmp_path: Path) -> None:
    path = tmp_path / "undercroft.conf"
    path.write_text(render("dnsmasq", plan(mode))[0].text, "utf-8")
    run(peer("dnsmasq"), "--test", f"--conf-file={path}")


@pytest.mark.parametrize("mode", MODES)
def test_a_corefile_is_blocks_of_known_plugins(mode: Mode) -> None:
    """There is no CoreDNS in Debian 12; this is its grammar: zones, a block, one plugin a line, itself with a block or not."""
    text = "\n".join(line for line in render("coredns", plan(mode))[0].text.splitlines() if not line.startswith("#"))
    zone = r"[a-z0-9.-]+"
    entry = r"        (?:\d+\.\d+\.\d+\.\d+ [a-z0-9.-]+|ttl \d+|no_reverse)\n"
    plugin = rf"    (?:errors|cache \d+|forward \.(?: \d+\.\d+\.\d+\.\d+)+|hosts \{{\n(?:{entry})+    \}})\n"
    assert re.fullmatch(rf"(?:\n*{zone}(?:,\n{zone})* \{{\n(?:{plugin})+\}}\n?)+", text), text
    zones = re.findall(rf"^({zone})(?:,| \{{)$", text, re.MULTILINE)
    assert len(zones) == len(set(zones)), "CoreDNS refuses a zone that two blocks serve"


def test_no_server_takes_over_everybody_elses_accounts() -> None:
    assert set(required().owned()) == {
        ZONE,
        "0a1b2c3decs01.blob.core.windows.net",
        "0a1b2c3decs01.queue.core.windows.net",
    }


def test_forwarding_takes_the_public_domains_too() -> None:
    """Reference, pains B6: a server with a general forwarder never sees the CNAME into privatelink. Backup names have none (B5)."""
    assert required().forwarded() == (
        ZONE,
        "privatelink.queue.core.windows.net",
        "queue.core.windows.net",
        "privatelink.blob.core.windows.net",
        "blob.core.windows.net",
        "privatelink.blob.storage.azure.net",
        "blob.storage.azure.net",
        "undercroft.internal",
    )


def test_a_name_outside_of_the_listed_zones_is_taken_as_it_is() -> None:
    """Reference, pains B9: partitioned storage names surprised everybody; nothing is derived from a pattern."""
    odd = required(source({"0a1b2c3dprot01.z12.file.storage.azure.net": ("10.20.1.9",)}))
    assert "0a1b2c3dprot01.z12.file.storage.azure.net" in odd.owned()
    assert "0a1b2c3dprot01.z12.file.storage.azure.net" in odd.forwarded()


def test_partitioned_storage_names_belong_to_the_zone_that_the_vault_lists() -> None:
    name = "0a1b2c3dprot02.z12.blob.storage.azure.net"
    grown = required(source({**CONFIGS, name: ("10.20.1.9",)}))
    assert grown.owned()[name][0].addresses == (IPv4Address("10.20.1.9"),)
    assert name not in grown.forwarded(), "its domain is forwarded already"


def test_endpoints_of_one_network_are_merged_and_of_two_refused() -> None:
    name = f"{VAULT}-id1.{ZONE}"
    both = required(source({name: ("10.20.1.9",)}, "a"), source({name: ("10.20.1.4",)}, "b", "/NETWORKS/spoke"))
    assert both.names[0].addresses == (IPv4Address("10.20.1.4"), IPv4Address("10.20.1.9"))
    with pytest.raises(Conflict, match="--vnet-name") as caught:
        required(source({name: ("10.20.1.9",)}, "a"), source({name: ("10.30.1.4",)}, "b", "/networks/other"))
    assert "'a'" in caught.value.message
    assert "'b'" in caught.value.message


@pytest.mark.parametrize("text", ["169.63.129.16", "168.63.129.61", "168.36.129.16", "168.63.129.1"])
def test_misprints_of_azure_dns_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"168\.63\.129\.16"):
        forwarder_addresses([text])


@pytest.mark.parametrize("text", ["", "10.0.0", "dns.example", "10.0.0.4:53", "::1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="not an IPv4 address"):
        forwarder_addresses([text])


def test_other_resolvers_are_taken_once_and_in_order() -> None:
    assert forwarder_addresses([" 10.0.0.5", "168.63.129.16", "10.0.0.5"]) == (IPv4Address("10.0.0.5"), AZURE_DNS)


@pytest.mark.parametrize("text", ['x"; };', "a\nb.example", "a b.example", "*.example", "-a.example", "single", ""])
def test_nothing_but_host_names_gets_into_a_file(text: str) -> None:
    with pytest.raises(InvalidParameter, match="not a host name"):
        required(source({text: ("10.20.1.4",)}))


def test_formats_and_modes_are_checked_by_name() -> None:
    with pytest.raises(InvalidParameter, match="bind, unbound, dnsmasq"):
        check("djbdns", "records")
    with pytest.raises(InvalidParameter, match="cannot forward"):
        check("hosts", "forward")


@pytest.mark.parametrize(("format", "mode"), KINDS)
def test_a_file_says_when_it_was_written_and_nothing_else_depends_on_that(format: str, mode: Mode) -> None:
    first = plan(mode)
    later = render(format, first.at(first.written + timedelta(days=1)))
    assert later != render(format, first)
    written = stamp_in(render(format, first)[0].text)
    assert written == first.written
    assert render(format, replace(first.at(first.written + timedelta(days=1))).at(written)) == render(format, first)


def test_a_hosts_block_is_replaced_and_the_rest_stays() -> None:
    block = render("hosts", plan())[0].text
    first = hosts.merged(plan(), "127.0.0.1 localhost", block)
    assert first == "127.0.0.1 localhost\n" + block
    grown = required(source({**CONFIGS, "0a1b2c3dprot01.blob.core.windows.net": ("10.20.1.8",)}))
    more = plan(needs=grown)
    second = hosts.merged(more, first + "10.0.0.9 mine\n", render("hosts", more)[0].text)
    assert second.startswith("127.0.0.1 localhost\n# BEGIN undercroft door (rg)\n")
    assert second.endswith("# END undercroft door (rg)\n10.0.0.9 mine\n")
    assert second.count("0a1b2c3decs01.blob.core.windows.net") == 1
    assert "10.20.1.8 0a1b2c3dprot01.blob.core.windows.net\n" in second


def test_a_hosts_file_with_one_mark_is_not_touched() -> None:
    with pytest.raises(Conflict, match="BEGIN undercroft"):
        hosts.merged(plan(), "# BEGIN undercroft door (rg)\n10.0.0.9 mine\n", "")


def run(*words: str | Path) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
