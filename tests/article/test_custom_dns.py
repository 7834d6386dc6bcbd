"""The article's *When using custom DNS server or host files*, with the servers that people run: BIND, unbound, dnsmasq, hosts files.

One deployment per driver. The network's DNS server is ``dns01``, in which the tests start one server after the other; ``web01`` is the
protected host, ``root01`` serves a signed root of the internet's names when validation is tested. Tests run in order: the vault grows.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT
from tests.deployment import GROUP, REGION, Answer, Deployment, NearDeployment, drivers
from tests.nameservers import KINDS, NameServer, SignedRoot
from tests.peers import peer

pytestmark = [pytest.mark.rootless, pytest.mark.slow, pytest.mark.xdist_group("custom-dns")]

DNS, WEB, ROOT = "10.20.1.4", "10.20.1.5", "10.20.1.6"
ZONES = (
    "privatelink.we.backup.windowsazure.com",
    "privatelink.blob.core.windows.net",
    "privatelink.queue.core.windows.net",
)
ELSEWHERE = {
    "bind": "forwarders { 168.63.129.16; }; forward only; dnssec-validation no;",
    "unbound": '  module-config: "iterator"\n  local-zone: "core.windows.net." static\n  local-zone: "windowsazure.com." static\n',
    "dnsmasq": "local=/core.windows.net/\nlocal=/windowsazure.com/",
}
"""What each server does with names that it was told nothing about. BIND asks a general forwarder, which knows the public side; the
others play a closed network, where such names do not exist."""


@dataclass
class Site:
    deployment: Deployment
    files: dict[tuple[str, str], tuple[Path, ...]] = field(default_factory=dict)
    """What was exported, by moment and kind of server."""

    def export(self, moment: str, kind: str, mode: str) -> tuple[Path, ...]:
        folder = self.deployment.home.parent / f"{moment}-{kind}"
        folder.mkdir(exist_ok=True)
        self.deployment.run("dns", "export", "--endpoint", "door", "-g", GROUP, "--format", kind, "--mode", mode,
                            "--out", folder)  # fmt: skip
        found = tuple(sorted(path for path in folder.iterdir() if path.name.startswith("undercroft")))
        self.files[moment, kind] = found
        return found

    def server(self, kind: str, files: tuple[Path, ...], options: str | None = None, extra: str = "") -> NameServer:
        return NameServer(self.deployment, "dns01", kind, ELSEWHERE[kind] if options is None else options, files, extra)

    def diff(self, *more: str, expect: int = 0) -> str:
        return self.deployment.run("dns", "diff", "--endpoint", "door", "-g", GROUP, "--from", "web01", *more,
                                   expect=expect).out  # fmt: skip

    def names(self, endpoint: str = "door") -> dict[str, str]:
        shown = self.deployment.run("endpoint", "show", endpoint, "-g", GROUP, "--json").json
        return {entry["fqdn"]: entry["ipAddresses"][0] for entry in shown["properties"]["customDnsConfigs"]}

    @cached_property
    def first_backup_account(self) -> str:
        """The blob name that the first backup brought."""
        return next(name for name in self.names() if "prot01.blob." in name)

    def nslookup(self, name: str) -> str:
        return self.deployment.inside("web01", peer("nslookup"), name).out

    def register(self, vault: str = "safe", vm: str = "web01", expect: int = 0) -> Answer:
        return self.deployment.inside(
            vm, "agent", "register", "--credentials", self.deployment.credentials(vault), expect=expect
        )

    def backup(self, vm: str = "web01", expect: int | tuple[int, ...] = 0) -> Answer:
        return self.deployment.inside(vm, "agent", "backup", self.deployment.home.parent / "files", "--passphrase-file",
                                      self.deployment.passphrase, expect=expect)  # fmt: skip


@pytest.fixture(scope="module", params=drivers())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("custom-dns")
    deployment = NearDeployment(folder / "home", request.param)
    try:
        deployment.start()
        deployment.run("group", "create", GROUP, "-l", REGION)
        deployment.run("vnet", "create", "hub", "-g", GROUP, "--address-prefixes", "10.20.0.0/16", "--subnet-name",
                       "work", "--subnet-prefix", "10.20.1.0/24", "--dns-servers", DNS)  # fmt: skip
        for vm in ("dns01", "web01", "root01"):
            deployment.run("vm", "create", vm, "-g", GROUP, "--vnet-name", "hub", "--subnet", "work")
        deployment.vault("safe")
        deployment.endpoint("door", "safe", "hub")
        deployment.passphrase.write_text("correct horse battery staple\n", "ascii")
        (folder / "files").mkdir()
        (folder / "files" / "one").write_bytes(os.urandom(100_000))
        yield Site(deployment)
    finally:
        deployment.stop()


def test_a_dns_server_that_is_down_is_named(site: Site) -> None:
    said = site.diff(expect=2)
    assert f"{DNS}, asked from web01" in said
    assert "is the server up" in said


def test_own_zones_need_the_backup_records_before_anything_can_register(site: Site) -> None:
    with site.server("bind", ()):
        said = site.register(expect=1).err
        assert "UserErrorPublicNetworkAccessDenied" in said, (
            "the only way left is the public one, which the vault denies"
        )
        assert "8 of 9 names" in site.diff(expect=1)


def test_dns_records_for_blobs_and_queues_after_the_first_registration(site: Site) -> None:
    with site.server("bind", site.export("created", "bind", "records")):
        assert "by the private path" in site.register().said
        configs = site.names()
        accounts = [name for name in configs if "ecs01." in name]
        assert {name.split(".")[1] for name in accounts} == {"blob", "queue"}
        differing = site.diff(expect=1)
        for name in accounts:
            assert re.search(rf"wrong +{name}\n.*public side", differing)
            assert f"{configs[name]} {name}\n" in differing, "paste-ready"
    for kind in KINDS:
        site.export("registered", kind, "records")
    with site.server("bind", site.files["registered", "bind"]):
        site.diff()


def test_dns_records_for_blobs_after_the_first_backup(site: Site) -> None:
    with site.server("bind", site.files["registered", "bind"]) as server:
        said = site.backup(expect=1).err
        name = site.first_backup_account
        assert name in said, "the agent says which record is missing"
        assert "A record" in said
        # A running server is told by the hook of ``dns watch``. (SIGHUP is what rndc reconfig and rndc reload do together.)
        site.deployment.run("dns", "watch", "--endpoint", "door", "-g", GROUP, "--format", "bind", "--mode", "records", "--out",
                            site.files["registered", "bind"][0].parent, "--once", "--hook", f"kill -HUP {server.pid}")  # fmt: skip
        eventually(lambda: site.backup(expect=(0, 1)).status == 0)
        site.files["backed-up", "bind"] = site.files["registered", "bind"]
        # Reference, pains B15: own zones shadow nobody else's names.
        assert "203.0.113." in site.nslookup("pod01-id1.we.backup.windowsazure.com")
    for kind in ("unbound", "dnsmasq"):
        site.export("backed-up", kind, "records")


@pytest.mark.parametrize("kind", ["unbound", "dnsmasq"])
def test_the_same_with_other_servers_fails_before_and_passes_after(site: Site, kind: str) -> None:
    name = site.first_backup_account
    with site.server(kind, site.files["registered", kind]):
        assert f"{name}: NXDOMAIN from resolver {DNS}" in site.backup(expect=1).err
        assert re.search(rf"missing +{name}", site.diff(expect=1))
    with site.server(kind, site.files["backed-up", kind]):
        site.backup()


@pytest.mark.parametrize("kind", KINDS)
def test_conditional_forwarders_to_azure_dns(site: Site, kind: str) -> None:
    if kind == KINDS[0]:
        site.deployment.run("dns", "zone-create", *ZONES, "-g", GROUP)
        site.deployment.run("dns", "link-create", *ZONES, "-g", GROUP, "--vnet-name", "hub")
        site.deployment.run("dns", "zone-group-create", *ZONES, "-g", GROUP, "--endpoint-name", "door")
    with site.server(kind, site.export("forward", kind, "forward"), "dnssec-validation no;" if kind == "bind" else ""):
        site.diff()
        if kind == KINDS[0]:
            assert site.names()[site.first_backup_account] in site.nslookup(site.first_backup_account)
            site.backup()


SAMPLES = re.findall(
    r"^```(named|unbound|dnsmasq)\n(.*?)^```$", (CHECKOUT / "docs/custom-dns.md").read_text("utf-8"), re.M | re.S
)
once = pytest.mark.parametrize("site", drivers()[:1], indirect=True)
"""For what only the servers decide; the drivers carry their packets alike, as the tests above show."""


@once
def test_forwarding_only_the_privatelink_zone_is_not_enough_with_a_general_forwarder(site: Site) -> None:
    """Reference, pains B6, the commonest of all. ``root01`` plays the provider's resolver, which knows the public side."""
    name = site.first_backup_account
    target = name.replace(".blob.", ".privatelink.blob.")
    provider = f"cname={name},{target}\nhost-record={target},203.0.113.11"
    azure = [f"server=/{domain}/168.63.129.16" for domain in (*ZONES, "undercroft.internal")]
    half = "\n".join((*azure, f"server={ROOT}"))
    whole = "\n".join((*azure, "server=/blob.core.windows.net/168.63.129.16", f"server={ROOT}"))
    with NameServer(site.deployment, "root01", "dnsmasq", provider):
        with site.server("dnsmasq", (), half):
            said = site.diff("--server", DNS, expect=1)
            assert re.search(rf"wrong +{name}\n.*203\.0\.113\.11, the public side by {target}", said)
            assert "Forward the public domain" in said
        with site.server("dnsmasq", (), whole):
            assert name not in site.diff("--server", DNS, expect=1), "the queue's domain is still missing"


