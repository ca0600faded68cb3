"""What holds for the repository as a whole, its scripts and its test settings included."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import ramnet

ROOT = Path(__file__).resolve().parents[2]
LOCKED = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)

# Written in parts, so that this file does not hold them either.
PACKAGE_HOSTS = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("archive", "ubuntu", "com"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    ]
]


def tracked_files() -> list[Path]:
    """Give what is or may be committed; from a tarball, every file that is no cache."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        # The checkout may belong to the user who called sudo.
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        listing = subprocess.run(
            [*command, "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not path.match("__pycache__/*")]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def forbidden_in(text: str) -> Iterator[str]:
    """Give what ties a file to one machine or one package index."""
    lowered = text.lower()
    yield from (host for host in PACKAGE_HOSTS if re.search(rf"\b{re.escape(host)}\b", lowered))
    # A checkout such as /src is too short to tell from a path of something else.
    if len(ROOT.parts) > 2 and re.search(rf"{re.escape(str(ROOT))}(?![\w-])", text):
        yield str(ROOT)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_no_file_names_a_package_index_or_this_checkout() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for word in forbidden_in(path.read_text("utf-8", errors="replace"))
    ]
    assert found == []


def test_a_planted_package_index_is_found() -> None:
    assert list(forbidden_in(f"index-url = https://{PACKAGE_HOSTS[0]}/simple")) == [
        PACKAGE_HOSTS[0]
    ]
    assert list(forbidden_in("https://registry-1.docker.io and https://quay.io")) == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = {line.split("#")[0].strip() for line in readme.splitlines()}
    ci = (ROOT / ".ci/run").read_text("utf-8").rstrip().splitlines()[-1]
    assert ci == "sudo ./bootstrap test"
    assert ci in commands


def test_the_version_is_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", ramnet.__version__)
    assert "version" not in pyproject()["project"]
    assert "version" in pyproject()["project"]["dynamic"]
    try:
        installed = version("ramnet")
    except PackageNotFoundError:
        pytest.skip("runs from a checkout that is not installed")
    assert installed == ramnet.__version__


def test_the_changelog_has_an_entry_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    assert sections, "no section"
    title, _, body = sections[0].partition("\n")
    assert "unreleased" in title.lower() or ramnet.__version__ in title
    assert re.search(r"^- \S", body, re.MULTILINE), "no entry in the newest section"


def test_lock_files_agree_with_pyproject() -> None:
    settings = pyproject()
    locks = {
        name: dict(LOCKED.findall((ROOT / name).read_text("utf-8")))
        for name in ("requirements.lock", "requirements-test.lock")
    }
    run, test = locks["requirements.lock"], locks["requirements-test.lock"]
    groups = settings["dependency-groups"]

    def names(requirements: list[str]) -> set[str]:
        return {
            re.split(r"[<>=!~ \[;]", wanted)[0].lower().replace("_", "-") for wanted in requirements
        }

    assert names(settings["project"]["dependencies"] + groups["build"]) <= run.keys()
    assert names(settings["build-system"]["requires"]) <= run.keys()
    assert names(groups["test"]) <= test.keys()
    assert run.items() <= test.items(), "the tests must run what is shipped"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-test.lock"])
def test_every_locked_package_has_hashes(name: str) -> None:
    lines = (ROOT / name).read_text("utf-8").replace("\\\n", " ").splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages
    assert [line for line in packages if "--hash=sha256:" not in line] == []


def test_every_ignored_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    rules = text[text.index("\nignore = [") : text.index("[tool.ruff.lint.flake8-tidy-imports]")]
    ignored = [line for line in rules.splitlines() if re.match(r'\s+"[A-Z]+[0-9]*",', line)]
    assert ignored
    assert [line for line in ignored if "# " not in line] == []


# --- bootstrap ------------------------------------------------------------------------------


def bootstrap(
    *arguments: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script; programs in ``path`` stand in for those of the machine."""
    search = f"{path}:{os.environ['PATH']}" if path is not None else os.environ["PATH"]
    return subprocess.run(
        [ROOT / "bootstrap", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": search, **environment},
    )


def stand_in(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_bootstrap_help_names_every_command() -> None:
    commands = re.findall(
        r"^command_(\w+)\(\)", (ROOT / "bootstrap").read_text("utf-8"), re.MULTILINE
    )
    result = bootstrap("help")
    assert result.returncode == 0
    assert {"demo", "test", "help"} <= set(commands)
    assert [name for name in commands if f"\n  {name} " not in result.stdout] == []


@pytest.mark.parametrize("command", ["frobnicate", "", "--quickly", "test/../demo"])
def test_bootstrap_refuses_an_unknown_command(command: str) -> None:
    result = bootstrap(command)
    assert result.returncode == 2
    assert f"unknown command: '{command}'" in result.stderr
    assert "hint: ./bootstrap help" in result.stderr


@pytest.mark.parametrize("command", ["demo", "test"])
def test_bootstrap_needs_root(command: str, tmp_path: Path) -> None:
    stand_in(tmp_path, "id", "echo 1000")
    result = bootstrap(command, path=tmp_path)
    assert result.returncode == 77
    assert f"hint: run: sudo ./bootstrap {command}" in result.stderr


@pytest.mark.parametrize(
    ("release", "code", "message"),
    [
        ('ID=fedora\nVERSION_ID=44\nPRETTY_NAME="Fedora Linux 44"', 3, "on Fedora Linux 44"),
        ('ID=debian\nVERSION_ID="11"\nPRETTY_NAME="Debian 11"', 3, "on Debian 11"),
        ('ID=ubuntu\nVERSION_ID="22.04"\nPRETTY_NAME="Ubuntu 22.04"', 3, "on Ubuntu 22.04"),
        ("", 3, "on this system"),
        # Known ones get as far as the next question.
        ('ID=debian\nVERSION_ID="12"', 3, "no network namespaces"),
        ('PRETTY_NAME="Debian sid"\nID=debian', 3, "no network namespaces"),
        ('ID=ubuntu\nVERSION_ID="24.04"', 3, "no network namespaces"),
    ],
)
@pytest.mark.netns
def test_bootstrap_names_what_is_not_supported(
    release: str, code: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "os-release").write_text(f"{release}\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_in(programs, "unshare", "exit 1")
    result = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            'mount --bind "$1" /etc/os-release && PATH="$2:$PATH" exec "$3" test --version',
            *("sh", tmp_path / "os-release", programs, ROOT / "bootstrap"),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "RAMNET_BOOTSTRAP_CACHE": str(tmp_path / "cache")},
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert "hint: " in result.stderr
    assert not (tmp_path / "cache").exists()


# --- tests/conftest.py ----------------------------------------------------------------------


def inner_run(
    folder: Path, test: str, *, place: str = "netns", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one test file under this repository's settings and conftest, in a copy."""
    (folder / "tests" / place).mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests/vm").mkdir(exist_ok=True)
    for name in ("conftest.py", "coverage_table.py", "vm/kernels.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    (folder / "tests" / place / "test_inner.py").write_text(f"import os, pytest\n{test}\n")
    inherited = {k: v for k, v in os.environ.items() if k not in {"CI", "RAMNET_REQUIRE_ALL"}}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        # For ramnet itself, where it is not installed.
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(
    ("place", "test", "required"),
    [
        ("netns", "def test_it(): pytest.skip('no such kernel')", {"CI": "true"}),
        ("netns", "pytest.skip('not now', allow_module_level=True)", {"RAMNET_REQUIRE_ALL": "1"}),
        ("docker", "@pytest.mark.skipif(True, reason='x')\ndef test_it(): pass", {"CI": "1"}),
        ("docker", "pytest.importorskip('no_such_module')", {"CI": "true"}),
        (
            "unit",
            "@pytest.mark.netns\ndef test_it(): pytest.skip('x')",
            {"RAMNET_REQUIRE_ALL": "1"},
        ),
    ],
)
def test_a_privileged_test_may_skip_on_a_laptop_but_not_in_ci(
    place: str, test: str, required: dict[str, str], tmp_path: Path
) -> None:
    laptop = inner_run(tmp_path / "laptop", test, place=place)
    assert "1 skipped" in laptop.stdout
    assert laptop.returncode in {0, 5}
    ci = inner_run(tmp_path / "ci", test, place=place, **required)
    assert "must run here" in ci.stdout
    assert "skipped" not in ci.stdout.splitlines()[-1]
    assert ci.returncode != 0


def test_a_privileged_test_without_its_programs_fails_in_ci(tmp_path: Path) -> None:
    test = "def test_it(): pass"
    assert "1 skipped" in inner_run(tmp_path / "laptop", test, PATH="").stdout
    required = inner_run(tmp_path / "ci", test, PATH="", CI="true")
    assert required.returncode == 1
    assert "must run here" in required.stdout


def test_an_unprivileged_test_may_skip_in_ci(tmp_path: Path) -> None:
    test = "def test_it(): pytest.skip('another Python')"
    result = inner_run(tmp_path, test, place="unit", CI="true")
    assert result.returncode == 0
    assert "1 skipped" in result.stdout


NETNS_NOW = "os.readlink('/proc/thread-self/ns/net')"
MACHINE_FD = "os.open(f'/proc/{os.getppid()}/ns/net', os.O_RDONLY)"


@pytest.mark.netns
def test_tests_run_in_a_network_namespace_of_their_own(tmp_path: Path) -> None:
    here = Path("/proc/thread-self/ns/net").readlink()
    result = inner_run(tmp_path, f"def test_it(): assert {NETNS_NOW} != '{here}'")
    assert result.returncode == 0, result.stdout


@pytest.mark.netns
def test_a_test_that_goes_back_to_the_machine_stops_the_run(tmp_path: Path) -> None:
    back = f"import ctypes\ndef test_a(): assert ctypes.CDLL(None).setns({MACHINE_FD}, 0) == 0"
    result = inner_run(tmp_path, f"{back}\ndef test_b(): pass")
    assert result.returncode == 1
    assert "left its own network namespace" in result.stdout + result.stderr


@pytest.mark.netns
def test_a_table_left_in_the_machine_fails_the_run(tmp_path: Path) -> None:
    # "The machine" of the inner run is the namespace that the outer run made for itself.
    add = ["nft", "add", "table", "inet", "ramnet_guard_test"]
    enter = "f'--net=/proc/{os.getppid()}/ns/net'"
    test = f"def test_it(): assert subprocess.run(['nsenter', {enter}, *{add}]).returncode == 0"
    try:
        result = inner_run(tmp_path, f"import subprocess\n{test}")
    finally:
        subprocess.run(["nft", "delete", "table", "inet", "ramnet_guard_test"], check=True)
    assert result.returncode == 1
    assert "changed the machine's own ruleset" in result.stdout + result.stderr
