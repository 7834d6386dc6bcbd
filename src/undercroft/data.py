"""``python -m undercroft.data --home DIR [--ready-fd N]``: the data plane's process, put together.

A byte is written to the ready descriptor, and it is closed, when the socket accepts connections. State and keys are opened when a node
says that they are there (``dataplane.process``). Exit status: 0 after a clean end, else that of the error, which is one line on standard error.

It gives way to the others: bulk data keeps every core busy, and whoever waits for a name or for ARM waits for one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

# Only structlog's console output would want it, and it is a quarter of a small process's memory.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

from undercroft.calls import listen  # noqa: E402
from undercroft.capacity import raise_descriptor_limit  # noqa: E402
from undercroft.clock import SystemClock  # noqa: E402
from undercroft.config import Home, Settings  # noqa: E402
from undercroft.dataplane.listener import Divert  # noqa: E402
from undercroft.dataplane.process import DataProcess  # noqa: E402
from undercroft.dataplane.server import DataPlane  # noqa: E402
from undercroft.errors import UndercroftError  # noqa: E402
from undercroft.identity import deployment as deployments  # noqa: E402
from undercroft.identity.authority import CertificateAuthority  # noqa: E402
from undercroft.identity.tokens import Tokens  # noqa: E402
from undercroft.logs import configure_logs  # noqa: E402
from undercroft.priority import give_way  # noqa: E402
from undercroft.state.database import Database  # noqa: E402
from undercroft.store.filesystem import FilesystemStore  # noqa: E402
from undercroft.workers.manifests import ManifestWriter  # noqa: E402

__all__ = ["main"]


def _plane(home: Home, settings: Settings, divert: Divert) -> DataPlane:
    clock = SystemClock()
    database = Database.open(home.state)
    tenant = deployments.ensure(database, home, clock).tenant_id
    store = FilesystemStore(home.store)
    return DataPlane(
        database=database,
        store=store,
        tokens=Tokens(home, tenant, clock, timedelta(minutes=settings.access_token_minutes)),
        context=CertificateAuthority(home, settings.suffixes, clock).server_context(),
        settings=settings,
        clock=clock,
        keep_vault=ManifestWriter(database, store).write,
        divert=divert,
    )


async def _run(home: Home, ready: int | None) -> None:
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, finished.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # whoever started us decides
    process = DataProcess(lambda settings, divert: _plane(home, settings, divert), listen(home.data_socket))
    process.start()
    if ready is not None:
        os.write(ready, b"1")
        os.close(ready)
    try:
        await finished.wait()
    finally:
        await process.close()
        home.data_socket.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m undercroft.data", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    chosen = parser.parse_args()
    configure_logs()
    try:
        raise_descriptor_limit()
        give_way()
        asyncio.run(_run(Home(chosen.home), chosen.ready_fd))
    except UndercroftError as error:
        print(f"data: {error.message}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"data: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
