"""Names: our name server beside dnsmasq and unbound, one process and one thread each, over the same path.

A *stage* is a pair of network namespaces, as the fabric lays them out: the server's with 168.63.129.16 on ``lo``, the client's behind a
veth. Every server has a stage of its own and the same zone of 10,000 records. ``dnsperf`` in the client's namespace asks, the servers
taking turns: 100 names again and again (cached), 10,000 names in turn (more than our cache holds: each is worked out anew), and
names that nobody has asked before and nobody has (NXDOMAIN). CPU is what the server's own process used, from ``/proc``. Latency is taken apart, at
2,000 questions a second, one at a time from each of four clients.

Without root everything runs in a user namespace of its own. ``python -m bench.names`` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import cpu_seconds, proportional_memory
from bench.peers import Failed
from undercroft.clock import SystemClock
from undercroft.dns.server import NameServer
from undercroft.dns.views import NetworkView, PublicNames, RecordSetView, ZoneView

__all__ = ["ROWS", "SERVERS", "Row", "measure", "render"]

ZONE = "privatelink.blob.core.windows.net"
WIRE = "168.63.129.16"
RECORDS = 10_000
SERVERS = ("undercroft", "dnsmasq", "unbound")
ROWS = {
    "cached": "100 names again and again",
    "uncached": "10,000 names in turn",
    "missing": "names that nobody has, each once",
}
_NESTED = "UNDERCROFT_BENCH_NAMESPACE"
"""In the environment: this process was started again in a user namespace."""
_PACED = 2_000
_STARTING_SECONDS = 30.0


@dataclass
class Row:
    """What one server did with one kind of question; a figure per repetition."""

    what: str
    server: str
    rate: list[float] = field(default_factory=list)
    """Answers per second."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of the server's CPU for 100,000 answers."""
    lost: int = 0
    median: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    """Latency in seconds: the median, and the 99th percentile."""
    memory: int = 0


def address(number: int) -> str:
    return f"10.{number // 250 // 250}.{number // 250 % 250}.{number % 250 + 1}"


class Stage:
    """Two namespaces, held by sleeping processes; ``server`` and ``client`` run commands in them."""

    def __init__(self, stack: ExitStack) -> None:
        self._holders = [self._hold(stack) for _ in range(2)]
        inner, outer = self._holders
        ip = ["ip", "link", "add", "server", "netns", str(inner), "type", "veth", "peer", "name", "client"]
        run([*ip, "netns", str(outer)])
        for pid, words in (
            (inner, ("addr", "add", f"{WIRE}/32", "dev", "lo")),
            (inner, ("link", "set", "lo", "up")),
            (inner, ("addr", "add", "10.255.0.1/24", "dev", "server")),
            (inner, ("link", "set", "server", "up")),
            (outer, ("link", "set", "lo", "up")),
            (outer, ("addr", "add", "10.255.0.4/24", "dev", "client")),
            (outer, ("link", "set", "client", "up")),
            (outer, ("route", "add", WIRE, "via", "10.255.0.1")),
        ):
            run([*self.inside(pid), "ip", *words])

    @staticmethod
    def _hold(stack: ExitStack) -> int:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        own = os.stat("/proc/self/ns/net").st_ino
        for _ in range(500):
            if os.stat(f"/proc/{holder.pid}/ns/net").st_ino != own:
                return holder.pid
            time.sleep(0.01)
        raise Failed("no network namespace could be made")

    @staticmethod
    def inside(pid: int) -> list[str]:
        return ["nsenter", "--net", "--target", str(pid)]

    @property
    def server(self) -> list[str]:
        return self.inside(self._holders[0])

    @property
    def client(self) -> list[str]:
        return self.inside(self._holders[1])