@once
@pytest.mark.parametrize("number", range(len(SAMPLES)), ids=lambda number: f"{SAMPLES[number][0]}-{number}")
def test_the_samples_of_the_documentation_work(site: Site, number: int) -> None:
    """As they stand there, but for the folders. Validation is as each server has it: on, for BIND."""
    language, text = SAMPLES[number]
    kind = "bind" if language == "named" else language
    exported = site.files["forward", kind][0].parent
    if "addn-hosts" in text:
        exported = exported.parent / "hosts-for-dnsmasq"
        site.deployment.run("dns", "export", "--endpoint", "door", "-g", GROUP, "--format", "hosts", "--out", exported)
    for place in ("/etc/bind/undercroft", "/etc/unbound/unbound.conf.d", "/etc/dnsmasq.d", "/etc/undercroft.hosts"):
        text = text.replace(place, str(exported))
    server = site.server(kind, ())
    server.start_sample(text)
    try:
        site.diff()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def root(site: Site) -> Iterator[SignedRoot]:
    with SignedRoot(site.deployment, "root01", ROOT) as made:
        yield made


@once
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["forward", "backed-up"])
def test_dnssec_validation_and_rebind_protection_are_on(site: Site, root: SignedRoot, moment: str, kind: str) -> None:
    with site.server(kind, site.files[moment, kind], *root.validating(kind)):
        site.diff()
        said = site.deployment.inside("web01", peer("dig"), f"@{DNS}", "+dnssec", "signed.undertest", "TXT").out
        assert re.search(r"flags: [a-z ]*\bad\b", said), f"nothing was validated: {said}"


