"""What the command line says before it does anything: one clear line, and the right exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit status, and the one line on stderr."""
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("undercroft: ")
    assert said.err.count("\n") == 1, said.err
    return status, said.err


NEEDING_HOME = ("up", "down", "status", "reconcile", "rebuild", "vm list", "vault list", "group list", "principal list")


@pytest.mark.parametrize("command", NEEDING_HOME)
def test_without_a_home_it_says_how_to_give_one(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNDERCROFT_HOME", raising=False)
    status, said = run(capsys, *command.split())
    assert status == 2
    assert "--home DIR" in said
    assert "UNDERCROFT_HOME" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("nonsense",), "nonsense"),
        (("vm", "nonsense"), "exec"),
        (("vm", "exec", "--home", "x"), "NAME is missing"),
        (("group", "create", "rg", "--home", "x"), "--location is missing"),
        (("vault", "list", "--home", "x", "--jsn"), "--jsn"),
        (("up", "--home", "x", "--port", "many"), "--port"),
        (("up", "--home", "x", "--port", "70000"), "65535"),
        (("up", "--home", "x", "--driver", "bridge"), "netns"),
        (("agent", "backup"), "PATH is missing"),
        (("agent", "restore", "latest"), "--to is missing"),
        (("agent", "backup", "/nowhere", "--passphrase-file", "/nowhere/secret"), "/nowhere/secret"),
        (("down", "--home", __file__), "not a folder"),
        (("dns", "export", "-g", "rg", "--home", "x", "--format", "bind"), "--endpoint"),
        (("dns", "export", "-g", "rg", "--home", "x", "--format", "djbdns", "--endpoint", "door"), "dnsmasq"),
        (
            ("dns", "export", "-g", "rg", "--home", "x", "--format", "hosts", "--endpoint", "d", "--mode", "forward"),
            "hosts",
        ),
        (("dns", "export", "-g", "rg", "--home", "x", "--format", "bind", "--vault", "v", "--endpoint", "d"), "either"),
        (
            ("dns", "export", "-g", "rg", "--home", "x", "--format", "bind", "--endpoint", "d", "--vnet-name", "v"),
            "--vault",
        ),
        (
            (
                "dns",
                "export",
                "-g",
                "rg",
                "--home",
                "x",
                "--format",
                "bind",
                "--endpoint",
                "d",
                "--forward-to",
                "169.63.129.16",
            ),
            "168.63.129.16",
        ),
        (("dns", "watch", "-g", "rg", "--home", "x", "--format", "bind", "--endpoint", "door"), "--out"),
        (
            ("dns", "watch", "-g", "rg", "--home", "x", "--format", "bind", "--endpoint", "d", "--interval", "0"),
            "--interval",
        ),
        (("dns", "diff", "-g", "rg", "--home", "x", "--endpoint", "door", "--server", "here"), "ADDRESS"),
        (("dns", "observe", "a.example", "--times", "0"), "--times"),
        (("dns", "observe", "a..example"), "not a host name"),
        (("dns", "observe", "ä..example", "--server", "127.0.0.1"), "not a host name"),
        (("dns", "lookup", "a.example", "--server", "resolver"), "ADDRESS"),
    ],
)
def test_usage_errors_are_status_2(
    words: tuple[str, ...],
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = run(capsys, *words)
    assert part in said
    assert status == 2 or (words[:2] == ("agent", "backup") and status == 1)


@pytest.mark.parametrize(
    "words",
    [
        ("group", "create", "rg", "-l", "westeurope"),
        ("vm", "exec", "web01", "--", "true"),
        ("reconcile",),
        ("rebuild",),
    ],
)
def test_a_deployment_that_is_not_there_is_status_3(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path / "none"))
    status, said = run(capsys, *words)
    assert status == 3
    assert str(tmp_path / "none") in said
    assert not (tmp_path / "none").exists(), "asking makes nothing"


def test_status_and_down_of_what_does_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["status", "--home", str(tmp_path)]) == 3
    assert "undercroft up" in capsys.readouterr().out
    assert main(["status", "--json", "--home", str(tmp_path)]) == 3
    assert capsys.readouterr().out == '{"running": false}\n'
    assert main(["down", "--home", str(tmp_path)]) == 3
    assert str(tmp_path) in capsys.readouterr().err


def test_what_the_machine_refuses_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(capsys, "up", "--home", "/proc/undercroft", "--detach")
    assert status == 1
    assert "/proc/undercroft" in said


def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "fabric" in capsys.readouterr().out
    assert main(["agent", "restore", "--help"]) == 0
    assert "--passphrase-file" in capsys.readouterr().out
