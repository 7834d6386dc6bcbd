"""agent: what runs on a protected host. Registers it, backs up, lists recovery points, restores.

Status 0 done, 1 failed, 2 usage, 3 partial (some files could not be read, or are damaged in the vault).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from undercroft.errors import InvalidInput, LocalProblem, NotFound
from undercroft.priority import give_way

if TYPE_CHECKING:
    from undercroft.agent.backup import BackupReport
    from undercroft.agent.identity import AgentHome, Identity
    from undercroft.agent.passphrase import Passphrase
    from undercroft.agent.proxy import ProxySettings
    from undercroft.agent.restore import RestoreReport
    from undercroft.agent.session import Session
    from undercroft.clock import Clock

__all__ = ["app"]

FAILED, PARTIAL = 1, 3
SHOWN = 20

app = App(name="agent", help="Back up this host into a vault, and restore. Its state is in UNDERCROFT_AGENT_HOME.")

JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
FallbackOption = Annotated[
    bool,
    Parameter(
        name="--public-fallback",
        negative="--no-public-fallback",
        help="Use the vault's public name when the private one does not resolve or connect.",
    ),
]
ProxyPasswordOption = Annotated[
    Path | None,
    Parameter(name=["--proxy-password-file", "--password-file"], help="The proxy's password is its first line."),
]
BypassOption = Annotated[
    str,
    Parameter(
        name=["--proxy-bypass", "--bypass"],
        help="What is reached without the proxy, separated by commas: hosts, .domains, or private-zones (the vault's private "
        "names and its storage accounts).",
    ),
]
ItemOption = Annotated[str | None, Parameter(name="--item", help="Only points of this folder.")]
PassphraseOption = Annotated[
    Path, Parameter(name="--passphrase-file", help="The passphrase is the first line of this file. Losing it is final.")
]


@app.command(name="register")
def register_(
    *,
    credentials: Annotated[Path, Parameter(name="--credentials", help="The vault credentials file.")],
    machine_name: Annotated[str | None, Parameter(help="Default: UNDERCROFT_VM, or the host name.")] = None,
    public_fallback: FallbackOption = True,
    proxy: Annotated[
        str | None,
        Parameter(
            name="--proxy",
            help="http://[USER@]HOST:PORT, or direct; kept. Without it, the one set before, else HTTPS_PROXY and NO_PROXY at each run.",
        ),
    ] = None,
    proxy_bypass: BypassOption = "",
    proxy_password_file: ProxyPasswordOption = None,
) -> int:
    """Register this host with a vault. Again: it keeps its recovery points and gets a new key."""
    from undercroft.agent.credentials import read_credentials
    from undercroft.agent.registration import default_machine_name, register
    from undercroft.agent.resolve import SystemResolver

    used = proxy_of(proxy, proxy_bypass, proxy_password_file)
    home, clock = place()
    file = read_credentials(credentials, clock)
    warn(file.warnings)
    name = machine_name or default_machine_name()
    with failing():
        done = register(home, file, name, SystemResolver(), clock, print, public_fallback=public_fallback, proxy=used)
    warn(done.warnings)
    print(f"Container {done.identity.container_id}; its identity is in {home.identity_file}.")
    if done.accounts:
        print(f"Storage accounts: {', '.join(done.accounts)}.")
    return 0


@app.command
def backup(
    path: Annotated[Path, Parameter(help="The folder to back up.")],
    *,
    passphrase_file: PassphraseOption,
    as_json: JsonOption = False,
    public_fallback: FallbackOption = True,
) -> int:
    """Back up a folder, at a lower priority than the host's own work. Status 3: done, but some files could not be read; they are listed."""
    from undercroft.agent.backup import run_backup
    from undercroft.agent.passphrase import read_passphrase
    from undercroft.agent.sources.files import FilesSource

    give_way()
    passphrase = read_passphrase(passphrase_file)
    warn(passphrase.warnings)
    # Only made absolute: a link that is named is what is backed up, not what it points to.
    source_path = Path(os.path.abspath(path))
    if not os.path.lexists(source_path):
        raise InvalidInput(f"{source_path} is not there: name a folder of this host.", target=str(path))
    with failing(), vault(public_fallback) as (home, identity, session, clock):
        # The agent's own state changes while it works and is of no use elsewhere.
        source = FilesSource(source_path, exclude=(home.root,))
        done = run_backup(home, identity, session, source, passphrase.secret, clock, note)
    if as_json:
        show(backup_document(done))
    else:
        print(f"Recovery point {done.point} of {done.item}, {done.time:%Y-%m-%d %H:%M:%S} UTC.")
        print(f"backup: {done.summary}")
    list_some("not backed up completely", _lines(done.problems))
    if done.unreadable:
        note(f"Unreadable: {done.unreadable}. The recovery point is complete but for these.")
        return PARTIAL
    return 0


