"""A whole deployment under test: the real command, real processes, real namespaces, in a folder of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from undercroft.cli.main import main
from undercroft.cli.vms import PROXIES
from undercroft.config import Home
from undercroft.control.client import Request, ask
from undercroft.errors import UndercroftError

__all__ = ["REPOSITORY", "Answer", "Deployment", "NearDeployment", "drivers"]

REPOSITORY = Path(__file__).parent.parent
GROUP = "rg"
REGION = "westeurope"


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err

    @property
    def json(self) -> Any:
        return json.loads(self.out[self.out.index("{") :])


class Deployment:
    """``undercroft`` with this home. Every method runs the command line as a user would; ``stop`` must be called."""

    def __init__(self, home: Path, driver: str) -> None:
        self.home = home
        self.driver = driver
        self.environment = {**os.environ, "UNDERCROFT_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(self, *more: str) -> None:
        self.run("up", "--port", "0", "--detach", "--driver", self.driver, *more)

    def stop(self) -> None:
        self.run("down", expect=(0, 3))

    def run(self, *words: str | Path, expect: int | tuple[int, ...] = 0, timeout: float = 120) -> Answer:
        """``undercroft words…``; the exit status must be as expected."""
        done = subprocess.run(
            self.command(sys.executable, "-m", "undercroft.cli", *map(str, words)),
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            cwd=self.home.parent,
        )
        return self._judged(words, Answer(done.returncode, done.stdout, done.stderr), expect)

    def _judged(self, words: tuple[str | Path, ...], answer: Answer, expect: int | tuple[int, ...]) -> Answer:
        expected = (expect,) if isinstance(expect, int) else expect
        assert answer.status in expected, f"{words}: status {answer.status}\n{answer.said}\n{self.logs()}"
        assert "Traceback" not in answer.said, answer.said
        return answer

    def command(self, *words: str) -> list[str]:
        """What is executed for these words; another place than here can be put in front."""
        return list(words)

    def inside(self, vm: str, *words: str | Path, expect: int | tuple[int, ...] = 0, timeout: float = 120) -> Answer:
        """Run a command inside a VM; ``agent …`` is our own agent."""
        if words[0] == "agent":
            words = (sys.executable, "-m", "undercroft.cli", *words)
        return self.run("vm", "exec", vm, "--", *words, expect=expect, timeout=timeout)

    @property
    def connection(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.home / "connection.json").read_text("utf-8"))
        return found

    def pids(self) -> dict[str, int]:
        """Process ids of the node, the fabric and the supervisor, as ``status`` says them."""
        answer: dict[str, int] = self.run("status", "--json").json["processes"]
        return answer

    def logs(self) -> str:
        texts = [
            f"--- {log.name}\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-40:])
            for log in sorted((self.home / "logs").glob("*.log"))
        ]
        return "\n".join(texts)

    # --- the usual furniture -----------------------------------------------------------------------------------------

    def network(
        self, name: str, vm: str | None = None, prefix: str = "10.20.0.0/16", subnet: str = "10.20.1.0/24"
    ) -> None:
        """A network with a subnet ``work``, and a VM in it."""
        self.run("vnet", "create", name, "-g", GROUP, "--address-prefixes", prefix, "--subnet-name", "work",
                 "--subnet-prefix", subnet)  # fmt: skip
        if vm:
            self.run("vm", "create", vm, "-g", GROUP, "--vnet-name", name, "--subnet", "work")

    def vault(self, name: str, *, deny: bool = True) -> None:
        self.run("vault", "create", name, "-g", GROUP, "--public-network-access", "Disable" if deny else "Enable")

    def endpoint(self, name: str, vault: str, network: str, *more: str, expect: int | tuple[int, ...] = 0) -> Answer:
        return self.run("endpoint", "create", name, "-g", GROUP, "--vault", vault, "--vnet-name", network,
                        "--subnet", "work", *more, expect=expect)  # fmt: skip

    def credentials(self, vault: str) -> Path:
        path = self.home.parent / f"{vault}.credentials"
        self.run("vault", "credentials", vault, "-g", GROUP, "--out", path)
        return path

    def furnished(self, *, files: int = 40) -> Path:
        """Group, network ``spoke`` with VM ``web01``, denied vault ``safe``, integrated endpoint ``door``, the VM's agent
        registered; returns a folder of files. The passphrase is in ``passphrase`` beside the home."""
        self.run("group", "create", GROUP, "-l", REGION)
        self.network("spoke", "web01")
        self.vault("safe")
        self.endpoint("door", "safe", "spoke", "--integrate-dns")
        self.inside("web01", "agent", "register", "--credentials", self.credentials("safe"))
        self.passphrase.write_text("correct horse battery staple\n", "ascii")
        self.passphrase.chmod(0o600)
        return self.files("files", files)

    @property
    def passphrase(self) -> Path:
        return self.home.parent / "passphrase"

    def files(self, name: str, count: int = 40) -> Path:
        folder = self.home.parent / name
        folder.mkdir()
        for number in range(count):
            (folder / f"file-{number:04}").write_bytes(os.urandom(50 + 997 * number))
        (folder / "big").write_bytes(os.urandom(6 << 20))
        return folder

    def backup(self, path: Path, *more: str, expect: int | tuple[int, ...] = 0) -> Answer:
        return self.inside("web01", "agent", "backup", path, "--passphrase-file", self.passphrase, *more, expect=expect)

    def points(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.inside("web01", "agent", "points", "--json").json["points"]
        return found

    def restore(self, point: str, name: str, *more: str, expect: int | tuple[int, ...] = 0) -> Path:
        target = self.home.parent / name
        self.inside("web01", "agent", "restore", point, "--to", target, "--passphrase-file", self.passphrase, *more,
                    expect=expect)  # fmt: skip
        return target


class NearDeployment(Deployment):
    """The same, asked from this process: the command line's ``main`` is called, and what is to run in a VM goes over the control
    socket. Each command costs a quarter of a second as a process. ``tests/journey`` tries the real ones."""

    def run(self, *words: str | Path, expect: int | tuple[int, ...] = 0, timeout: float = 120) -> Answer:
        if words[0] in ("up", "down"):
            return super().run(*words, expect=expect, timeout=timeout)
        out, err = io.StringIO(), io.StringIO()
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = self.environment["PYTHONPATH"]  # of what the command starts in a VM
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = main([*map(str, words), "--home", str(self.home)])
        finally:
            os.environ.pop("PYTHONPATH")
            os.environ.update({} if before is None else {"PYTHONPATH": before})
        return self._judged(words, Answer(status, out.getvalue(), err.getvalue()), expect)

    def inside(self, vm: str, *words: str | Path, expect: int | tuple[int, ...] = 0, timeout: float = 120) -> Answer:
        if words[0] == "agent":
            words = (sys.executable, "-m", "undercroft.cli", *words)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
            request = Request(
                "execute",
                vm=vm,
                arguments=tuple(map(str, words)),
                environment=tuple(item for item in self.environment.items() if item[0].lower() not in PROXIES),
                directory=str(self.home.parent),
            )
            try:
                status = ask(Home(self.home).control_socket, request, (nothing.fileno(), out.fileno(), err.fileno()))
            except UndercroftError as error:  # nobody is there to ask, or there is no such VM: as the command says it
                return self._judged(words, Answer(error.exit_status, "", f"undercroft: {error.message}\n"), expect)
            except OSError as error:  # the node ended while it was asked
                return self._judged(words, Answer(1, "", f"undercroft: {error}\n"), expect)
            said = [_all_of(file) for file in (out, err)]
        return self._judged(words, Answer(status, *said), expect)


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def drivers() -> list[str]:
    """The drivers that this user can test: root both, anybody else rootless."""
    return ["netns", "rootless"] if os.geteuid() == 0 else ["rootless"]
