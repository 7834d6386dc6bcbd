"""Everything that ``scripts/test`` runs, in parts, and the proof that nothing is left behind.

    all       every test except those of the real azure-cli and those that the next part runs, on two workers
    rootless  (as root) the parts that differ without privilege: from a readable copy, as an unprivileged user
    az        the real azure-cli, one after the other

This process is the reaper of everything the tests start (PR_SET_CHILD_SUBREAPER): a process that outlives its part shows up
as our child, whatever it did to get away. New mounts, links, named namespaces and files in our TMPDIR count as well.
Options are handed to pytest; ``--fast`` leaves out slow tests, the rootless part and azure-cli.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.checkout import CHECKOUT, files
from tests.peers import under_ci

ORDINARY = 61234
"""A user id that nobody has. Not 65534: inside a user namespace that stands for every owner that is not mapped."""
PART_SECONDS = 25 * 60
GRACE_SECONDS = 5.0
NO_TESTS = 5
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Outcome:
    part: str
    status: int
    counts: Counter[str]
    bad: tuple[str, ...]
    seconds: float


# --- what is there before and after ----------------------------------------------------------------------------------


def descendants(of: int) -> dict[int, str]:
    """Pid and command line of every living process below ``of``."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found: dict[int, str] = {}
    todo = [of]
    while todo:
        above = todo.pop()
        for pid, parent in parents.items():
            if parent == above and pid not in found:
                found[pid] = command_line(pid)
                todo.append(pid)
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()[:160]
    except OSError:
        return "(ended)"


def reap() -> None:
    """Collect orphans that were handed to us and have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def names(folder: str, prefix: str = "") -> set[str]:
    path = Path(folder)
    return (
        {f"{folder}/{item.name}" for item in path.iterdir() if item.name.startswith(prefix)} if path.is_dir() else set()
    )


def world() -> set[str]:
    """What tests could leave on this machine besides processes. Names only: contents may change."""
    mounts = {"mount " + line.split()[4] for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines()}
    seen = mounts | names("/run/netns") | names("/sys/class/net")
    if under_ci():  # nobody else works there: elsewhere a checkout and /tmp change by themselves
        seen |= names("/tmp", "undercroft") | names("/dev/shm", "undercroft") | {str(path) for path in files()}
    return seen


def end(running: dict[int, str]) -> None:
    """Kill them, and what they started while we looked."""
    for _ in range(50):
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1 if running else 0)
        reap()
        running = descendants(os.getpid())
        if not running:
            return


def leftovers(before: set[str], temporary: Path) -> list[str]:
    """Everything that should not be there any more; processes are ended here, after they were named."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (running := descendants(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.1)
        reap()
    found = [f"process {pid}: {command}" for pid, command in running.items()]
    end(running)
    while (strange := world() - before) and time.monotonic() < deadline:
        time.sleep(0.2)  # the kernel takes namespaces down in the background
    found += sorted(strange)
    found += [f"temporary {item}" for item in sorted(temporary.iterdir())]
    return found


# --- one part --------------------------------------------------------------------------------------------------------


