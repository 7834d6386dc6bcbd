"""The results as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.dataset import Extent
from bench.measure import Measured
from bench.service import Timings

__all__ = ["PHASES", "Results", "machine", "render"]

PHASES = ("first", "again", "unchanged", "restore")
PHASE_TITLES = {
    "first": "first backup",
    "again": "again after a change",
    "unchanged": "again, unchanged",
    "restore": "restore",
}
OURS = "undercroft"


@dataclass
class Results:
    """Filled while the benchmark runs; keys of ``runs`` are (data set, peer, phase)."""

    versions: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    extents: dict[str, tuple[str, Extent, Extent]] = field(default_factory=dict)
    runs: dict[tuple[str, str, str], list[Measured]] = field(default_factory=dict)
    stored: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    timings: list[Timings] = field(default_factory=list)
    service_cpu: list[float] = field(default_factory=list)
    service_memory: list[int] = field(default_factory=list)

    def add(self, data: str, peer: str, phase: str, measured: Measured) -> None:
        self.runs.setdefault((data, peer, phase), []).append(measured)

    def seconds(self, data: str, peer: str, phase: str) -> list[float]:
        return [measured.seconds for measured in self.runs.get((data, peer, phase), [])]


def machine() -> list[str]:
    """Processor, memory, kernel, file system of the temporary folder."""
    models = {
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    }
    total = int(Path("/proc/meminfo").read_text("ascii").split()[1]) // 1024
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    load = os.getloadavg()[0]
    return [
        f"{os.cpu_count()} cores ({', '.join(sorted(models)) or platform.machine()}), {total:,} MiB of memory",
        f"{release}, kernel {platform.release()}, Python {platform.python_version()}",
        f"one-minute load when it started: {load:.1f}",
    ]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median (least–most)."""
    if not values:
        return "—"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def heading(*titles: str) -> list[str]:
    return [row(*titles), row("---", *["---:"] * (len(titles) - 1))]


def render(results: Results, machine_lines: Sequence[str], repetitions: int, when: str) -> str:
    lines = ["# Benchmark", "", f"Measured {when} by `scripts/bench`, {repetitions} repetition(s), on", ""]
    lines += [f"- {line}" for line in machine_lines]
    lines += ["", "Programs:", ""] + [f"- {name}: {version}" for name, version in results.versions.items()]
    lines += [f"- {name}: not installed here, not measured" for name in results.absent]
    lines += [
        "",
        "Peers take turns on the same data, in turned order every second time; caches are warm; every run starts with a new",
        "repository, and every restore is compared with its source, content and all. Seconds are medians (least–most). CPU is user and",
        "system time of the backup program; memory is the peak of the summed PSS of its processes. Undercroft's agent runs in a VM and",
        "sends everything through the private endpoint, over TLS, to the service on the same machine; the peers write to local disk.",
        "",
        "## Data",
        "",
        *heading("set", "files", "MiB", "changed files", "MiB in them"),
    ]
    for data, (what, whole, changed) in results.extents.items():
        lines.append(
            row(f"{data}: {what}", f"{whole.files:,}", mib(whole.bytes), f"{changed.files:,}", mib(changed.bytes))
        )
    peers = list(results.versions)
    for data, (what, whole, _) in results.extents.items():
        lines += [
            "",
            f"## Set {data}: {what}",
            "",
            *heading("phase", "program", "seconds", "MB/s", "CPU s", "peak MiB"),
        ]
        for phase in PHASES:
            for peer in peers:
                runs = results.runs.get((data, peer, phase), [])
                if runs:
                    seconds = [run.seconds for run in runs]
                    rate = f"{whole.bytes / statistics.median(seconds) / 1e6:.0f}"
                    cpu = f"{statistics.median(run.cpu for run in runs):.1f}"
                    peak = mib(max(run.memory for run in runs))
                    lines.append(row(PHASE_TITLES[phase], peer, spread(seconds), rate, cpu, peak))
        lines += ["", "Stored after all backups, MiB: " + ", ".join(
            f"{peer} {mib(statistics.median(results.stored[data, peer]))}" for peer in peers if (data, peer) in results.stored
        )]  # fmt: skip
    lines += ratios(results, peers)
    lines += service_lines(results)
    return "\n".join(lines) + "\n"


def ratios(results: Results, peers: Sequence[str]) -> list[str]:
    others = [peer for peer in peers if peer != OURS]
    if OURS not in peers or not others:
        return []
    titles = [PHASE_TITLES[phase] for phase in PHASES]
    lines = [
        "",
        "## Ratios",
        "",
        "Their median seconds divided by ours; above 1 Undercroft is faster.",
        "",
        *heading("set, program", *titles),
    ]
    for data in results.extents:
        for peer in others:
            cells = []
            for phase in PHASES:
                theirs, ours = results.seconds(data, peer, phase), results.seconds(data, OURS, phase)
                cells.append(f"{statistics.median(theirs) / statistics.median(ours):.2f}" if theirs and ours else "—")
            lines.append(row(f"{data}, {peer}", *cells))
    return lines


def service_lines(results: Results) -> list[str]:
    if not results.timings:
        return []
    figures: Mapping[str, Sequence[float]] = {
        "second start of `up` to ready, s": [timing.second_start for timing in results.timings],
        "zone-group PUT to first right DNS answer, s": [timing.name_answered for timing in results.timings],
        "endpoint PUT to first accepted TLS connection, s": [timing.connection_accepted for timing in results.timings],
    }
    lines = ["", "## The service", "", *heading("what", "median (least–most)")]
    lines += [row(what, spread(values, 3)) for what, values in figures.items()]
    idle = [timing.idle_memory / (1 << 20) for timing in results.timings]
    lines.append(row("idle memory of all its processes (PSS), MiB", spread(idle, 0)))
    if results.service_memory:
        lines.append(row("its memory during backups and restores, peak, MiB", mib(max(results.service_memory))))
        lines.append(row("its CPU in one backup or restore, most, s", f"{max(results.service_cpu):.1f}"))
    return lines
