"""Real DNS servers from Debian, each run inside a VM of a deployment, in a folder of its own, without rights beyond the VM's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.deployment import Deployment
from tests.peers import peer

__all__ = ["KINDS", "NameServer", "SignedRoot"]

KINDS = ("bind", "unbound", "dnsmasq")
_PROGRAMS = {"bind": "named", "unbound": "unbound", "dnsmasq": "dnsmasq"}
_OPENING = {
    "bind": 'options {{ directory "{folder}"; pid-file "{folder}/pid"; session-keyfile "{folder}/session.key"; '
    "listen-on {{ any; }}; listen-on-v6 {{ none; }}; allow-query {{ any; }}; allow-recursion {{ any; }}; {options} }};\n"
    "controls {{ }};\n{included}\n",
    "unbound": 'server:\n  directory: "{folder}"\n  chroot: ""\n  username: ""\n  pidfile: "{folder}/pid"\n  interface: 0.0.0.0\n'
    "  do-ip6: no\n  access-control: 0.0.0.0/0 allow\n  use-syslog: no\n  logfile: {folder}/log\n{options}\n"
    "remote-control:\n  control-enable: no\n{included}\n",
    "dnsmasq": "no-resolv\nno-hosts\npid-file={folder}/pid\nlog-facility={folder}/log\nuser={user}\ngroup=\nbind-interfaces\n{options}\n{included}\n",
}
_INCLUDE = {"bind": 'include "{}";', "unbound": 'include: "{}"', "dnsmasq": "conf-file={}"}


@dataclass
class NameServer:
    """``options`` go into the server's own options; files that ``dns export`` wrote are included by path."""

    deployment: Deployment
    vm: str
    kind: str
    options: str = ""
    included: tuple[Path, ...] = ()
    extra: str = ""
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.deployment.home.parent / f"{self.kind}-{self.vm}"
        self.folder.mkdir(exist_ok=True)

    def start(self) -> NameServer:
        """Returns once it answers: all three let go of their starter when their sockets are bound."""
        self.start_with(self.text())
        return self

    def text(self) -> str:
        inside = [_INCLUDE[self.kind].format(path) for path in self.included if path.name.endswith(".options")]
        outside = [_INCLUDE[self.kind].format(path) for path in self.included if not path.name.endswith(".options")]
        return _OPENING[self.kind].format(
            folder=self.folder,
            options=" ".join((self.options, *inside)),
            included="\n".join((self.extra, *outside)),
            user="root",
        )

    def start_with(self, text: str) -> None:
        path = self.folder / "configuration"
        path.write_text(text, "utf-8")
        flag = {"bind": "-c", "unbound": "-c", "dnsmasq": "-C"}[self.kind]
        log = ("-L", self.folder / "log") if self.kind == "bind" else ()
        self.deployment.inside(self.vm, peer(_PROGRAMS[self.kind]), flag, path, *log)

    def start_sample(self, text: str) -> None:
        """Start with a configuration from the documentation, moved to where this user may write, and nothing else changed."""
        if self.kind == "bind":
            own = (
                f'directory "{self.folder}"; pid-file "{self.folder}/pid"; session-keyfile "{self.folder}/session.key";'
            )
            text = text.replace('directory "/var/cache/bind";', own) + "controls { };\n"
        elif self.kind == "unbound":
            own = f'  directory: "{self.folder}"\n  chroot: ""\n  username: ""\n  pidfile: "{self.folder}/pid"\n  use-syslog: no'
            text = text.replace("server:", f"server:\n{own}", 1)
        else:
            text += f"user=root\ngroup=\npid-file={self.folder}/pid\nlog-facility={self.folder}/log\n"
        self.start_with(text)

    @property
    def pid(self) -> int | None:
        try:
            return int((self.folder / "pid").read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def stop(self) -> None:
        pid = self.pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        for _ in range(200):
            if not _lives(pid):
                break
            time.sleep(0.05)
        else:
            os.kill(pid, signal.SIGKILL)
        (self.folder / "pid").unlink(missing_ok=True)

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> NameServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class SignedRoot:
    """A root zone of the test's own, signed, that denies ``com`` and ``net``: what a validating resolver in a closed network sees.

    It is served by BIND in a VM. Its key is the only trust anchor of the resolvers that ``validating`` configures, so that validation
    really runs although there is no internet.
    """

    def __init__(self, deployment: Deployment, vm: str, address: str) -> None:
        self.address = address
        self.folder = deployment.home.parent / "root"
        self.folder.mkdir()
        self._sign()
        zone = f'zone "." {{ type primary; file "{self.folder}/zone.signed"; }};'
        self.server = NameServer(deployment, vm, "bind", "recursion no; dnssec-validation no;", extra=zone)

    def _sign(self) -> None:
        zone = self.folder / "zone"
        zone.write_text(
            "$TTL 60\n. IN SOA ns.undertest. hostmaster.undertest. 1 3600 300 86400 60\n. IN NS ns.undertest.\n"
            f"ns.undertest. IN A {self.address}\nsigned.undertest. IN TXT yes\n",
            "ascii",
        )
        keygen: list[str | Path] = [peer("dnssec-keygen"), "-q", "-a", "ECDSAP256SHA256", "-K", self.folder]
        self.key = self._run(*keygen, "-f", "KSK", ".")
        self._run(*keygen, ".")
        self._run(peer("dnssec-signzone"), "-q", "-S", "-K", self.folder, "-o", ".", "-f", f"{zone}.signed", zone)
        self.ds = self._run(peer("dnssec-dsfromkey"), "-2", "-K", self.folder, self.key)

    def _run(self, *words: str | Path) -> str:
        done = subprocess.run(list(map(str, words)), cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def validating(self, kind: str, *, excepted: bool = True) -> tuple[str, str]:
        """Options and further configuration of a resolver that validates and protects against rebinding; for BIND, whose list
        of excepted domains stands inside its own statement, with that list or without."""
        hints = self.folder / "hints"
        hints.write_text(f". 60 IN NS ns.undertest.\nns.undertest. 60 IN A {self.address}\n", "ascii")
        record = (self.folder / f"{self.key}.key").read_text("ascii").splitlines()[-1]
        flags, protocol, algorithm, *key = record.split(" DNSKEY ")[1].split()
        if kind == "bind":
            domains = '"windowsazure.com"; "core.windows.net"; "azure.net"; "undercroft.internal";' if excepted else ""
            return (
                "dnssec-validation yes; deny-answer-addresses { 10.0.0.0/8; 203.0.113.0/24; } "
                f'except-from {{ "undertest"; {domains} }};',
                f'zone "." {{ type hint; file "{hints}"; }};\n'
                f'trust-anchors {{ . static-key {flags} {protocol} {algorithm} "{"".join(key)}"; }};',
            )
        if kind == "unbound":
            return (
                f'  root-hints: "{hints}"\n  trust-anchor-file: "{self.folder}/{self.key}.key"\n'
                '  module-config: "validator iterator"\n  private-address: 10.0.0.0/8\n  private-domain: "undertest"\n',
                "",
            )
        tag, number, kind_of_digest, *digest = self.ds.split(" DS ")[1].split()
        return (
            f"dnssec\ntrust-anchor=.,{tag},{number},{kind_of_digest},{''.join(digest)}\nserver={self.address}\nstop-dns-rebind",
            "",
        )

    def __enter__(self) -> SignedRoot:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
