"""The man page tells what the command line, the files and the exit codes really are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from ramnet.cli import exits
from ramnet.cli.main import cli
from ramnet.core.config import Config
from ramnet.core.policy import DestinationEntry, Enforcement, Policy, RegistryEntry, Support

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/ramnet.8"
TEXT = PAGE.read_text("utf-8")


def section(title: str) -> str:
    """Return what stands below a heading."""
    return re.split(r"^\.S[hs] ", TEXT.partition(f" {title}\n")[2], flags=re.MULTILINE)[0]


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that is not hidden, by its whole name."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        elif not command.hidden:
            yield " ".join((*above, name)), command


def told_commands() -> dict[str, str]:
    """Give what the page says of each command: its name, and the macros of its usage."""
    usages = re.findall(
        r"^\.It (?:Xo\n\.Cm (.*)\n([\s\S]*?)\.Xc|Cm (.*))$", section("COMMANDS"), re.MULTILINE
    )
    return {name or alone: usage for name, usage, alone in usages}


def options(command: click.Command) -> set[str]:
    """Return the options of a command, all of which are long ones."""
    return {
        name
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
    }


def test_every_command_is_told_and_no_other() -> None:
    assert set(told_commands()) == dict(commands(cli)).keys()


@pytest.mark.parametrize("name", dict(commands(cli)))
def test_the_usage_of_a_command_has_its_options(name: str) -> None:
    command, usage = dict(commands(cli))[name], told_commands()[name]
    assert {f"-{flag}" for flag in re.findall(r"Fl (-[\w-]+)", usage)} == options(command)
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        takes, needed = not option.is_flag, option.required
        said = re.search(rf"^\.(Op )?Fl {option.opts[0][1:]}( Ar \w+)?$", usage, re.MULTILINE)
        assert said, option.opts
        assert (bool(said[2]), not said[1]) == (takes, needed), option.opts
    arguments = sum(isinstance(param, click.Argument) for param in command.params)
    assert len(re.findall(r"^\.(?:Op )?Ar ", usage, re.MULTILINE)) == arguments


def test_every_option_is_explained() -> None:
    said = set(re.findall(r"^\.It Fl (-[\w-]+)", TEXT, re.MULTILINE))
    wanted = {name[1:] for _, command in commands(cli) for name in options(command)}
    # These two are told where their command is.
    assert wanted - said == {"-organization", "-output"}


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    codes = {
        value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)
    }
    interrupted = 130  # cli/main.py
    told = {int(code) for code in re.findall(r"^\.It (\d+)$", section("EXIT STATUS"), re.MULTILINE)}
    assert told == {*codes, interrupted}


def test_the_environment_is_that_of_the_command_line() -> None:
    wanted = {
        str(param.envvar)
        for _, command in commands(cli)
        for param in command.params
        if param.envvar
    }
    told = set(re.findall(r"RAMNET_\w+", section("ENVIRONMENT")))
    of_docker_proxy = {name for name in told if name in read("systemd/ramnet-docker-proxy")}
    assert told - of_docker_proxy == wanted
    assert of_docker_proxy == {"RAMNET_PROXY_CGROUP", "RAMNET_DOCKER_PROXY"}


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_every_key_of_the_policy_is_told() -> None:
    entries = (RegistryEntry, DestinationEntry)
    wanted = {*Support.model_fields, *Enforcement.model_fields}
    wanted |= {field.name for entry in entries for field in fields(entry)}
    tables = {"support": "[support]", "enforcement": "[enforcement]"}
    tables |= {"registry": "[[registry]]", "destination": "[[destination]]"}
    wanted |= {tables.get(name, name) for name in Policy.model_fields}
    assert literals("THE POLICY") == wanted


def test_every_key_of_the_configuration_is_told() -> None:
    wanted = {f"[{name}]" for name in Config.model_fields}
    for field in Config.model_fields.values():
        wanted |= set(field.annotation.model_fields)  # type: ignore[union-attr] # each is a table
    assert literals("THE CONFIGURATION") == wanted


def literals(title: str) -> set[str]:
    lines = re.findall(r"^\.(?:It )?Li (.*)$", section(title), re.MULTILINE)
    return {word for line in lines for word in line.split() if len(word) > 1}


@pytest.mark.parametrize(
    "path", ["policy.toml", "ramnet.toml", "control.sock", "locked.nft", "ramnet-lock.service"]
)
def test_the_files_are_told(path: str) -> None:
    assert path in section("FILES")


def test_the_defaults_are_where_the_page_says() -> None:
    for path in (exits.POLICY_PATH, exits.CONFIG_PATH, exits.RUNTIME_DIR, exits.STATE_DIR):
        assert f".It Pa {path}" in section("FILES")


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc here")
def test_mandoc_finds_no_fault() -> None:
    result = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", PAGE], check=False, capture_output=True, text=True
    )
    faults = [line for line in result.stdout.splitlines() if str(PAGE) in line]
    assert faults == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_groff_formats_it_without_a_word() -> None:
    command = ["groff", "-mandoc", "-ww", "-z", "-Tutf8", "-Kutf8", str(PAGE)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_asks_ramnet(shell: str) -> None:
    """What systemd/package.sh has written into each release."""
    result = complete({"_RAMNET_COMPLETE": f"{shell}_source"})
    assert result.returncode == 0, result.stderr
    assert f"_RAMNET_COMPLETE={shell}_complete" in result.stdout


def test_a_completion_gives_the_verbs_that_are_not_hidden() -> None:
    wanted = {"_RAMNET_COMPLETE": "bash_complete", "COMP_WORDS": "ramnet ", "COMP_CWORD": "1"}
    given = {line.partition(",")[2] for line in complete(wanted).stdout.splitlines()}
    assert given == {name.split()[0] for name, _ in commands(cli)}


def complete(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ramnet"],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