def run(command: Sequence[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Failed(f"{' '.join(command)}\nended with {ran.returncode}:\n{(ran.stdout + ran.stderr).strip()[-2000:]}")
    return ran.stdout


# --- servers ---------------------------------------------------------------------------------------------------------


def _dnsmasq(folder: Path) -> list[str]:
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{address(n)} acct{n}.{ZONE}\n" for n in range(RECORDS)), "ascii")
    options = ["--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", f"--local=/{ZONE}/", "--local-ttl=10"]
    options += [f"--listen-address={WIRE}", "--bind-interfaces", "--pid-file=", "--conf-file=/dev/null", "--user=root"]
    # In a user namespace it may not drop its groups, and only this mode does not try to.
    foreground = "--no-daemon" if _NESTED in os.environ else "--keep-in-foreground"
    return ["dnsmasq", foreground, *options]


def _unbound(folder: Path) -> list[str]:
    data = "".join(f'local-data: "acct{n}.{ZONE}. 10 IN A {address(n)}"\n' for n in range(RECORDS))
    configuration = folder / "unbound.conf"
    configuration.write_text(
        f"""server:
num-threads: 1
interface: {WIRE}
access-control: 0.0.0.0/0 allow
do-daemonize: no
username: ""
chroot: ""
directory: "{folder}"
pidfile: ""
use-syslog: no
module-config: "iterator"
local-zone: "{ZONE}." static
{data}remote-control:
control-enable: no
""",
        "ascii",
    )
    return ["unbound", "-d", "-c", str(configuration)]


def _undercroft(_folder: Path) -> list[str]:
    return [sys.executable, "-m", "bench.names", "--serve"]


_COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "undercroft": _undercroft,
    "dnsmasq": _dnsmasq,
    "unbound": _unbound,
}


async def _serve() -> None:
    """Our server in the namespace in which this process is: the class that serves every network, without the limit per client."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for one in (udp, tcp):
        one.bind((WIRE, 53))
    tcp.listen(64)
    server = NameServer(SystemClock())
    await server.serve("bench", udp, tcp)
    server.publish_public(PublicNames())
    records = {(f"acct{n}", "A"): RecordSetView(10, (address(n),)) for n in range(RECORDS)}
    server.publish("bench", NetworkView((ZoneView(ZONE, records),)))
    await asyncio.Event().wait()


class Server:
    def __init__(self, name: str, stage: Stage, folder: Path, stack: ExitStack) -> None:
        self.name, self._stage = name, stage
        folder.mkdir()
        log = stack.enter_context((folder / "log").open("wb"))
        self._process = subprocess.Popen([*stage.server, *_COMMANDS[name](folder)], stdout=log, stderr=log)
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)
        self._answers(folder)

    def _answers(self, folder: Path) -> None:
        """Until it does, with the right address: nobody else may be on its port."""
        until = time.monotonic() + _STARTING_SECONDS
        said = ""
        while time.monotonic() < until and self._process.poll() is None:
            command = [*self._stage.client, "dig", f"@{WIRE}", "+short", "+tries=1", "+time=1", f"acct77.{ZONE}"]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            if said == address(77):
                return
            time.sleep(0.1)
        log = (folder / "log").read_text("utf-8", "replace")[-2000:]
        raise Failed(f"{self.name} does not answer ('{said}'): {log}")

    def dnsperf(self, questions: Path, seconds: float, *more: str) -> tuple[str, float]:
        """What dnsperf printed, and the CPU seconds that the server used meanwhile."""
        command = [*self._stage.client, "dnsperf", "-s", WIRE, "-d", str(questions), "-l", f"{seconds:g}", *more]
        before = cpu_seconds([self._process.pid])
        text = run(command)
        return text, cpu_seconds([self._process.pid]) - before

    @property
    def memory(self) -> int:
        return proportional_memory([self._process.pid])


# --- measuring -------------------------------------------------------------------------------------------------------


def _questions(folder: Path, seconds: float) -> dict[str, Path]:
    names = {
        "cached": [f"acct{n}" for n in range(100)],
        "uncached": [f"acct{n}" for n in range(RECORDS)],
        "missing": [f"x{random.getrandbits(40):x}" for _ in range(int(100_000 * (seconds + 1)))],
    }
    found = {}
    for what, labels in names.items():
        found[what] = folder / what
        found[what].write_text("".join(f"{label}.{ZONE} A\n" for label in labels), "ascii")
    return found


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise Failed(f"dnsperf printed no '{pattern}':\n{text[-2000:]}")
    return float(match.group(1))


def _measured(row: Row, server: Server, questions: Path, seconds: float) -> None:
    text, cpu = server.dnsperf(questions, seconds, "-c", "4", "-q", "100")
    answers = _number(r"Queries completed:\s+(\d+)", text)
    row.rate.append(_number(r"Queries per second:\s+([\d.]+)", text))
    row.cpu.append(cpu / answers * 100_000)
    row.lost += int(_number(r"Queries lost:\s+(\d+)", text))
    text, _ = server.dnsperf(questions, max(1.0, seconds / 2), "-c", "4", "-q", "4", "-Q", str(_PACED), "-v")
    took = sorted(float(value) for value in re.findall(r"^> \S+ \S+ A ([\d.]+)$", text, re.MULTILINE))
    if not took:
        raise Failed(f"dnsperf printed no latencies:\n{text[:2000]}")
    row.median.append(took[len(took) // 2])
    row.high.append(took[len(took) * 99 // 100])
    row.memory = max(row.memory, server.memory)


def measure(folder: Path, repetitions: int = 3, seconds: float = 4.0, servers: Sequence[str] = SERVERS) -> list[Row]:
    """The rows of every kind of question and every server, in order. Needs dnsperf, and the right to make namespaces."""
    missing = [one for one in ("dnsperf", "dig", *servers[1:]) if shutil.which(one, path=_PATH) is None]
    if missing:
        raise Failed(f"{', '.join(missing)} not installed: scripts/setup --test installs them")
    rows = {(what, name): Row(what, name) for what in ROWS for name in servers}
    questions = _questions(folder, seconds)
    with ExitStack() as stack:
        running = [Server(name, Stage(stack), folder / name, stack) for name in servers]
        for repetition in range(repetitions):
            for what in ROWS:
                turn = repetition % len(running)
                for server in running[turn:] + running[:turn]:
                    _measured(rows[what, server.name], server, questions[what], seconds)
    return list(rows.values())


_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def render(rows: Sequence[Row]) -> list[str]:
    """A Markdown table, medians of the repetitions."""
    lines = [
        "| names | server | answers/s | of the faster peer | CPU s per 100,000 | lost | p50 µs | p99 µs | MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        others = [statistics.median(one.rate) for one in rows if one.what == row.what and one.server != "undercroft"]
        rate = statistics.median(row.rate)
        ratio = f"{rate / max(others):.2f}" if others and row.server == "undercroft" else ""
        cells = [ROWS[row.what], row.server, f"{rate:,.0f}", ratio, f"{statistics.median(row.cpu):.2f}", str(row.lost)]
        cells += [f"{statistics.median(one) * 1e6:.0f}" for one in (row.median, row.high)]
        lines.append(f"| {' | '.join(cells)} | {row.memory / 1048576:.0f} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.names", description="Our name server beside dnsmasq and unbound."
    )
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--servers", default=",".join(SERVERS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ["PATH"] = _PATH
    if chosen.serve:
        asyncio.run(_serve())
        return 0
    if os.geteuid() != 0 and _NESTED not in os.environ:
        os.environ[_NESTED] = "1"
        os.execvp(
            "unshare",
            ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-m", "bench.names", *sys.argv[1:]],
        )
    try:
        with tempfile.TemporaryDirectory(prefix="undercroft-names-") as folder:
            rows = measure(Path(folder), chosen.reps, chosen.seconds, chosen.servers.split(","))
    except Failed as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    print("\n".join(render(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
