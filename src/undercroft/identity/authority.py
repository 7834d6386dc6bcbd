"""The deployment's certificate authority, and the certificates that every listener of the deployment shows.

The CA's key is made at the first start and kept in ``DIR/keys``. Its certificate is name-constrained (critical, RFC 5280 section
4.2.1.10) to the deployment's suffixes and this machine's loopback, so that a client who trusts it trusts it for nothing else.

A wildcard covers one label only, and there are seventy-odd regions with two backup domains each: one certificate for all names
would be 8 KB in every handshake. So there is a *leaf* per family of names (local, storage and its partitions, regions), made when the first
client names it (SNI), and renewed in the same place when a third of its life is left.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from undercroft.clock import Clock
from undercroft.config import Home
from undercroft.errors import LocalProblem
from undercroft.identity import keyfiles
from undercroft.names import NameSuffixes, regions

__all__ = ["CertificateAuthority"]

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=90)
_RENEW = timedelta(days=30)
_BEFORE = timedelta(days=1)
"""Certificates begin a day early: clients' clocks are not ours."""
_LOOPBACK = ("127.0.0.1", "::1")
_PARTITION = re.compile(r"z[0-9]{2}")


@dataclass(frozen=True, slots=True)
class _Served:
    context: ssl.SSLContext
    begins: datetime
    renew_at: datetime

    def good(self, now: datetime) -> bool:
        """A clock that was wrong when the certificate was issued, and was set back since, leaves one that is not valid yet."""
        return self.begins <= now < self.renew_at


