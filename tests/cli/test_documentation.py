"""``docs/cli.md`` has every command and flag, ``docs/settings.md`` every setting, as they really are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cyclopts import App

from tests.checkout import CHECKOUT
from undercroft.cli.main import application
from undercroft.config import Home, HostInterface, Settings
from undercroft.errors import InvalidInput
from undercroft.names import NameSuffixes

COMMANDS = (CHECKOUT / "docs" / "cli.md").read_text("utf-8")
SETTINGS = (CHECKOUT / "docs" / "settings.md").read_text("utf-8")


def commands(app: App, chain: tuple[str, ...] = ()) -> Iterator[tuple[str, App]]:
    for name in app:
        if name.startswith("-"):
            continue
        part = app[name]
        if any(not inner.startswith("-") for inner in part):
            yield from commands(part, (*chain, name))
        else:
            yield " ".join((*chain, name)), part


def flags(command: App) -> set[str]:
    """Options that can only be given by name, and are shown in the help."""
    return {
        name
        for argument in command.assemble_argument_collection()
        if argument.show and argument.field_info.is_keyword_only
        for name in argument.names
        if name.startswith("-")
    }


EVERY = dict(commands(application()))


@pytest.mark.parametrize("name", EVERY)
def test_a_command_is_documented_with_an_example(name: str) -> None:
    row = next((line for line in COMMANDS.splitlines() if line.startswith(f"| `{name}` |")), None)
    assert row is not None, f"docs/cli.md has no row for '{name}'"
    assert f"undercroft {name}" in row


@pytest.mark.parametrize("name", EVERY)
def test_the_flags_of_a_command_are_documented(name: str) -> None:
    missing = {flag for flag in flags(EVERY[name]) if not re.search(rf"(?<![\w-]){flag}(?![\w-])", COMMANDS)}
    assert not missing


def test_the_documented_commands_and_flags_exist() -> None:
    rows = re.findall(r"^\| `([a-z][a-z -]*)` \| `(.*?)`", COMMANDS, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(EVERY)
    for name, example in rows:
        own = example[example.rindex(f"undercroft {name}") :].split(" -- ")[0]
        used = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", own))
        assert used <= flags(EVERY[name]), f"{name}: {used - flags(EVERY[name])}"


@pytest.mark.parametrize("name", EVERY)
def test_the_help_says_what_every_flag_is(name: str) -> None:
    command = EVERY[name]
    assert (command.help or "").strip()
    described = getattr(command.default_command, "__doc__", "") or ""
    for argument in command.assemble_argument_collection():
        if argument.show and argument.field_info.is_keyword_only:
            in_docstring = re.search(rf"^ +{argument.field_info.name}$", described, re.MULTILINE)
            assert argument.parameter.help or in_docstring, argument.name


@pytest.mark.parametrize(
    ("kind", "struct"), [("Settings", Settings), ("suffixes", NameSuffixes), ("host", HostInterface)]
)
def test_every_setting_is_documented_with_its_default(kind: str, struct: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(struct):
        if field.name in ("suffixes", "host"):
            assert f"[{field.name}]" in SETTINGS
            continue
        value = msgspec.json.encode(field.default).decode()
        assert f"| `{field.name}` | `{value}` |" in SETTINGS, f"{kind}: {field.name} = {value}"


@pytest.mark.parametrize(
    "text",
    [
        "[suffixes]\nbackup = 'backup.example.org'\nstorage = 'notwindows.net'\npartitioned = ''\n",
        "[host]\nazure_names = true\n",
    ],
)
def test_names_on_a_real_network(text: str, tmp_path: Path) -> None:
    """Own suffixes, or Azure's when that is said."""
    host = text if "[host]" in text else text + "[host]\n"
    (tmp_path / "undercroft.toml").write_text(host + "interface = 'eth1'\naddress = '10.0.0.1'", "utf-8")
    assert Home(tmp_path).settings().host.interface == "eth1"


def test_every_setting_has_an_effect() -> None:
    sources = [path.read_text("utf-8") for path in (CHECKOUT / "src").rglob("*.py") if path.name != "config.py"]
    for field in msgspec.structs.fields(Settings):
        assert any(f"settings.{field.name}" in text for text in sources), field.name


def test_the_sample_is_read(tmp_path: Path) -> None:
    sample = re.search(r"```toml\n(.*?)```", SETTINGS, re.DOTALL)
    assert sample is not None
    (tmp_path / "undercroft.toml").write_text(sample[1], "utf-8")
    assert Home(tmp_path).settings() != Settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("vault_hours = 3", "vault_hours"),
        ("record_ttl = 'ten'", "record_ttl"),
        ("reconcile_seconds = 0", "reconcile_seconds"),
        ("public_range = '203.0.113.7/24'", "public_range"),
        ("public_range = '203.0.113.0/30'", "public_range"),
        ("[suffixes]\nbackups = 'x'", "backups"),
        ("record_ttl = \n", "line 1"),
        ("[host]\ninterface = 'eth1'", "host.address is missing"),
        ("[host]\naddress = 'eth1'", "host.address"),
        ("[host]\nprobe_seconds = 0", "probe_seconds"),
        (
            "[host]\ninterface = 'eth1'\naddress = '10.0.0.1'",
            "backup.windowsazure.com and core.windows.net and storage.azure.net",
        ),
        (
            "[suffixes]\nbackup = 'b.example.org'\nstorage = 'a.Blob.Core.Windows.net'\n"
            "[host]\ninterface = 'eth1'\naddress = '10.0.0.1'",
            "azure_names",
        ),
    ],
)
def test_a_wrong_setting_is_named(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "undercroft.toml").write_text(text, "utf-8")
    with pytest.raises(InvalidInput, match=named) as caught:
        Home(tmp_path).settings()
    assert "undercroft.toml" in caught.value.message
    assert "docs/settings.md" in caught.value.message
