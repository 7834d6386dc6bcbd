"""The container's key envelope: found and opened with the passphrase, or made at the first backup."""

from __future__ import annotations

from undercroft.engine.crypto import ContainerKeys, envelope_name
from undercroft.engine.repository import Depot
from undercroft.errors import DamagedData, NotFound

__all__ = ["make_keys", "must_open_keys", "open_keys"]


def open_keys(depot: Depot, passphrase: str) -> ContainerKeys | None:
    """The keys in the newest whole envelope; None when the container has none yet. ``WrongPassphrase`` is raised before anything
    is sent. An older envelope is tried only when the newer one is damaged."""
    damage: DamagedData | None = None
    for entry in reversed(list(depot.objects("keys"))):
        try:
            return ContainerKeys.open(depot.get(entry.name), passphrase)
        except DamagedData as error:
            damage = damage or error
    if damage is not None:
        raise damage
    return None


def must_open_keys(depot: Depot, passphrase: str) -> ContainerKeys:
    keys = open_keys(depot, passphrase)
    if keys is None:
        raise NotFound("This container has no key in the vault: nothing was backed up from this host yet.")
    return keys


def make_keys(depot: Depot, passphrase: str) -> ContainerKeys:
    keys, envelope = ContainerKeys.create(passphrase)
    depot.put(envelope_name(envelope), [envelope])
    return keys
