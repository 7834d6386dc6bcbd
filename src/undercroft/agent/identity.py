"""The container's identity in the agent's home, one file written atomically: ``identity.json``, mode 0600.

One file, because id, key and the vault's names belong together: after a crash there is the old identity or the new one, never
a mixture. The folder also holds the lock, the engine's cache and a note of the ways that were last used.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from undercroft.errors import LocalProblem, StorageFull

from .proxy import ProxySettings

__all__ = ["AgentHome", "Identity", "RouteNote", "write_atomically"]

VERSION = 1


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    version: int
    container_id: str
    container_name: str
    machine_name: str
    vault_name: str
    vault_id: str
    resource_id: str
    tenant_id: str
    region: str
    audience: str
    login_endpoint: str
    private_host: str
    public_host: str
    public_fallback: bool
    registered: datetime
    private_key: str
    ca_bundle: str
    proxy: ProxySettings | None = None
    """None: what the environment says when the agent runs."""


class RouteNote(msgspec.Struct, frozen=True, rename="camel"):
    """How one leg was last reached; ``agent status`` shows it."""

    path: str
    host: str
    address: str
    because: str
    time: datetime
    proxy: str = ""
    fallbacks: int = 0
    """Runs of the agent in which this leg took the public way for want of the private one."""


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """The whole new content or the old one, also after a crash."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> LocalProblem | StorageFull:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"No space left to write {path} on this machine: free some and run the command again.")
    return LocalProblem(f"{path} cannot be written: {error.strerror}.")


@dataclass(frozen=True, slots=True)
class AgentHome:
    """``UNDERCROFT_AGENT_HOME``, else ``/var/lib/undercroft-agent`` for root and ``~/.local/state/undercroft-agent``."""

    root: Path

    @classmethod
    def find(cls) -> AgentHome:
        named = os.environ.get("UNDERCROFT_AGENT_HOME")
        if named:
            return cls(Path(named).absolute())
        if os.geteuid() == 0:
            return cls(Path("/var/lib/undercroft-agent"))
        state = os.environ.get("XDG_STATE_HOME")
        return cls((Path(state) if state else Path.home() / ".local" / "state") / "undercroft-agent")

    @property
    def identity_file(self) -> Path:
        return self.root / "identity.json"

    @property
    def route_file(self) -> Path:
        return self.root / "route.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "lock"

    def cache(self, container_id: str) -> Path:
        """The engine's cache; of one container, so that another vault's is never believed."""
        return self.root / "cache" / container_id

    def prepare(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.root, error) from error

    def save(self, identity: Identity) -> None:
        self.prepare()
        write_atomically(self.identity_file, msgspec.json.encode(identity))

    def load(self) -> Identity:
        path = self.identity_file
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise LocalProblem(
                f"This host is not registered with a vault ({path} is not there). Run 'undercroft agent register "
                "--credentials FILE' first.",
                code="UserErrorAgentNotRegistered",
            ) from error
        except OSError as error:
            raise LocalProblem(f"{path} cannot be read: {error.strerror}.") from error
        try:
            identity = msgspec.json.decode(data, type=Identity)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LocalProblem(f"{path} is damaged ({error}). Register this host again.") from error
        if identity.version != VERSION:
            raise LocalProblem(f"{path} has version {identity.version}; this agent reads version {VERSION}.")
        return identity

    def note_ways(self, ways: Mapping[str, RouteNote]) -> None:
        """By leg: ``backup``, ``blob``, ``login``."""
        write_atomically(self.route_file, msgspec.json.encode(dict(ways)))

    def last_ways(self) -> dict[str, RouteNote]:
        try:
            return msgspec.json.decode(self.route_file.read_bytes(), type=dict[str, RouteNote])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return {}  # a note for people; nothing rests on it