@app.command
def points(*, item: ItemOption = None, as_json: JsonOption = False, public_fallback: FallbackOption = True) -> int:
    """List this host's recovery points, newest first."""
    from undercroft.agent.points import list_points
    from undercroft.agent.progress import megabytes

    with failing(), vault(public_fallback) as (_, _, session, _):
        found = list_points(session, item)
    if as_json:
        import msgspec

        show({"points": msgspec.to_builtins(found)})
        return 0
    if not found:
        print("No recovery points.")
    for point in found:
        counts = point.statistics
        print(
            f"{point.id}  {point.time:%Y-%m-%d %H:%M:%S}  {counts.get('files', 0):>8} files  "
            f"{megabytes(counts.get('sourceBytes', 0)):>10}  {point.item.name}"
        )
    return 0


@app.command
def restore(
    point: Annotated[str, Parameter(help="Its id, the beginning of it, or 'latest'.")],
    *,
    to: Annotated[Path, Parameter(name="--to", help="A folder; it is made when it is not there.")],
    passphrase_file: PassphraseOption | None = None,
    into_existing: Annotated[
        bool, Parameter(negative=(), help="The folder may hold files; what is in the way stays and is listed.")
    ] = False,
    as_json: JsonOption = False,
    public_fallback: FallbackOption = True,
) -> int:
    """Restore a recovery point into a folder. Status 3: some files are damaged."""
    from undercroft.agent.restore import run_restore
    from undercroft.agent.sources.files_target import FilesTarget

    passphrase = given(passphrase_file)
    warn(passphrase.warnings)
    with failing(), vault(public_fallback) as (home, _, session, clock):
        target = FilesTarget(Path(os.path.abspath(to)), into_existing)
        done = run_restore(home, session, point, target, passphrase.secret, clock, note)
    if as_json:
        show(restore_document(done))
    else:
        print(f"restore: {done.summary}")
    list_some("restored with a reservation", _lines(done.problems))
    if done.damaged:
        note(f"Damaged in the vault and not restored: {len(done.damaged)}.")
        for damage in done.damaged:
            note(f"  {damage}")
        return PARTIAL
    return 0


@app.command
def status(*, as_json: JsonOption = False, public_fallback: FallbackOption = True) -> int:
    """Which vault this host is registered with, by which path it is reached, and its storage accounts."""
    from undercroft.agent.status import describe

    with failing(), vault(public_fallback) as (home, identity, session, _):
        found = describe(home, identity, session)
    if as_json:
        show(found.document())
    else:
        print("\n".join(found.lines()))
    return FAILED if found.failure else 0


@app.command(name="proxy")
def proxy_(
    url: Annotated[
        str | None, Parameter(help="http://[USER@]HOST:PORT, direct, or environment. Without it: show what is used.")
    ] = None,
    *,
    bypass: BypassOption = "",
    password_file: ProxyPasswordOption = None,
) -> int:
    """Show or change the explicit proxy of this registered host."""
    import msgspec

    from undercroft.agent.lock import only_one
    from undercroft.agent.proxy import from_environment

    home, _ = place()
    identity = home.load()
    if url is not None:
        used = None if url == "environment" else proxy_of(url, bypass, password_file)
        with only_one(home.lock_file, "agent proxy"):
            identity = msgspec.structs.replace(home.load(), proxy=used)
            home.save(identity)
    found, source = (identity.proxy, "set here") if identity.proxy else (from_environment(), "by the environment")
    print(f"proxy: {found.shown} ({source})" if found else "proxy: none (HTTPS_PROXY is not set)")
    return 0


