"""Every error of ours can be shown on every wire, by that wire's one renderer (STYLE, habits 16 and 17).

The tree is walked as it is when all of the package is imported, so an error class that a package adds is tested as well.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

import undercroft
from undercroft import errors
from undercroft.arm import errors as arm_errors
from undercroft.cli import main as command_line
from undercroft.dataplane import refusals, wire
from undercroft.errors import UndercroftError

MESSAGE = "What was wrong <here> & what to do next."


def _import_all() -> list[str]:
    """What could not be imported; told by a test, so that the others run all the same."""
    failed: list[str] = []
    for module in pkgutil.walk_packages(undercroft.__path__, "undercroft.", onerror=failed.append):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                failed.append(f"{module.name}: {error}")
    return failed


def tree(root: type[UndercroftError] = UndercroftError) -> Iterator[type[UndercroftError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


NOT_IMPORTED = _import_all()
CLASSES = sorted(set(tree()), key=lambda kind: kind.__qualname__)
PLAIN = [kind for kind in CLASSES if kind.__init__ is UndercroftError.__init__]
every_error = pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)


def test_every_module_can_be_imported() -> None:
    assert NOT_IMPORTED == []


def test_the_tree_is_listed() -> None:
    there = {kind.__name__ for kind in CLASSES if kind.__module__ == "undercroft.errors"}
    assert set(errors.__all__) == there
    assert errors.__doc__ is not None
    assert [name for name in there if name not in errors.__doc__] == []


@every_error
def test_class_attributes_make_sense(kind: type[UndercroftError]) -> None:
    assert kind.default_code.isidentifier() and kind.default_code[0].isupper()
    assert 400 <= kind.status <= 599
    assert kind.exit_status in (1, 2, 3)


@every_error
def test_arm_json(kind: type[UndercroftError]) -> None:
    reply = arm_errors.render(kind(MESSAGE, target="location"), "https://login.example")
    assert reply.status == kind.status
    assert json.loads(json.dumps(reply.body))["error"] == {
        "code": kind.default_code,
        "message": MESSAGE,
        "target": "location",
        "details": [],
    }


@every_error
def test_backup_service_json(kind: type[UndercroftError]) -> None:
    response = refusals.render(kind(MESSAGE))
    assert response.status == kind.status
    assert isinstance(response.body, bytes)
    error = json.loads(response.body)["error"]
    assert (error["code"], error["message"]) == (kind.default_code, MESSAGE)


@every_error
def test_storage_xml(kind: type[UndercroftError]) -> None:
    response = wire.render(kind(MESSAGE), "request-1", datetime(2026, 1, 1, tzinfo=UTC))
    assert response.status == kind.status
    assert isinstance(response.body, bytes)
    root = ElementTree.fromstring(response.body)
    assert root.findtext("Code") == response.headers["x-ms-error-code"]
    assert (root.findtext("Message") or "").startswith(MESSAGE)
    assert wire.render(kind(MESSAGE), "request-1", datetime(2026, 1, 1, tzinfo=UTC), head=True).body is None


@every_error
def test_command_line(
    kind: type[UndercroftError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def application() -> object:
        def run(*_: object, **__: object) -> None:
            raise kind(MESSAGE)

        return run

    monkeypatch.setattr(command_line, "application", application)
    assert command_line.main([]) == kind.exit_status
    said = capsys.readouterr()
    assert said.out == ""
    assert MESSAGE in said.err and kind.default_code in said.err and "Traceback" not in said.err
