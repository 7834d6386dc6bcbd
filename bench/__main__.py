"""``python -m bench``: build the data, let the peers take turns, print the table."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import names, networks
from bench.dataset import DataSet, Extent, differences, large_files, many_files
from bench.peers import Borg, Failed, Peer, Restic, installed, restored_root
from bench.service import Undercroft, timings
from bench.table import PHASES, Results, machine, render

MIB = 1 << 20
FULL = (Extent(52_000, 1280 * MIB), Extent(3, 1200 * MIB))
QUICK = (Extent(2_000, 30 * MIB), Extent(3, 60 * MIB))
NEEDED_FREE = {False: 14_000 * MIB, True: 1_000 * MIB}
TITLES = {"a": "many files, 4 % of them change", "b": "few large files, 4 % of their content changes"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Undercroft beside restic and borg.")
    parser.add_argument("--quick", action="store_true", help="small data: does it work, not how fast")
    parser.add_argument("--reps", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--sets", default="ab", help="data sets: a (many files), b (large files)")
    parser.add_argument("--peers", default="undercroft,restic,borg", help="which programs, separated by commas")
    parser.add_argument(
        "--only", choices=("backup", "names", "networks"), help="this part alone; the rest of the file stays as it is"
    )
    parser.add_argument("--no-timings", action="store_true", help="leave out start, DNS, connection and idle memory")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)  # so that everything is cleaned up
    try:
        with tempfile.TemporaryDirectory(prefix="undercroft-bench-") as folder:
            for part, run_part in PARTS.items():
                if chosen.only in (None, part):
                    publish(part, run_part(Path(folder), chosen), chosen.write)
            return 0
    except Failed as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything is cleaned up", file=sys.stderr)
        return 130


def interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def backup(folder: Path, chosen: argparse.Namespace) -> str:
    results = Results()
    described = machine()
    free = shutil.disk_usage(folder).free
    if free < NEEDED_FREE[chosen.quick]:
        raise Failed(
            f"{folder} has {free // MIB:,} MiB free; {NEEDED_FREE[chosen.quick] // MIB:,} are needed (choose with TMPDIR)"
        )
    makers = choose(chosen.peers.split(","), results)
    data_sets = build(folder, chosen)
    for data in data_sets:
        whole = data.extent()
        data.swap()
        results.extents[data.name] = (TITLES[data.name], whole, data.changed())
        data.swap()
        say(f"set {data.name}: {whole.files:,} files, {whole.bytes // MIB:,} MiB")
    for repetition in range(chosen.reps):
        for data in data_sets:
            for make in makers if repetition % 2 == 0 else makers[::-1]:
                say(f"repetition {repetition + 1}, set {data.name}, {make.__name__.lower()}")
                run(make(), data, folder, results)
        if not chosen.no_timings and Undercroft in makers:
            say(f"repetition {repetition + 1}, the service's own times")
            with workspace(folder) as place:
                results.timings.append(timings(Path(place)))
    return render(results, described, chosen.reps, time.strftime("%d %b %Y", time.gmtime()))


def of_names(folder: Path, chosen: argparse.Namespace) -> str:
    say("names, beside dnsmasq and unbound")
    rows = names.measure(folder, chosen.reps, 1.0 if chosen.quick else 4.0)
    return section("Names", chosen.reps, names.render(rows))


def of_networks(folder: Path, chosen: argparse.Namespace) -> str:
    say("networks: latency, throughput, creation, scale")
    return section("Networks", chosen.reps, networks.render(networks.measure(folder, chosen.reps, quick=chosen.quick)))


PARTS: dict[str, Callable[[Path, argparse.Namespace], str]] = {
    "backup": backup,
    "names": of_names,
    "networks": of_networks,
}
TITLES_OF_PARTS = {"names": "## Names", "networks": "## Networks", "soak": "## Soak"}
"""``soak`` is made by ``scripts/soak --write``."""


def section(title: str, repetitions: int, lines: list[str]) -> str:
    when = time.strftime("%d %b %Y", time.gmtime())
    described = "".join(f"- {line}\n" for line in machine())
    head = (
        f"## {title}\n\nMeasured {when} by `scripts/bench --only {title.lower()}`, {repetitions} repetition(s), on\n\n"
    )
    return f"{head}{described}\n" + "\n".join(lines).rstrip() + "\n"


def publish(part: str, text: str, file: Path | None) -> None:
    """Print it; in the file it takes the place of what the same part said before."""
    print(text)
    if file is None:
        return
    before = parts_of(file.read_text("utf-8")) if file.exists() else {}
    before[part] = text
    file.write_text("\n".join(before[name].rstrip() + "\n" for name in (*PARTS, "soak") if name in before), "utf-8")


def parts_of(text: str) -> dict[str, str]:
    """The file's parts: that of the backup comes first, and each other begins with its title."""
    found: dict[str, str] = {}
    name = "backup"
    lines: list[str] = []
    for line in [*text.splitlines(), None]:
        begins = next((part for part, title in TITLES_OF_PARTS.items() if line == title), None)
        if line is None or begins:
            if lines:
                found[name] = "\n".join(lines) + "\n"
            name, lines = begins or "", []
        if line is not None:
            lines.append(line)
    return found


def choose(names: list[str], results: Results) -> list[Callable[[], Peer]]:
    known: dict[str, Callable[[], Peer]] = {"undercroft": Undercroft, "restic": Restic, "borg": Borg}
    makers = []
    for name in names:
        if name not in known:
            raise Failed(f"'{name}' is not one of {', '.join(known)}")
        if name != "undercroft" and not installed(name):
            results.absent.append(name)
            continue
        results.versions[name] = known[name]().version()
        makers.append(known[name])
    return makers


def build(folder: Path, chosen: argparse.Namespace) -> list[DataSet]:
    many, large = QUICK if chosen.quick else FULL
    say("building the data")
    a = many_files(folder / "data", many)
    sets = [a] if "a" in chosen.sets else []
    if "b" in chosen.sets:
        sets.append(large_files(folder / "data", large, a.live))
    return sets


def workspace(folder: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="run-", dir=folder)


def run(peer: Peer, data: DataSet, folder: Path, results: Results) -> None:
    """One peer over one data set, from a new repository to a compared restore. Leaves the first version live."""
    changed = False
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as name:
        place = Path(name)
        try:
            peer.prepare(place)
            for phase in PHASES[:3]:
                if phase == "again":
                    data.swap()
                    changed = True
                results.add(data.name, peer.name, phase, peer.back_up(data.live))
            results.stored.setdefault((data.name, peer.name), []).append(peer.stored())
            target = place / "restored"
            target.mkdir()
            results.add(data.name, peer.name, "restore", peer.restore(target))
            wrong = differences(data.live, restored_root(target, data.live))
            if wrong:
                raise Failed(f"{peer.name} restored something else: {'; '.join(wrong)}")
        finally:
            if changed:
                data.swap()
            peer.close()
            if isinstance(peer, Undercroft):
                results.service_cpu += peer.service_cpu
                results.service_memory += peer.service_memory


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
