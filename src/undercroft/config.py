"""Settings, read once. ``DIR/undercroft.toml`` is optional; what it may say is exactly the fields of ``Settings``."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated

import msgspec

from undercroft.errors import InvalidInput
from undercroft.names import NameSuffixes

__all__ = ["Home", "HostInterface", "Settings"]


Positive = Annotated[int, msgspec.Meta(ge=1)]


class HostInterface(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[host]``: the interface of this machine on which the host driver puts its one network (DESIGN section 7)."""

    interface: str = ""
    address: str = ""
    """On that interface: where the name server, login and management answer."""
    probe_seconds: Positive = 4
    """How long neighbours are asked for an address before it is used (RFC 5227)."""
    azure_names: bool = False
    """Whether Azure's own names may be used on a real network, where they hide Azure's (DESIGN section 6, rule 8)."""

    def __post_init__(self) -> None:
        if self.interface and not self.address:
            raise ValueError(
                "host.address is missing: the address on the interface where the name server and login answer"
            )
        try:
            if self.address:
                IPv4Address(self.address)
        except AddressValueError as error:
            raise ValueError(f"host.address: {error}") from error


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``docs/settings.md`` says the same for users; a test compares the two."""

    suffixes: NameSuffixes = NameSuffixes()
    host: HostInterface = HostInterface()
    public_range: str = "203.0.113.0/24"
    """The addresses that stand for the public side in every VNet (DESIGN section 7; TEST-NET-3, RFC 5737)."""
    vault_credentials_hours: Positive = 48
    access_token_minutes: Positive = 60
    grant_minutes: Positive = 60
    account_limit_bytes: Positive = 4 * 2**40
    """A protection account takes new containers up to this many stored bytes."""
    start_with_two_members: bool = False
    """A new vault has the members rec2 and id1; the other six services come with its first registration (DESIGN 6, rule 3)."""
    record_ttl: Positive = 10
    forward_dns_to: tuple[str, ...] = ()
    """Upstream resolvers for names outside the deployment; none by default, so such names answer NXDOMAIN."""
    dns_queries_per_second: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """What one VM may ask by UDP (azure-facts section 4); more is asked to come by TCP. 0: no limit."""
    calls_per_second: Annotated[int, msgspec.Meta(ge=0)] = 500
    """Of one principal at ARM, of one registered host at the backup service, of one VM at login. 0: no limit."""
    connections_per_door: Positive = 256
    """At one address of an endpoint, or of one service on the public side of a network; more are reset."""
    connections_per_peer: Positive = 64
    """Of those, of one address in the network: one VM, or one proxy and all the hosts behind it."""
    login_reachable: bool = True
    """Whether login and management answer on the public side of VNets (the article's access to Microsoft Entra ID)."""
    public_fallback: bool = True
    reconcile_seconds: Positive = 30

    @property
    def host_address(self) -> IPv4Address | None:
        """Where the service itself answers on an interface of this machine; None where networks have namespaces."""
        return IPv4Address(self.host.address) if self.host.interface else None

    def __post_init__(self) -> None:
        try:
            if IPv4Network(self.public_range).num_addresses < 32:
                raise ValueError(f"{self.public_range} has fewer than 32 addresses")
        except ValueError as error:
            raise ValueError(f"public_range: {error}") from error
        azures = self.suffixes.of_azure
        if self.host.interface and azures and not self.host.azure_names:
            raise ValueError(
                f"host.interface: on a real network {' and '.join(azures)} would hide Azure's own names from whoever asks our "
                "name server. Set suffixes.backup, suffixes.storage and suffixes.partitioned (which may be '') to names of your own, "
                "or host.azure_names = true"
            )


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one deployment (``--home DIR``), and where things are in it."""

    root: Path

    @property
    def state(self) -> Path:
        """The control plane's SQLite database."""
        return self.root / "state" / "state.db"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def keys(self) -> Path:
        """The deployment CA, the token signing key and ``deployment.json``; mode 0700."""
        return self.root / "keys"

    @property
    def run(self) -> Path:
        """Sockets, pid files: gone after a clean stop."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def vms(self) -> Path:
        return self.root / "vms"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def fabric_socket(self) -> Path:
        return self.run / "fabric.sock"

    @property
    def names_socket(self) -> Path:
        return self.run / "dns.sock"

    @property
    def data_socket(self) -> Path:
        return self.run / "data.sock"

    @property
    def connection_file(self) -> Path:
        return self.root / "connection.json"

    @property
    def ca_bundle(self) -> Path:
        return self.root / "keys" / "ca.pem"

    def fingerprint(self, settings: Settings) -> str:
        """Of what two processes of this home must share to trust each other's tokens and names: settings, CA and token keys."""
        digest = hashlib.sha256(msgspec.json.encode(settings))
        for path in (self.ca_bundle, self.keys / "token-keys.json"):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def settings(self) -> Settings:
        """What ``undercroft.toml`` says, over the defaults; an unknown or mistyped setting is an error naming it."""
        path = self.root / "undercroft.toml"
        if not path.exists():
            return Settings()
        try:
            return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Settings, strict=True)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise InvalidInput(
                f"{path}: {error}. Correct the file or remove it; docs/settings.md has every setting.",
                code="InvalidSettings",
            ) from error
