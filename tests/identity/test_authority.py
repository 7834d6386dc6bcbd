"""The CA signs for the deployment's names and for nothing else; every name of the deployment gets a certificate that covers it."""

from __future__ import annotations

import asyncio
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from undercroft.clock import ManualClock, SystemClock
from undercroft.config import Home
from undercroft.errors import LocalProblem
from undercroft.identity.authority import CertificateAuthority
from undercroft.names import NameSuffixes, regions

SUFFIXES = NameSuffixes()


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(Home(tmp_path), SUFFIXES, SystemClock())


@pytest.fixture
async def port(authority: CertificateAuthority) -> AsyncIterator[int]:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=authority.server_context())
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def certificate(port: int, name: str, context: ssl.SSLContext) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    shown = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    await writer.wait_closed()
    assert isinstance(shown, bytes)
    return shown


async def test_every_name_of_the_deployment_is_covered(authority: CertificateAuthority, port: int) -> None:
    context = authority.client_context()
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    names = ["localhost", "127.0.0.1", SUFFIXES.login, SUFFIXES.management]
    names += [SUFFIXES.storage_member("abcecs01", service) for service in ("blob", "queue")]
    names += [SUFFIXES.storage_private("abcecs01", service) for service in ("blob", "queue")]
    names += [name("abcd1234prot02", "blob") for name in (SUFFIXES.storage_member, SUFFIXES.storage_private)]
    for region in regions().values():
        names += [SUFFIXES.backup_member(7, "fc1", region.geo_code), SUFFIXES.public_backup("id1", region.geo_code)]
    sizes = [len(await certificate(port, name, context)) for name in names]
    assert max(sizes) < 1024


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "a.b.blob.core.windows.net",
        "a.blob.storage.azure.net",
        "a.www.blob.storage.azure.net",
        "x.nowhere.backup.windowsazure.com",
    ],
)
async def test_no_other_name_is(authority: CertificateAuthority, port: int, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await certificate(port, name, authority.client_context())


async def test_old_tls_is_refused(authority: CertificateAuthority, port: int) -> None:
    context = authority.client_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await certificate(port, "localhost", context)


async def test_clients_refuse_what_a_stolen_key_signs_for_other_names(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    """The name constraint is critical: a certificate for somebody else's name does not verify, though our CA signed it."""
    ca_key = load_pem_private_key((tmp_path / "keys" / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), SystemClock().now()
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.com")]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    file = tmp_path / "forged.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + forged.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    try:
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            await certificate(server.sockets[0].getsockname()[1], "www.example.com", authority.client_context())
    finally:
        server.close()
        await server.wait_closed()


def test_the_certificate_says_what_it_is_for(authority: CertificateAuthority) -> None:
    extensions = authority.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert {str(name.value) for name in constraints.value.permitted_subtrees or ()} == {
        "backup.windowsazure.com",
        "core.windows.net",
        "storage.azure.net",
        "undercroft.internal",
        "localhost",
        "127.0.0.1/32",
        "::1/128",
    }
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_keys_are_private_and_stay(authority: CertificateAuthority, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert stat.S_IMODE((keys / "ca.key").stat().st_mode) == 0o600
    again = CertificateAuthority(Home(tmp_path), SUFFIXES, SystemClock())
    assert again.certificate == authority.certificate
    authority.server_context()
    assert {path.name for path in keys.iterdir()} == {"ca.key", "ca.pem"}


@pytest.mark.parametrize(
    "changes",
    [lambda clock: clock.advance(timedelta(days=61)), lambda clock: clock.step(timedelta(days=-61))],
    ids=["two months pass", "the clock was two months ahead"],
)
async def test_a_leaf_is_renewed_before_it_expires_and_when_it_has_not_begun(
    tmp_path: Path, changes: Callable[[ManualClock], None]
) -> None:
    clock = ManualClock(SystemClock().now())
    authority = CertificateAuthority(Home(tmp_path), SUFFIXES, clock)

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=authority.server_context())
    try:
        port = server.sockets[0].getsockname()[1]
        for name in ("localhost", "x.blob.core.windows.net"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            first = await certificate(port, name, context)
            assert await certificate(port, name, context) == first
            changes(clock)
            renewed = x509.load_der_x509_certificate(await certificate(port, name, context))
            assert renewed.not_valid_before_utc < clock.now()
            assert renewed.not_valid_after_utc > clock.now() + timedelta(days=80)
    finally:
        server.close()
        await server.wait_closed()


def test_other_suffixes_need_another_ca(authority: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(LocalProblem, match=r"backup\.example\.org.*Put the suffixes"):
        CertificateAuthority(Home(tmp_path), NameSuffixes(backup="backup.example.org"), SystemClock())


def test_a_ca_of_before_partitioned_names_is_kept_by_a_setting(tmp_path: Path) -> None:
    before = NameSuffixes(partitioned="")
    CertificateAuthority(Home(tmp_path), before, SystemClock())
    with pytest.raises(LocalProblem, match=r"storage\.azure\.net.*partitioned = \"\""):
        CertificateAuthority(Home(tmp_path), SUFFIXES, SystemClock())
    CertificateAuthority(Home(tmp_path), before, SystemClock())


@pytest.mark.parametrize("broken", ["ca.key", "ca.pem"])
def test_a_damaged_ca_is_named(authority: CertificateAuthority, tmp_path: Path, broken: str) -> None:
    (tmp_path / "keys" / broken).write_text("nonsense")
    with pytest.raises(LocalProblem, match="Restore both from a backup"):
        CertificateAuthority(Home(tmp_path), SUFFIXES, SystemClock())


def test_a_key_of_another_ca_is_named(authority: CertificateAuthority, tmp_path: Path) -> None:
    other = tmp_path / "other"
    CertificateAuthority(Home(other), SUFFIXES, SystemClock())
    (other / "keys" / "ca.key").replace(tmp_path / "keys" / "ca.key")
    with pytest.raises(LocalProblem, match="does not belong"):
        CertificateAuthority(Home(tmp_path), SUFFIXES, SystemClock())
