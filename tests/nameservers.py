"""Real DNS servers from Debian, each run inside a VM of a deployment, in a folder of its own, without rights beyond the VM's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.deployment import Deployment
from tests.peers import peer

__all__ = ["KINDS", "NameServer"]

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
        inside = [_INCLUDE[self.kind].format(path) for path in self.included if path.name.endswith(".options")]
        outside = [_INCLUDE[self.kind].format(path) for path in self.included if not path.name.endswith(".options")]
        text = _OPENING[self.kind].format(
            folder=self.folder,
            options=" ".join((self.options, *inside)),
            included="\n".join((self.extra, *outside)),
            user="root",
        )
        path = self.folder / "configuration"
        path.write_text(text, "utf-8")
        flag = {"bind": "-c", "unbound": "-c", "dnsmasq": "-C"}[self.kind]
        log = ("-L", self.folder / "log") if self.kind == "bind" else ()
        self.deployment.inside(self.vm, peer(_PROGRAMS[self.kind]), flag, path, *log)
        return self

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
