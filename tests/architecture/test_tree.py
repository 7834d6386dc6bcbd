"""The tree itself: sizes, names, and what no committed file may contain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.checkout import CHECKOUT, files

LONGEST_FILE = 700
LONGEST_DECISION = 80
DUMPING_GROUNDS = {"utils", "util", "helpers", "helper", "common", "misc", "core"}

# Written in pieces so that this file does not contain what it looks for.
FORBIDDEN = {
    "a package registry's host": r"\b(?:files\.python"
    + r"hosted\.org|(?:test\.)?py"
    + r"pi\.org|registry\.npm"
    + r"js\.org)\b",
    "an index option": r"--(?:extra-)?index-" + r"url[ =]\S|--find-" + r"links[ =]\S|--trusted-" + r"host[ =]\S",
    "an absolute path of somebody's machine": r"(?<![\w.}/])/(?:wo"
    + r"rk|ro"
    + r"ot|ho"
    + r"me/\w+|Us"
    + r"ers/\w+)/[\w.]",
}


def python_files() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def shown(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def test_no_file_is_longer_than_a_noun() -> None:
    lengths = {shown(path): len(path.read_bytes().splitlines()) for path in python_files()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_dumping_ground_names() -> None:
    assert [
        shown(path) for path in python_files() if {path.stem, *path.relative_to(CHECKOUT).parts} & DUMPING_GROUNDS
    ] == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_contains(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in files():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{shown(path)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}" for match in pattern.finditer(text)
        ]
    assert found == []


def test_every_package_says_what_it_is() -> None:
    """Each package opens with its vocabulary and its algorithm (STYLE, habit 21)."""
    silent = [
        shown(path)
        for path in sorted((CHECKOUT / "src" / "undercroft").rglob("__init__.py"))
        if ast.get_docstring(ast.parse(path.read_text("utf-8"))) is None
    ]
    assert silent == []


def test_decisions_are_short() -> None:
    lengths = {
        shown(path): len(path.read_text("utf-8").splitlines()) for path in (CHECKOUT / "docs/decisions").glob("*.md")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_DECISION} == {}


def test_changelog_fragments_are_well_formed() -> None:
    """See changelog/README.md."""
    wrong = []
    for path in sorted((CHECKOUT / "changelog" / "unreleased").iterdir()):
        if path.name.startswith("."):
            continue
        text = path.read_text("utf-8")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*\.md", path.name):
            wrong.append(f"{path.name}: the name is lower-case-with-hyphens.md")
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        if len(re.findall(r"[.!?](?:\s|$)", prose)) < 2 or not re.search(r"\b(?:now|no longer)\b", prose):
            wrong.append(
                f"{path.name}: it says what was (past), and what there is now (present), in two sentences or more"
            )
        if not text.endswith("\n"):
            wrong.append(f"{path.name}: the last line ends with a line feed")
    assert wrong == []
