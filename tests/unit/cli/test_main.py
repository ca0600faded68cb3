"""The entry point: verbs, exit codes, and errors that are never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ramnet import __version__
from ramnet.cli.exits import NeedsRoot, exit_code_of, print_error
from ramnet.cli.main import cli
from ramnet.errors import ControlError, HostError, RamnetError, UnsupportedKernel
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).resolve().parents[3]


def test_the_version(ramnet: Run) -> None:
    said = ramnet("version")
    assert (said.code, said.out) == (0, f"ramnet {__version__}\n")


def verbs() -> dict[str, click.Command | None]:
    context = click.Context(cli)
    return {name: cli.get_command(context, name) for name in cli.list_commands(context)}


def test_the_verbs() -> None:
    assert set(verbs()) == {
        "activity",
        "check",
        "run",
        "lock",
        "status",
        "explain",
        "why",
        "doctor",
        "policy",
        "registry",
        "off",
        "demo",
        "wsl",
        "helper",
        "notice",
        "version",
    }
    assert verbs()["why"] is verbs()["explain"]
    assert None not in verbs().values()


def test_a_verb_starts_without_what_others_need() -> None:
    script = "import sys; from ramnet.cli.main import main; sys.argv[1:] = ['status', '--help']"
    script += "\ntry: main()\nfinally: print(*sorted(sys.modules))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ramnet.cli.status" in loaded
    assert not {"pydantic", "pyroute2", "dnslib", "ramnet.cli.check"} & loaded


@pytest.mark.parametrize("verb", [(), *((name,) for name in verbs()), ("policy", "init")])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_something_about_every_verb(
    ramnet: Run, verb: tuple[str, ...], option: str
) -> None:
    said = ramnet(*verb, option)
    assert said.code == 0
    assert len(said.out.splitlines()) > 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("status", "--nonsense"),
        ("explain",),
        ("explain", "a", "b"),
        ("policy", "init"),
        ("policy", "nonsense"),
        ("run", "--policy"),
    ],
)
def test_wrong_usage(ramnet: Run, arguments: tuple[str, ...]) -> None:
    said = ramnet(*arguments)
    assert said.code == 2
    assert "Error" in said.err
    assert said.out == ""


@pytest.mark.parametrize("verb", ["check", "run", "lock", "off", "demo"])
def test_verbs_that_need_root(ramnet: Run, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = ramnet(verb)
    assert said.code == 77
    assert said.err == f"ramnet: ramnet {verb} needs root\nhint: try `sudo ramnet {verb}`\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RamnetError("x"), 1),
        (HostError("x"), 1),
        (ControlError("x"), 1),
        (UnsupportedKernel("x"), 3),
        (NeedsRoot("x"), 77),
    ],
)
def test_exit_codes_of_errors(error: RamnetError, code: int) -> None:
    assert exit_code_of(error) == code


def test_an_error_has_its_hint_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(RamnetError("bad", hint="do this"))
    print_error(RamnetError("bad"))
    assert capsys.readouterr().err == "ramnet: bad\nhint: do this\nramnet: bad\n"


def test_an_interrupt_is_told_as_the_shell_tells_it(
    ramnet: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.commands, "wait", click.Command("wait", callback=interrupted))
    assert ramnet("wait").code == 130


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ramnet", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"ramnet {__version__}\n"


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    entries = "".join(f'[[registry]]\naddress = "r{n}.example"\n' for n in range(5000))
    path.write_text(f'version = 1\norganization = "acme"\n{entries}')
    argv = [sys.executable, "-m", "ramnet", "policy", "show", str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait(30) == 1
    assert complaint == b""
