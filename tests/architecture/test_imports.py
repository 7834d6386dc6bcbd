"""Imports point one way (STYLE, habit 4): a table of packages, read with ``ast``, and no cycles.

Imports inside functions count as well: deferring an import does not change its direction.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT

SOURCE = CHECKOUT / "src" / "undercroft"

LEAVES = {
    "errors",
    "names",
    "clock",
    "trace",
    "config",
    "channel",
    "calls",
    "capacity",
    "allowance",
    "priority",
    "logs",
}
LEAF_IMPORTS: dict[str, set[str]] = {
    "errors": set(),
    "names": {"errors"},
    "config": {"errors", "names"},
    "clock": set(),
    "channel": {"capacity", "errors"},
    "calls": {"channel", "errors"},
    "capacity": {"errors"},
    "allowance": {"clock", "errors"},
    "trace": set(),
    "priority": set(),
    "logs": set(),
}
MAY_IMPORT: dict[str, set[str]] = {  # + LEAVES for each
    "store": set(),
    "state": set(),
    "engine": {"store"},
    "vnet": {"state"},
    "vault": {"state"},
    "identity": {"state"},
    "arm": {"state", "identity"},
    "providers": {"arm", "identity", "vnet", "vault", "state"},
    "fabric": set(),  # told what to build; it reads no state
    "dns": {"vnet"},
    "dataplane": {"identity", "vault", "vnet", "store", "state"},
    "workers": {"state", "vnet", "vault", "fabric", "dns", "engine", "store"},  # engine: its key-free part only
    "agent": {"engine"},
    # One process each (DESIGN section 4): the supervisor only starts and watches; control is the wire of the local socket.
    "control": set(),
    "supervisor": {"control", "fabric"},  # fabric: only to see whether one is running
    "portal": set(),
    "doctor": set(),
    "lab": set(),
    "cli": {
        "node",
        "agent",
        "doctor",
        "lab",
        "control",
        "supervisor",
        "fabric",
        "dns",
    },  # fabric: only to probe, and to see what is running; dns: what custom servers need, and what resolvers answer
}
# Of these packages only the named modules may be imported by those from whom the package itself is kept away.
ONLY_MODULES: dict[tuple[str, str], set[str]] = {
    ("supervisor", "fabric"): {"client", "running"},
    ("cli", "fabric"): {"capabilities", "client", "interface", "probe", "process", "running", "specification"},
    ("cli", "dns"): {"requirements", "exports", "observations", "comparison"},
}
# The composition roots: of the data plane's process, and of everything else but those who use it from outside.
MAY_IMPORT["data"] = {"dataplane", "identity", "state", "store", "vault", "vnet", "workers"}
MAY_IMPORT["node"] = MAY_IMPORT.keys() - {"cli", "data", "agent", "doctor", "lab", "supervisor"}


def packages() -> set[str]:
    """Every package and module directly under ``undercroft`` that holds code."""
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    return folders | {path.stem for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")}


def files_of(package: str) -> list[Path]:
    folder = SOURCE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{package}.py"]


def imported(path: Path, text: str) -> Iterator[tuple[int, str, str | None]]:
    """Line, package and module of every import of ours in a file, relative ones resolved."""
    inside = path.relative_to(SOURCE.parent).parts[:-1]
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(inside[: len(inside) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            modules = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "undercroft" and len(module) > 1 and not module[1].startswith("__"):
                yield node.lineno, module[1], module[2] if len(module) > 2 else None


def edges(package: str) -> Iterator[tuple[Path, int, str, str | None]]:
    for path in files_of(package):
        for line, target, module in imported(path, path.read_text("utf-8")):
            if target != package:
                yield path, line, target, module


def is_allowed(package: str, target: str, module: str | None) -> bool:
    if package in LEAVES:
        return target in LEAF_IMPORTS[package]
    modules = ONLY_MODULES.get((package, target))
    return target in MAY_IMPORT[package] | LEAVES and (modules is None or module in modules)


def test_every_package_is_in_the_table() -> None:
    assert packages() - LEAVES - MAY_IMPORT.keys() == set(), (
        "add it to MAY_IMPORT, with as few imports as it can do with"
    )


@pytest.mark.parametrize("package", sorted(packages() & (LEAVES | MAY_IMPORT.keys())))
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{line}: {package} must not import {target}{'.' + module if module else ''}"
        for path, line, target, module in edges(package)
        if not is_allowed(package, target, module)
    ]
    assert wrong == []


def test_packages_form_no_cycle() -> None:
    known = packages()
    graph = {package: {target for _, _, target, _ in edges(package)} & known for package in known}
    done: set[str] = set()
    while ready := {package for package, targets in graph.items() if package not in done and targets <= done}:
        done |= ready
    cyclic = {package: sorted(targets - done) for package, targets in graph.items() if package not in done}
    assert cyclic == {}


def test_relative_and_deferred_imports_are_seen() -> None:
    text = "from . import a\nfrom ..state import b\nfrom .. import vnet\ndef f():\n    import undercroft.fabric.x\n"
    found = [(target, module) for _, target, module in imported(SOURCE / "vault" / "x.py", text)]
    assert found == [("vault", "a"), ("state", "b"), ("vnet", None), ("fabric", "x")]
