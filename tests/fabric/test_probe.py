"""The probe tries, and names what stands in the way. Limits are set in nested user namespaces, never on the machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT
from tests.fabric.machine import PATHS, PYTHON, drivers, network
from undercroft.errors import CapabilityMissing, InvalidInput, InvalidParameter, LocalProblem
from undercroft.fabric import nftables
from undercroft.fabric.capabilities import ABILITIES, DRIVERS, capabilities_of, differences
from undercroft.fabric.driver import NamespaceDriver
from undercroft.fabric.interface import InterfaceOptions
from undercroft.fabric.probe import choose_driver, describe, survey, try_driver
from undercroft.fabric.specification import PacketFilter

pytestmark = pytest.mark.rootless

NESTED = """
import json, os, sys
from pathlib import Path
from undercroft.errors import UndercroftError
from undercroft.fabric.namespace import enter_user_namespace
from undercroft.fabric.probe import choose_driver, describe, try_driver

enter_user_namespace()
for limit in sys.argv[1].split():
    Path("/proc/sys/user", limit).write_text("0")
finding = try_driver("rootless")
try:
    choose_driver("rootless")
    refused = ""
except UndercroftError as error:
    refused = error.message
chosen = choose_driver()
print(json.dumps([finding.step, finding.reason, finding.advice, refused, chosen.driver, describe(chosen)]))
"""


def nested(limits: str) -> list[object]:
    done = subprocess.run(
        [PYTHON, "-c", NESTED, limits],
        env={"PYTHONPATH": PATHS, "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("driver", drivers())
def test_works_here(driver: str) -> None:
    assert try_driver(driver).works
    assert choose_driver(driver).driver == driver


def test_best_is_chosen() -> None:
    assert choose_driver().driver == ("netns" if os.geteuid() == 0 else "rootless")


@pytest.mark.parametrize(
    ("limit", "step"),
    [
        ("max_user_namespaces", "user namespace"),
        ("max_net_namespaces", "network namespace"),
    ],
)
def test_exhausted_limit_is_named(limit: str, step: str) -> None:
    found_step, reason, advice, refused, _, _ = nested(limit)
    assert (found_step, reason) == (step, "No space left on device")
    assert isinstance(advice, str) and f"user.{limit}" in advice
    assert isinstance(refused, str) and step in refused and f"user.{limit}" in refused


def test_simulation_is_the_last_resort_and_says_why() -> None:
    *_, chosen, description = nested("max_user_namespaces max_net_namespaces")
    assert chosen == "loopback"
    assert isinstance(description, dict)
    assert description["simulation"] is True and description["isolation"] is False
    assert "user.max_user_namespaces" in description["missing"]["driver rootless"]
    assert "networks" in description["missing"]


def test_description() -> None:
    for driver in drivers():
        found = describe(choose_driver(driver))
        assert found["driver"] == driver and found["simulation"] is False
        assert found["security groups"] is True, "needs libnftables1"


def test_security_groups_without_the_library_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "libnftables-is-not-here.so.1")
    nftables._library.cache_clear()
    try:
        for driver in drivers():
            found = describe(choose_driver(driver))
            assert found["security groups"] is False
            assert "apt-get install libnftables1" in found["missing"]["security groups"]
        why = nftables.why_missing(rootless=False)
    finally:
        nftables._library.cache_clear()
    driving = NamespaceDriver("netns", tmp_path, tmp_path / "record", why)
    assert not driving.capabilities.security_groups
    with pytest.raises(CapabilityMissing, match="libnftables1"):
        asyncio.run(driving.apply(replace(network("a"), filters=(PacketFilter("/nsg/a"),))))


def test_unknown_driver() -> None:
    with pytest.raises(InvalidParameter, match="auto, netns, rootless, host, loopback"):
        choose_driver("docker")


def test_the_differences_between_drivers_are_those_documented() -> None:
    """docs/drivers.md says what tests of two drivers may differ in; the code decides by the same table."""
    text = (CHECKOUT / "docs" / "drivers.md").read_text("utf-8")
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert head == ["ability", *DRIVERS]
    documented = {row[0]: dict(zip(DRIVERS, row[1:], strict=True)) for row in [_, *rows]}
    assert list(documented) == list(ABILITIES)
    for driver in DRIVERS:
        missing = dict(capabilities_of(driver).missing)
        assert {name: "no" if name in missing else "yes" for name in ABILITIES} == {
            name: row[driver] for name, row in documented.items()
        }, driver
        assert all(missing.values()), "each with its reason"
    assert differences("netns", "rootless") == {"foreign owners"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_is_said_is_what_is_there(driver: str) -> None:
    """Every field of the capabilities that is an ability agrees with the list of what is missing."""
    found = capabilities_of(driver)
    for name in ABILITIES:
        assert getattr(found, name.replace(" ", "_")) is (name not in dict(found.missing)), name


def test_every_driver_is_described() -> None:
    chosen = choose_driver()
    description = describe(chosen, survey(chosen))
    assert tuple(description["drivers"]) == DRIVERS
    assert description["drivers"][chosen.driver]["works"]
    host = description["drivers"]["host"]
    assert not host["works"] and "host.interface" in host["why"]
    assert description["missing"]["driver host"] == host["why"]


def test_an_interface_in_the_settings_means_the_host_driver() -> None:
    """And nothing that would leave it out; here it does not exist, and the others are not taken instead."""
    interface = InterfaceOptions("no-such0", IPv4Address("192.0.2.1"), 1)
    with pytest.raises(LocalProblem, match="no interface 'no-such0'"):
        choose_driver("auto", interface)
    with pytest.raises(InvalidInput, match="no-such0"):
        choose_driver("rootless", interface)
    with pytest.raises(LocalProblem, match=r"host\.interface"):
        choose_driver("host")


def test_probing_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
    for driver in drivers():
        try_driver(driver)
    assert (
        set(os.listdir("/proc/self/fd")),
        os.readlink("/proc/self/ns/net"),
        os.readlink("/proc/self/ns/mnt"),
    ) == before
