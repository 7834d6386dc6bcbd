"""A VM: a network namespace, a mount namespace with its own name files, and whatever was started in it.

Its folder ``DIR/vms/{first 32 hex digits of the id's SHA-256}/`` holds ``hosts``, ``resolv.conf``, ``nsswitch.conf`` (mounted over
the machine's in the VM, hence rewritten in place and never renamed) and ``agent/``, the VM's state. ``resolv.conf`` is kept exactly as
specified. In ``hosts`` only the first lines, up to a marker, are ours: what a person adds below stays, because a hosts file is one
of the ways in which an agent may find an endpoint. The fabric never deletes ``agent/``: it holds keys.

A VM is a network host and no security boundary (DESIGN section 7): it sees the machine's files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path

from undercroft.errors import LocalProblem
from undercroft.fabric.namespace import (
    CLONE_FS,
    CLONE_NEWNET,
    CLONE_NEWNS,
    Namespace,
    enter,
    in_thread,
    make_mount_namespace,
    unshare,
)
from undercroft.fabric.occupants import MARK
from undercroft.fabric.specification import Execution, HostSpecification

__all__ = ["NOT_FOUND", "NOT_RUNNABLE", "Host", "folder_name"]

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""The exit statuses of a shell for a command that is not there, or that may not be run."""

_MARKER = "# above: kept by the fabric; below: yours"
_FILES = {"hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf", "nsswitch.conf": "/etc/nsswitch.conf"}


def folder_name(host: str) -> str:
    return hashlib.sha256(host.encode()).hexdigest()[:32]


class Host:
    """``link`` is the index of the VNet's end of its link, for life."""

    def __init__(self, specification: HostSpecification, subnet: IPv4Network, vms: Path, link: int, mark: str) -> None:
        self.specification = specification
        self.subnet = subnet
        self.link = link
        self.folder = vms / folder_name(specification.id)
        self._mark = mark
        with ExitStack() as undo:
            self.write_files()
            self.namespace = Namespace(forwarding=False)
            undo.callback(self.namespace.close)
            self._mounts = self._mount()
            undo.pop_all()

    @property
    def mac(self) -> bytes:
        """Under Azure's prefix, and the same whenever this VM is built again."""
        return bytes.fromhex("000d3a") + hashlib.sha256(self.specification.id.encode()).digest()[:3]

    def write_files(self) -> tuple[str, ...]:
        """Make the name files as specified; the names of those that were not."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        (self.folder / "agent").mkdir(mode=0o700, exist_ok=True)
        address, name = self.specification.address, self.specification.name
        resolvers = "".join(f"nameserver {resolver}\n" for resolver in self.specification.resolvers)
        wanted = {
            "hosts": f"127.0.0.1 localhost\n{address} {name}\n{_MARKER}\n",
            "resolv.conf": resolvers,
            "nsswitch.conf": _name_services(),
        }
        changed = []
        for file, text in wanted.items():
            path = self.folder / file
            current = path.read_text("utf-8", "replace") if path.exists() else None
            if file == "hosts" and current is not None:
                _, _, own = current.partition(_MARKER + "\n")
                text += own
            if current != text:
                path.write_text(text, "utf-8")
                path.chmod(0o644)
                changed.append(file)
        return tuple(changed)

    def _mount(self) -> int:
        binds = []
        for file, target in _FILES.items():
            real = Path(os.path.realpath(target))
            if real.exists():
                binds.append((self.folder / file, real))
            elif file != "nsswitch.conf":
                raise LocalProblem(
                    f"This machine has no {target} over which a VM's own could be mounted. Create an empty file there."
                )
        # nscd would answer a VM's questions from the machine's names; its socket is hidden.
        hidden = [path for path in (Path("/run/nscd"),) if path.is_dir()]
        return make_mount_namespace(binds, hidden)

    def remove_files(self) -> None:
        """Delete what ``write_files`` wrote; the agent's state stays unless there is none."""
        for file in _FILES:
            (self.folder / file).unlink(missing_ok=True)
        for folder in (self.folder / "agent", self.folder):
            try:
                folder.rmdir()
            except OSError:  # not empty: the agent's
                return

    def close(self) -> None:
        """Let go of the namespaces; its processes have been ended before."""
        self.namespace.close()
        if self._mounts >= 0:
            os.close(self._mounts)
            self._mounts = -1

    def spawn(self, execution: Execution) -> subprocess.Popen[bytes] | int:
        """Start the command, in a session and process group of its own; or the status with which a shell would answer
        when it cannot be started, after saying so on its standard error."""
        environment = {
            "UNDERCROFT_VM": self.specification.name,
            "UNDERCROFT_AGENT_HOME": str(self.folder / "agent"),
            **dict(execution.environment),
            MARK: self._mark,
        }

        def body() -> subprocess.Popen[bytes] | int:
            unshare(
                CLONE_FS
            )  # setns refuses a mount namespace while the working directory is shared with other threads
            enter(self._mounts, CLONE_NEWNS)
            enter(self.namespace.descriptor, CLONE_NEWNET)
            program = execution.arguments[0] if execution.arguments else ""
            try:
                return subprocess.Popen(
                    execution.arguments or ("",),
                    stdin=execution.stdin,
                    stdout=execution.stdout,
                    stderr=execution.stderr,
                    env=environment,
                    cwd=execution.directory if _enterable(execution.directory) else "/",
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                # A folder in PATH that this user may not search makes it EACCES; a shell says "not found" then.
                path = environment.get("PATH", os.defpath)
                missing = isinstance(error, FileNotFoundError | NotADirectoryError) or (
                    isinstance(error, PermissionError) and shutil.which(program, os.F_OK, path) is None
                )
                reason = "command not found" if missing else getattr(error, "strerror", None) or str(error)
                _say(execution.stderr, f"undercroft: {program}: {reason}\n")
                return NOT_FOUND if missing else NOT_RUNNABLE

        return in_thread(body)


def _enterable(directory: str) -> bool:
    return os.path.isdir(directory) and os.access(directory, os.X_OK)


def _say(descriptor: int, text: str) -> None:
    """Write to a stream that is not ours: it may be closed at the other end, or full, which must not stop the fabric."""
    blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        os.write(descriptor, text.encode())
    except (BrokenPipeError, BlockingIOError, ConnectionResetError):
        return
    finally:
        os.set_blocking(descriptor, blocking)


def _name_services() -> str:
    """The machine's nsswitch.conf with names looked up in files, then by DNS: modules such as ``resolve`` and ``mdns4`` ask
    daemons of the machine over sockets that a network namespace does not stop."""
    path = Path("/etc/nsswitch.conf")
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition(":")[0].strip() != "hosts"]
    return "\n".join((*kept, "hosts: files dns")) + "\n"