@contextmanager
def workspace(owner: int | None = None) -> Iterator[Path]:
    """A short-named folder (socket paths have 108 bytes) with ``tmp`` and ``pytest`` in it; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ut-"))
    try:
        path.chmod(0o755)
        for name in ("tmp", "home", "out"):
            (path / name).mkdir(mode=0o700)
            if owner is not None:
                os.chown(path / name, owner, owner)
        yield path
    finally:
        for folder, names, _ in os.walk(path):  # tests leave folders that their own owner may not open
            for name in names:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
        shutil.rmtree(path)


def pytest_command(python: Path, place: Path, part: str, arguments: Sequence[str]) -> list[str]:
    return [
        str(python),
        *("-m", "pytest", "-p", "no:cacheprovider", "--color=no" if not sys.stdout.isatty() else "--color=yes"),
        *("--basetemp", str(place / "out" / "t"), "--junitxml", str(place / "out" / f"{part}.xml")),
        *("-o", "tmp_path_retention_policy=failed", "-o", "faulthandler_timeout=300", "-o", "junit_family=xunit1"),
        *arguments,
    ]


def environment(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UNDERCROFT_", "PYTEST_"))}
    kept.pop("PYTHONPATH", None)
    return kept | {
        "TMPDIR": str(place / "tmp"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(place / "out" / "hypothesis"),
        "AZURE_CORE_COLLECT_TELEMETRY": "0",
    }


def run(part: str, command: list[str], place: Path, folder: Path, variables: dict[str, str]) -> Outcome:
    print(f"\n######## {part}\n", flush=True)
    begun = time.monotonic()
    before = world()
    process = subprocess.Popen(command, cwd=folder, env=variables, stdin=subprocess.DEVNULL)
    try:
        status = process.wait(PART_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{part}: no end after {PART_SECONDS} s; ending it", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(30) or 1
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait() or 1
    except KeyboardInterrupt:
        end(descendants(os.getpid()))
        raise
    seconds = time.monotonic() - begun
    counts, bad = read_report(place / "out" / f"{part}.xml")
    left = leftovers(before, place / "tmp")
    for line in left:
        print(f"LEFT BEHIND by {part}: {line}", flush=True)
    if left:
        counts["left behind"] += len(left)
        bad = (*bad, *(f"left behind: {line}" for line in left))
    return Outcome(part, status, counts, bad, seconds)


def read_report(path: Path) -> tuple[Counter[str], tuple[str, ...]]:
    """Counts by outcome, and the failed tests' names, from pytest's own report."""
    counts: Counter[str] = Counter()
    bad: list[str] = []
    if not path.exists():
        return counts, ("no report: pytest did not get to its end",)
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = next((kind for kind in ("error", "failure", "skipped") if kind in kinds), "passed")
        counts[{"failure": "failed", "error": "errors"}.get(outcome, outcome)] += 1
        if outcome in ("error", "failure"):
            bad.append(f"{case.get('file') or case.get('classname')}::{case.get('name')}")
    return counts, tuple(bad)


def readable_copy(into: Path) -> Path:
    """The checkout's files (tracked and new ones) and its environment, where any user can read them."""
    copy = into / "checkout"
    for path in files():
        target = copy / path.relative_to(CHECKOUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    shutil.copytree(CHECKOUT / ".venv", copy / ".venv", symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
    return copy


def run_rootless(arguments: Sequence[str]) -> Outcome:
    drop = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--"]
    with workspace(ORDINARY) as place:
        copy = readable_copy(place)
        command = [*drop, *pytest_command(copy / ".venv/bin/python", place, "rootless", arguments)]
        variables = environment(place) | {"HOME": str(place / "home"), "UNDERCROFT_TEST_ROOTLESS": "1"}
        variables |= {"USER": "nobody", "LOGNAME": "nobody", "PYTHONDONTWRITEBYTECODE": "1"}
        return run("rootless", command, place, copy, variables)


def run_here(part: str, arguments: Sequence[str], variables: Mapping[str, str] = MappingProxyType({})) -> Outcome:
    with workspace() as place:
        python = CHECKOUT / ".venv/bin/python"
        command = pytest_command(python, place, part, arguments)
        return run(part, command, place, CHECKOUT, environment(place) | dict(variables))


# --- all of them -----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.umask(0o022)
    signal.signal(signal.SIGTERM, interrupted)
    fast = "--fast" in arguments
    handed = [argument for argument in arguments if argument != "--fast"]
    workers = ["-n", "2", "--dist", "loadfile"]
    begun = time.monotonic()
    rootless_too = os.geteuid() == 0 and not fast
    later = {"UNDERCROFT_TEST_ROOTLESS_LATER": "1"} if rootless_too else {}
    outcomes = [run_here("all", [*workers, "-m", "not az and not slow" if fast else "not az", *handed], later)]
    if not fast:
        if rootless_too:
            outcomes.append(run_rootless([*workers, *handed]))
        outcomes.append(run_here("az", ["-m", "az", *handed]))
    return conclude(outcomes, bool(handed), time.monotonic() - begun)


def interrupted(_number: int, _frame: object) -> None:
    """A cancelled run ends what it started and removes its folders on the way out."""
    raise KeyboardInterrupt


def conclude(outcomes: list[Outcome], narrowed: bool, seconds: float) -> int:
    """The closing table and line. No tests in a part is a failure, unless the caller chose tests (-k, paths)."""
    total: Counter[str] = Counter()
    failed = False
    print("\n" + "=" * 30 + " parts " + "=" * 30)
    for outcome in outcomes:
        total += outcome.counts
        ran = outcome.status != NO_TESTS
        good = not outcome.counts["left behind"] and (outcome.status == 0 or (narrowed and not ran))
        failed |= not good
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.counts.items())) or "no tests"
        print(
            f"{'ok    ' if good else 'FAILED'} {outcome.part:10} {outcome.seconds:7.1f} s  {said}  (pytest {outcome.status})"
        )
        for name in outcome.bad if ran else ():
            print(f"       {name}")
    failed |= all(outcome.status == NO_TESTS for outcome in outcomes)
    order = ("failed", "errors", "left behind", "passed", "skipped")
    said = ", ".join(f"{total[kind]} {kind}" for kind in order if total[kind]) or "no tests ran"
    print(f"{'=' * 20} {said} in {seconds:.2f}s {'=' * 20}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