class CertificateAuthority:
    def __init__(self, home: Home, suffixes: NameSuffixes, clock: Clock) -> None:
        self._keys = home.keys
        self._bundle = home.ca_bundle
        self._suffixes = suffixes
        self._clock = clock
        self._geo_codes = frozenset(region.geo_code for region in regions().values())
        self._served: dict[str, _Served] = {}
        self._lock = threading.Lock()
        keyfiles.prepare(home.keys)
        self._key, self.certificate = self._load()
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def pem(self) -> bytes:
        """The CA's certificate, for agents and VMs; also the file ``Home.ca_bundle``."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server_context(self) -> ssl.SSLContext:
        """For every listener of the deployment: TLS 1.2 and newer, the right leaf for the name the client asks for."""

        def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> None:
            chosen = self._serve(self._family(name)).context
            if connection.context is not chosen:
                connection.context = chosen

        context = _context()
        self._load_leaf(context, "local")  # OpenSSL wants one before it asks the callback
        context.sni_callback = choose
        return context

    def client_context(self) -> ssl.SSLContext:
        """A client's context that trusts this CA and nobody else."""
        return ssl.create_default_context(cadata=self.pem.decode())

    # --- families of names -----------------------------------------------------------------------------------------

    def _family(self, name: str | None) -> str:
        """Which leaf serves this name: ``local``, ``storage``, a partition of it, or a region's geo code."""
        if name is None:
            return "local"
        name = name.lower().rstrip(".")
        if name.endswith("." + self._suffixes.backup):
            geo_code = name.removesuffix("." + self._suffixes.backup).rsplit(".", 1)[-1]
            return geo_code if geo_code in self._geo_codes else "local"
        if name.endswith("." + self._suffixes.storage):
            return "storage"
        if self._suffixes.partitioned and name.endswith(".blob." + self._suffixes.partitioned):
            partition = name.split(".")[1]
            return partition if _PARTITION.fullmatch(partition) else "local"
        return "local"

    def _names(self, family: str) -> tuple[str, ...]:
        suffixes = self._suffixes
        if family == "local":
            return ("localhost", suffixes.login, suffixes.management)
        if family == "storage":
            zones = (suffixes.blob_zone, suffixes.queue_zone)
            return tuple(f"*.{zone}" for each in zones for zone in (each, each.removeprefix("privatelink.")))
        if _PARTITION.fullmatch(family):
            zone = suffixes.partitioned_zone
            return (f"*.{family}.{zone}", f"*.{family}.{zone.removeprefix('privatelink.')}")
        return (f"*.{suffixes.backup_zone(family)}", f"*.{family}.{suffixes.backup}")

    def _serve(self, family: str) -> _Served:
        with self._lock:
            served = self._served.get(family)
            if served is None:
                context = _context()
                served = self._served[family] = self._load_leaf(context, family)
            elif not served.good(self._clock.now()):
                # loading again replaces the certificate for new handshakes of the same context
                served = self._served[family] = self._load_leaf(served.context, family)
            return served

    # --- certificates ----------------------------------------------------------------------------------------------

    def _load_leaf(self, context: ssl.SSLContext, family: str) -> _Served:
        """Issue a leaf into the context. The file is only there for OpenSSL to read: it is gone when this returns."""
        names = self._names(family)
        now = self._clock.now()
        leaf = self._issue(names, _LOOPBACK if family == "local" else (), now)
        key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with tempfile.NamedTemporaryFile(dir=self._keys, prefix=".leaf-") as file:  # mode 0600
            file.write(key + leaf.public_bytes(serialization.Encoding.PEM))
            file.flush()
            context.load_cert_chain(file.name)
        return _Served(context, now - _BEFORE, now + _LEAF_LIFE - _RENEW)

    def _issue(self, names: Iterable[str], addresses: Iterable[str], now: datetime) -> x509.Certificate:
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        public = self._leaf_key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Undercroft service")]))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(min(now + _LEAF_LIFE, self.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _load(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        path = self._keys / "ca.key"
        stored_key, stored_certificate = keyfiles.read(path), keyfiles.read(self._bundle)
        if stored_key is None and stored_certificate is None:
            return self._create(path)
        try:
            key = serialization.load_pem_private_key(stored_key or b"", None)
            if stored_certificate is None:  # a crash between the two files: the key stays, nobody saw a certificate
                return self._certify(key) if isinstance(key, ec.EllipticCurvePrivateKey) else _unusable(path)
            certificate = x509.load_pem_x509_certificate(stored_certificate)
        except (ValueError, TypeError) as error:
            raise LocalProblem(
                f"{path} and {self._bundle} are not the key and certificate of a CA ({error}). Restore both from a backup, or "
                "remove both: a new CA is made, and clients must then be given the new one.",
                target=str(path),
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return _unusable(path)
        self._check(certificate)
        return key, certificate

    def _check(self, certificate: x509.Certificate) -> None:
        permitted = certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or ()
        missing = [name.value for name in self._permitted() if name not in permitted]
        if missing:
            back = "Put the suffixes in undercroft.toml back"
            if missing == [self._suffixes.partitioned]:  # a CA of before there was this one
                back = """Keep it with 'partitioned = ""' under [suffixes] in undercroft.toml"""
            raise LocalProblem(
                f"The deployment's CA may not sign for {', '.join(str(name) for name in missing)}: it was made for other "
                f"suffixes. {back}, or remove {self._keys / 'ca.key'} and {self._bundle}: "
                "a new CA is made, and clients must then be given the new one.",
                target=str(self._bundle),
            )
        if certificate.not_valid_after_utc <= self._clock.now():
            raise LocalProblem(
                f"The deployment's CA expired on {certificate.not_valid_after_utc:%Y-%m-%d}. Remove {self._keys / 'ca.key'} and "
                f"{self._bundle}: a new one is made, and clients must then be given the new one.",
                target=str(self._bundle),
            )

    def _permitted(self) -> list[x509.GeneralName]:
        suffixes = self._suffixes
        names: list[x509.GeneralName] = [
            x509.DNSName(name)
            for name in (suffixes.backup, suffixes.storage, suffixes.partitioned, suffixes.deployment, "localhost")
            if name
        ]
        return names + [x509.IPAddress(ipaddress.ip_network(address)) for address in _LOOPBACK]

    def _create(self, path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        keyfiles.write(
            path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        return self._certify(key)

    def _certify(self, key: ec.EllipticCurvePrivateKey) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        now = self._clock.now()
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Undercroft"),
                x509.NameAttribute(
                    NameOID.COMMON_NAME, f"Undercroft deployment CA {x509.random_serial_number() % 10**6:06}"
                ),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(now + _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(x509.NameConstraints(self._permitted(), None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        keyfiles.write(self._bundle, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return key, certificate


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _unusable(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    raise LocalProblem(
        f"{path} does not belong to the CA certificate beside it. Restore both from a backup, or remove both: a new CA is "
        "made, and clients must then be given the new one.",
        target=str(path),
    )
