"""A door: how a connection came in. Found from the network and the local address that accepted it, never from the client."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Door"]


@dataclass(frozen=True, slots=True)
class Door:
    """``endpoint`` None is the public side; then ``service`` says what the address serves there.

    ``service`` is ``backup``, ``blob``, ``queue`` or (public only) ``login``, ``management`` or ``front``, which is both at one
    address.
    """

    network: str
    service: str
    endpoint: str | None = None
    """Key of the private endpoint."""
    vault_key: str | None = None
    vault_id: int | None = None
    fqdn: str | None = None
    """The member this address answers for; None on the public side."""
    secondary: bool = False
    """Whether it is the door of an ``AzureBackup_secondary`` endpoint, which stands in the paired region."""

    @property
    def public(self) -> bool:
        return self.endpoint is None

    def serves(self, service: str) -> bool:
        """Whether hosts of that service answer here."""
        return service == self.service or (self.service == "front" and service in ("login", "management"))

    @property
    def path(self) -> str:
        """What is recorded as the path of a call: ``public`` or ``private:{endpoint key}``."""
        return "public" if self.endpoint is None else f"private:{self.endpoint}"
