"""What networks cost: latency beside a backup, throughput through an endpoint, creation, and a thousand endpoints.

``python -m bench.networks`` runs it alone; ``scripts/bench --only networks`` does too, and writes the section.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bench import creation, latency, scale, throughput
from bench.creation import Creation
from bench.latency import Latency
from bench.scale import Scale
from bench.throughput import Throughput

__all__ = ["Networks", "measure", "render"]

MIB = 1 << 20


@dataclass
class Networks:
    latencies: list[Latency] = field(default_factory=list)
    throughput: Throughput | None = None
    creation: Creation | None = None
    scale: Scale | None = None


def measure(folder: Path, repetitions: int = 3, *, quick: bool = False) -> Networks:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(50)
    )  # the data plane in this process logs each call
    found = Networks()
    for _ in range(1 if quick else repetitions):
        with tempfile.TemporaryDirectory(prefix="l-", dir=folder) as place:
            found.latencies.append(latency.measure(Path(place), 1200 if quick else 4000, 2.0 if quick else 8.0))
    with tempfile.TemporaryDirectory(prefix="t-", dir=folder) as place:
        found.throughput = throughput.measure(Path(place), 2 if quick else 5, 64 if quick else 256)
    with tempfile.TemporaryDirectory(prefix="c-", dir=folder) as place:
        found.creation = creation.measure(Path(place), 5 if quick else 20)
    with tempfile.TemporaryDirectory(prefix="s-", dir=folder) as place:
        found.scale = scale.measure(Path(place), 5 if quick else 100, 5.0 if quick else scale.IDLE_SECONDS)
    return found


def render(found: Networks) -> list[str]:
    """Markdown, without a heading of the section."""
    return [
        *_latency(found.latencies),
        *_throughput(found.throughput),
        *_creation(found.creation),
        *_scale(found.scale),
    ]


def _latency(latencies: list[Latency]) -> list[str]:
    if not latencies:
        return []
    middle = sorted(latencies, key=lambda one: one.calls_loaded.most)[len(latencies) // 2]
    rows = (
        ("a name, asked in the VM", middle.names_idle, middle.names_loaded),
        ("a vault, read through ARM", middle.calls_idle, middle.calls_loaded),
    )
    lines = [
        "### Beside a backup",
        "",
        f"Latency with nothing going on, and while the agent backs up through the endpoint ({middle.rate / 1e6:.0f} MB/s stored; agent,",
        "service and probers share the cores). Of several runs the middle one.",
        "",
        "| what | idle p50, ms | loaded p50 | ratio | idle p99, ms | loaded p99 | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for what, idle, loaded in rows:
        lines.append(f"| {what} | {_pair(idle.half, loaded.half)} | {_pair(idle.most, loaded.most)} |")
    return [*lines, ""]


def _pair(idle: float, loaded: float) -> str:
    return f"{idle * 1e3:.2f} | {loaded * 1e3:.2f} | {loaded / idle:.1f}"


def _throughput(found: Throughput | None) -> list[str]:
    if found is None:
        return []
    lines = [
        "### Through an endpoint",
        "",
        "One TLS connection with one upload and one download; the same server on loopback takes turns with it. Medians; bytes stay in",
        "memory.",
        "",
        "| direction | endpoint, MB/s | loopback, MB/s | ratio | client CPU s/GiB | loopback's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for direction, what in (("up", "upload"), ("down", "download")):
        rates = [way.rate(direction) / 1e6 for way in (found.endpoint, found.loopback)]
        cpu = [way.spent(direction) for way in (found.endpoint, found.loopback)]
        lines.append(
            f"| {what} | {rates[0]:.0f} | {rates[1]:.0f} | {found.ratio(direction):.2f} | {cpu[0]:.2f} | {cpu[1]:.2f} |"
        )
    server = [way.served() for way in (found.endpoint, found.loopback)]
    return [*lines, "", f"The server's CPU, both directions, s/GiB: {server[0]:.2f}; on loopback {server[1]:.2f}.", ""]


def _creation(found: Creation | None) -> list[str]:
    if found is None:
        return []
    rows = {
        "network with VM, eight endpoint addresses and its listening sockets, in the fabric": found.fabric,
        "PUT of a virtual network": found.network,
        "PUT of a VM": found.machine,
        "PUT of a vault": found.vault,
        "PUT of a private endpoint, until addresses and names answer": found.endpoint,
    }
    lines = ["### Made anew", "", "| what | median, ms |", "| --- | ---: |"]
    return [*lines, *(f"| {what} | {seconds * 1e3:.1f} |" for what, seconds in rows.items()), ""]


def _scale(found: Scale | None) -> list[str]:
    if found is None:
        return []
    rows = (
        ("made through ARM, eight calls at a time (vault, endpoint, zone group each), s", f"{found.made:.0f}"),
        ("PUT of an endpoint in the empty deployment, ms", f"{found.first * 1e3:.0f}"),
        ("PUT of an endpoint in the full one, ms", f"{found.last * 1e3:.0f}"),
        ("PUT of a vault in the empty deployment, ms", f"{found.vault_first * 1e3:.0f}"),
        ("PUT of a vault in the full one, ms", f"{found.vault_last * 1e3:.0f}"),
        ("`undercroft up` to ready, every network, address and name in place, s", f"{found.restart:.1f}"),
        ("memory of all processes after a start, empty, MiB", f"{found.memory_empty / MIB:.0f}"),
        ("memory of all processes after a start, full, MiB", f"{found.memory_full / MIB:.0f}"),
        ("memory per endpoint, kB", f"{found.memory_per_endpoint / 1000:.1f}"),
        ("CPU of all processes while nothing is asked, s per minute", f"{found.idle_cpu:.2f}"),
        ("`undercroft reconcile`, s", f"{found.reconcile:.2f}"),
    )
    lines = [
        f"### {found.endpoints:,} endpoints in {found.networks} networks",
        "",
        "Eight addresses each, one vault each, all their records in one zone that every network sees.",
        "",
        "| what | |",
        "| --- | ---: |",
    ]
    return [*lines, *(f"| {what} | {value} |" for what, value in rows), ""]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description="What networks cost.")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it work, not how fast")
    parser.add_argument("--reps", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ut-bench-") as folder:
        print("\n".join(render(measure(Path(folder), chosen.reps, quick=chosen.quick))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