@once
@pytest.mark.parametrize(
    ("kind", "without", "word"),
    [
        ("bind", "validate-except", "DNSSEC"),
        ("bind", "except-from", "deny-answer-addresses"),
        ("unbound", "domain-insecure", "DNSSEC"),
        ("unbound", "private-domain", "rebind"),
        ("dnsmasq", "rebind-domain-ok", "rebind"),
    ],
)
def test_without_their_exceptions_both_protections_refuse_azures_answers(
    site: Site, root: SignedRoot, kind: str, without: str, word: str
) -> None:
    """The exceptions are not decoration: each of them, left out, breaks what worked. And ``dns diff`` knows why."""
    files = tuple(stripped(path, without) for path in site.files["forward", kind])
    with site.server(kind, files, *root.validating(kind, excepted=without != "except-from")):
        assert word in site.diff("--server", DNS, expect=1)


def stripped(path: Path, statement: str) -> Path:
    """A copy without the statement; of BIND's a block, of the others' a line each."""
    copy = path.with_name(f"undercroft-without-{statement}{path.suffix}")
    text = re.sub(
        rf"^{statement} \{{[^}}]*\}};$|^ *{statement}[:=].*$", "", path.read_text("utf-8"), flags=re.MULTILINE
    )
    copy.write_text(text, "utf-8")
    return copy


def test_hosts_files_kept_by_dns_watch(site: Site) -> None:
    deployment = site.deployment
    deployment.vault("second")
    deployment.endpoint("entrance", "second", "hub")
    command = ("dns", "watch", "--vault", "second", "--vnet-name", "hub", "-g", GROUP, "--format", "hosts", "--vm",
               "root01", "--interval", "0.3")  # fmt: skip
    said = deployment.home.parent / "watch.log"
    with said.open("wb") as log:
        watch = subprocess.Popen([sys.executable, "-m", "undercroft.cli", *command], env=deployment.environment,
                                 stdout=log, stderr=log)  # fmt: skip
    try:
        # The network's own server knows login and nothing else; all names of the vault come from the file.
        with site.server("dnsmasq", (), ELSEWHERE["dnsmasq"] + "\nserver=/undercroft.internal/168.63.129.16"):
            wait_for(said, "-id1.")
            site.register("second", "root01")
            wait_for(said, "ecs01.queue")
            for _ in range(2):  # the first backup allots an account whose name this host cannot know yet
                done = site.backup("root01", expect=(0, 1))
                if done.status == 0:
                    break
                assert "prot01" in done.err
                wait_for(said, "prot01.blob")
            assert done.status == 0, done.said
            deployment.run("dns", "diff", "--vault", "second", "-g", GROUP, "--from", "root01")
    finally:
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(10) == 0
    inside = deployment.inside("root01", "cat", "/etc/hosts").out
    assert "127.0.0.1 localhost" in inside
    for name, address in site.names("entrance").items():
        assert f"\n{address} {name}\n" in inside, "the article's form: <private ip><space><FQDN>"


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(10):
        if holds():
            return
        time.sleep(0.3)
    raise AssertionError("it never did")


def wait_for(log: Path, text: str) -> None:
    for _ in range(100):
        if text in log.read_text("utf-8"):
            return
        time.sleep(0.1)
    raise AssertionError(f"{text} is not in:\n{log.read_text('utf-8')}")