def proxy_of(url: str | None, bypass: str, password_file: Path | None) -> ProxySettings | None:
    from undercroft.agent.passphrase import first_line
    from undercroft.agent.proxy import parse_proxy

    if url is None:
        if bypass or password_file:
            raise InvalidInput("A bypass list or a password without a proxy: name it.", target="--proxy")
        return None
    password = None
    if password_file is not None:
        password, warnings = first_line(password_file, "password")
        warn(warnings)
    found = parse_proxy(url, bypass.split(","), password)
    if found.password and password is None:
        note(
            "warning: other users of this host may see a password on a command line; --password-file keeps it out of there."
        )
    return found


def place() -> tuple[AgentHome, Clock]:
    from undercroft.agent.identity import AgentHome
    from undercroft.clock import SystemClock

    return AgentHome.find(), SystemClock()


@contextmanager
def vault(public_fallback: bool) -> Iterator[tuple[AgentHome, Identity, Session, Clock]]:
    """This host's session with the vault that it is registered with."""
    from undercroft.agent.registration import open_session
    from undercroft.agent.resolve import SystemResolver

    home, clock = place()
    identity = home.load()
    session = open_session(identity, SystemResolver(), clock, public_fallback=public_fallback)
    try:
        yield home, identity, session, clock
    finally:
        session.close()


@contextmanager
def failing() -> Iterator[None]:
    """What is not found in the vault is a failure (1): here 3 means partial."""
    try:
        yield
    except NotFound as error:
        raise LocalProblem(error.message, code=error.code, target=error.target) from error


def given(passphrase_file: Path | None) -> Passphrase:
    from undercroft.agent.passphrase import ask_passphrase, read_passphrase

    return ask_passphrase() if passphrase_file is None else read_passphrase(passphrase_file)


def note(line: str) -> None:
    """For people; JSON has stdout to itself. A backup goes on when nobody listens any more."""
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)


def warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        note(f"warning: {warning}")


def show(document: dict[str, Any]) -> None:
    import json

    print(json.dumps(document, indent=2))


def _lines(problems: Iterable[tuple[str, str]]) -> list[str]:
    """A problem without a name is about the whole."""
    return [f"{name}: {reason}" if name else reason for name, reason in problems]


def list_some(what: str, lines: list[str]) -> None:
    if not lines:
        return
    note(f"{what}:")
    for line in lines[:SHOWN]:
        note(f"  {line}")
    if len(lines) > SHOWN:
        note(f"  and {len(lines) - SHOWN} more; --json lists them all")


def backup_document(done: BackupReport) -> dict[str, Any]:
    total = done.summary
    return {
        "recoveryPointId": done.point,
        "time": done.time.isoformat(),
        "jobId": done.job,
        "item": done.item,
        "path": total.path,
        "files": total.files,
        "directories": done.directories,
        "sourceBytes": total.size,
        "bytesRead": total.read,
        "bytesSent": total.sent,
        "bytesStored": total.stored,
        "seconds": round(total.seconds, 3),
        "unreadable": done.unreadable,
        "problems": [{"path": path, "reason": reason} for path, reason in done.problems],
    }


def restore_document(done: RestoreReport) -> dict[str, Any]:
    total = done.summary
    return {
        "recoveryPointId": done.point.id,
        "jobId": done.job,
        "item": done.point.item.name,
        "path": total.path,
        "files": total.files,
        "bytesReceived": total.received,
        "bytesWritten": total.written,
        "seconds": round(total.seconds, 3),
        "damaged": [
            {"path": lost.path, "pack": lost.pack, "frame": lost.frame, "reason": lost.reason} for lost in done.damaged
        ],
        "problems": [{"path": path, "reason": reason} for path, reason in done.problems],
    }
