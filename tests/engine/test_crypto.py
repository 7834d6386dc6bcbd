from __future__ import annotations

import pytest
from blake3 import blake3

from undercroft.engine.crypto import ContainerKeys, KeyCost, envelope_name
from undercroft.errors import CapabilityMissing, DamagedData, InvalidInput, WrongPassphrase

CHEAP = KeyCost(memory_kib=8 * 1024, passes=1, lanes=1)


def test_an_envelope_opens_with_its_passphrase() -> None:
    keys, envelope = ContainerKeys.create("correct horse")
    opened = ContainerKeys.open(envelope, "correct horse")
    assert opened == keys
    assert envelope_name(envelope).startswith("keys/")
    assert keys.chunk_id_key.hex() not in repr(keys)


def test_a_passphrase_is_the_same_however_it_was_typed() -> None:
    """Composed and decomposed umlauts look alike; keyboards and files differ."""
    keys, envelope = ContainerKeys.create("Schl\u00fcssel", CHEAP)
    assert ContainerKeys.open(envelope, "Schlu\u0308ssel") == keys


def test_a_wrong_passphrase_is_told_from_damage() -> None:
    _, envelope = ContainerKeys.create("right", CHEAP)
    with pytest.raises(WrongPassphrase, match="Try again with the right one"):
        ContainerKeys.open(envelope, "wrong")
    for place in range(0, len(envelope), 3):
        flipped = bytearray(envelope)
        flipped[place] ^= 1
        with pytest.raises((DamagedData, CapabilityMissing)):
            ContainerKeys.open(bytes(flipped), "right")
    for size in range(0, len(envelope), 7):
        with pytest.raises(DamagedData):
            ContainerKeys.open(envelope[:size], "right")


def test_rotation_wraps_the_same_keys_again() -> None:
    keys, old = ContainerKeys.create("old", CHEAP)
    new = keys.wrap("new", CHEAP)
    assert ContainerKeys.open(new, "new") == keys
    assert envelope_name(new) != envelope_name(old)
    with pytest.raises(WrongPassphrase):
        ContainerKeys.open(new, "old")


@pytest.mark.parametrize(
    "cost", [KeyCost(memory_kib=2**31), KeyCost(passes=10**6), KeyCost(lanes=255), KeyCost(memory_kib=64)]
)
def test_an_envelope_with_absurd_cost_is_refused(cost: KeyCost) -> None:
    """The service chooses the envelope it hands out; it must not choose how much memory we take, nor make guessing cheap."""
    _, envelope = ContainerKeys.create("secret", CHEAP)
    place = 24 + 1
    body = bytearray(envelope[:-32])
    body[place : place + 12] = b"".join(n.to_bytes(4, "little") for n in (cost.memory_kib, cost.passes, cost.lanes))
    with pytest.raises(DamagedData, match="outside sane limits"):
        ContainerKeys.open(bytes(body) + blake3(body).digest(), "secret")


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(InvalidInput):
        ContainerKeys.create("")
