"""``python -m undercroft.dns --home DIR [--ready-fd N]``: the name server's process, which reads the settings and nothing else.

A byte is written to the ready descriptor, and it is closed, when the socket accepts connections. Exit status: 0 after a clean end,
else that of the error, which is one line on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from undercroft.clock import SystemClock
from undercroft.config import Home
from undercroft.errors import UndercroftError

# Only structlog's console output would want it, and it is a quarter of this process's memory.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

from undercroft.capacity import raise_descriptor_limit  # noqa: E402
from undercroft.dns.process import run  # noqa: E402
from undercroft.dns.server import NameServer  # noqa: E402
from undercroft.logs import configure_logs  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m undercroft.dns", allow_abbrev=False)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    chosen = parser.parse_args()
    home = Home(chosen.home)
    configure_logs()

    def ready() -> None:
        if chosen.ready_fd is not None:
            os.write(chosen.ready_fd, b"1")
            os.close(chosen.ready_fd)

    try:
        raise_descriptor_limit()
        settings = home.settings()
        limit = settings.dns_queries_per_second
        asyncio.run(
            run(
                home.names_socket,
                lambda: NameServer(SystemClock(), settings.forward_dns_to, queries_per_second=limit),
                ready,
            )
        )
    except UndercroftError as error:
        print(f"dns: {error.message}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"dns: cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
