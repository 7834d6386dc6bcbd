"""Keys of one container, and the few ways they are used (``docs/format.md`` section 3).

passphrase → Argon2id → wrapping key → master key → one root per use → one key per series, object or local file.
"""

from __future__ import annotations

import secrets
import struct
import unicodedata
from dataclasses import dataclass, field

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from undercroft.engine.repository import (
    PRELUDE_SIZE,
    Bytes,
    new_id,
    object_id,
    object_name,
    open_prelude,
    prelude,
)
from undercroft.errors import CapabilityMissing, DamagedData, InvalidInput, LocalProblem, WrongPassphrase

__all__ = ["TAG_SIZE", "ZERO_NONCE", "ContainerKeys", "KeyCost", "envelope_name"]

TAG_SIZE = 16
ZERO_NONCE = bytes(12)
"""For keys that encrypt exactly once."""

_ENVELOPE = struct.Struct("<BIII16s12s")
_WRAPPED_SIZE = 32 + TAG_SIZE
_CHECKSUM_SIZE = 32
_ENVELOPE_SIZE = PRELUDE_SIZE + _ENVELOPE.size + _WRAPPED_SIZE + _CHECKSUM_SIZE
_ARGON2ID = 1


@dataclass(frozen=True, slots=True)
class KeyCost:
    """Argon2id's cost. The default is the second recommended choice of RFC 9106 section 4."""

    memory_kib: int = 64 * 1024
    passes: int = 3
    lanes: int = 4

    def refuse_absurd(self, name: str) -> None:
        """An envelope comes from the service, which is not trusted to choose how much memory we spend, nor how little."""
        if not (8 * 1024 <= self.memory_kib <= 4 * 2**20 and 1 <= self.passes <= 64 and 1 <= self.lanes <= 64):
            raise DamagedData(
                f"{name} asks for a key derivation outside sane limits ({self.memory_kib} KiB, {self.passes} passes, "
                f"{self.lanes} lanes); it is not opened.",
                target=name,
            )


def _derive(use: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=f"undercroft 2026 format 0 {use}").digest()


def _wrapping_key(passphrase: str, salt: bytes, cost: KeyCost) -> AESGCM:
    secret = unicodedata.normalize("NFC", passphrase).encode("utf-8")
    raw = hash_secret_raw(secret, salt, cost.passes, cost.memory_kib, cost.lanes, 32, Type.ID)
    return AESGCM(raw)


def envelope_name(envelope: Bytes) -> str:
    """The name under which this envelope is kept: ``keys/{hex}``."""
    if len(envelope) < PRELUDE_SIZE:
        raise DamagedData(f"A key envelope is cut short: {len(envelope)} bytes.")
    name = object_name("keys", bytes(envelope[PRELUDE_SIZE - 16 : PRELUDE_SIZE]))
    open_prelude(name, envelope)
    return name


@dataclass(frozen=True, slots=True)
class ContainerKeys:
    """The opened keys of a container. ``repr`` shows nothing secret."""

    _master: bytes = field(repr=False)
    chunk_id_key: bytes = field(repr=False)
    _frame_root: bytes = field(repr=False)
    _index_root: bytes = field(repr=False)
    _manifest_root: bytes = field(repr=False)
    _cache_root: bytes = field(repr=False)

    @classmethod
    def of_master(cls, master: bytes) -> ContainerKeys:
        uses = ("chunk id", "frame root", "index root", "manifest root", "cache root")
        return cls(master, *(_derive(use, master) for use in uses))

    @classmethod
    def create(cls, passphrase: str, cost: KeyCost | None = None) -> tuple[ContainerKeys, bytes]:
        """New keys, and the envelope to put under ``envelope_name(envelope)``."""
        keys = cls.of_master(secrets.token_bytes(32))
        return keys, keys.wrap(passphrase, cost)

    def wrap(self, passphrase: str, cost: KeyCost | None = None) -> bytes:
        """An envelope of these keys under a passphrase; a new one is a rotation (nothing else is written again)."""
        if not passphrase:
            raise InvalidInput("The passphrase is empty. Give one; losing it later is final.", target="passphrase")
        cost = cost or KeyCost()
        salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
        head = prelude("keys", new_id()) + _ENVELOPE.pack(
            _ARGON2ID, cost.memory_kib, cost.passes, cost.lanes, salt, nonce
        )
        body = head + _wrapping_key(passphrase, salt, cost).encrypt(nonce, self._master, head)
        return body + blake3(body).digest()

    @classmethod
    def open(cls, envelope: Bytes, passphrase: str) -> ContainerKeys:
        """``WrongPassphrase`` when the envelope is whole and does not open; ``DamagedData`` when it is not whole."""
        envelope = bytes(envelope)
        name = envelope_name(envelope)
        if len(envelope) != _ENVELOPE_SIZE or blake3(envelope[:-_CHECKSUM_SIZE]).digest() != envelope[-_CHECKSUM_SIZE:]:
            raise DamagedData(f"{name} is damaged; use another copy of the key.", target=name)
        kdf, memory, passes, lanes, salt, nonce = _ENVELOPE.unpack_from(envelope, PRELUDE_SIZE)
        if kdf != _ARGON2ID:
            raise CapabilityMissing(f"{name} uses key derivation {kdf}, which this program does not know.", target=name)
        cost = KeyCost(memory, passes, lanes)
        cost.refuse_absurd(name)
        start = PRELUDE_SIZE + _ENVELOPE.size
        try:
            wrapping = _wrapping_key(passphrase, salt, cost)
            master = wrapping.decrypt(nonce, envelope[start : start + _WRAPPED_SIZE], envelope[:start])
        except InvalidTag as error:
            raise WrongPassphrase(
                f"The passphrase does not open this container's key ({name}). Try again with the right one; "
                "without it the data cannot be read by anybody.",
                target="passphrase",
            ) from error
        except HashingError as error:
            raise LocalProblem(
                f"The key of {name} cannot be derived: {error} ({cost.memory_kib} KiB needed)."
            ) from error
        return cls.of_master(master)

    def series_cipher(self, series: bytes) -> AESGCM:
        return AESGCM(_derive("frame series", self._frame_root + series))

    def index_cipher(self, name: str) -> AESGCM:
        return AESGCM(_derive("index object", self._index_root + object_id(name)))

    def manifest_cipher(self, name: str) -> AESGCM:
        return AESGCM(_derive("manifest object", self._manifest_root + object_id(name)))

    def cache_cipher(self, file_id: bytes) -> AESGCM:
        return AESGCM(_derive("cache file", self._cache_root + file_id))

    def chunk_id(self, data: Bytes) -> bytes:
        return blake3(data, key=self.chunk_id_key).digest()
