"""A data plane as a process of its own, to be killed: ``python -m tests.dataplane.service FOLDER``.

Prints one line of JSON with its port and names, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from tests.dataplane.plane import Plane


async def main(folder: Path) -> None:
    async with Plane(folder) as plane:
        said = {"port": plane.port, "recovered": plane.recovered}
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(Path(sys.argv[1])))
