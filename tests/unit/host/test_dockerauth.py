"""Docker's logins: real files, real helper programs."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ramnet.core.challenge import Credentials
from ramnet.errors import HostError
from ramnet.host import dockerauth
from ramnet.host.dockerauth import HUB_KEY, MAX_SECRET, credentials_for, docker_config

SECRET = "hunter2:with-a-colon"
AUTH = base64.b64encode(f"me:{SECRET}".encode()).decode()
SAYS = """read -r server; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"$server\\"}" """


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    return tmp_path


def config(folder: Path, value: object) -> Path:
    path = folder / "config.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def helper(folder: Path, script: str, name: str = "lab") -> None:
    path = folder / f"bin/docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "auths",
    [
        {"quay.io": {"auth": AUTH}},
        {"https://quay.io": {"auth": AUTH}},
        {"https://quay.io/v1/": {"auth": AUTH}},
        {"quay.io/v2/": {"auth": AUTH}},
    ],
)
def test_a_login_is_found_by_its_host(folder: Path, auths: dict[str, Any]) -> None:
    found = credentials_for("quay.io", config(folder, {"auths": auths}))
    assert found == Credentials("me", SECRET)
    assert credentials_for("ghcr.io", config(folder, {"auths": auths})) is None


def test_docker_hub_has_a_key_of_its_own(folder: Path) -> None:
    path = config(folder, {"auths": {HUB_KEY: {"auth": AUTH}}})
    assert credentials_for("docker.io", path) == Credentials("me", SECRET)
    assert credentials_for("index.docker.io", path) == Credentials("me", SECRET)


def test_an_identity_token_is_told_apart(folder: Path) -> None:
    entry = {"auth": AUTH, "identitytoken": "refresh"}
    path = config(folder, {"auths": {"quay.io": entry}})
    assert credentials_for("quay.io", path) == Credentials("", "refresh", identity=True)


@pytest.mark.parametrize(
    "value",
    [{}, [], {"auths": []}, {"auths": {"quay.io": {}}}, {"auths": {"quay.io": {"auth": ""}}}],
)
def test_no_login_is_none(folder: Path, value: object) -> None:
    assert credentials_for("quay.io", config(folder, value)) is None
    assert credentials_for("quay.io", folder / "nowhere") is None


@pytest.mark.parametrize(
    "value",
    [
        "{",
        {"auths": {"quay.io": {"auth": "%%%"}}},
        {"auths": {"quay.io": {"auth": "gehe\u00efm"}}},
        {"auths": {"quay.io": {"identitytoken": "\ud800"}}},
        {"auths": {"quay.io": {"auth": base64.b64encode(b"\xff:\xff").decode()}}},
        {"auths": {"quay.io": {"auth": base64.b64encode(b"a:" + b"b" * MAX_SECRET).decode()}}},
        {"credsStore": "../../bin/sh"},
        {"credsStore": "nowhere"},
    ],
)
def test_what_cannot_be_used_is_told(folder: Path, value: object) -> None:
    with pytest.raises(HostError) as told:
        credentials_for("quay.io", config(folder, value))
    assert "Traceback" not in str(told.value)


@pytest.mark.parametrize("value", [{"credHelpers": {"quay.io": "lab"}}, {"credsStore": "lab"}])
def test_a_helper_is_asked_for_the_server(folder: Path, value: object) -> None:
    helper(folder, SAYS)
    assert credentials_for("quay.io", config(folder, value)) == Credentials("me", "quay.io")


def test_a_helper_of_the_registry_comes_before_the_store(folder: Path) -> None:
    helper(folder, SAYS)
    helper(folder, "exit 1", "other")
    both = {"credHelpers": {"quay.io": "lab"}, "credsStore": "other"}
    assert credentials_for("quay.io", config(folder, both)) == Credentials("me", "quay.io")


def test_a_helper_may_give_an_identity_token(folder: Path) -> None:
    helper(folder, """echo '{"Username": "<token>", "Secret": "refresh"}'""")
    path = config(folder, {"credsStore": "lab"})
    assert credentials_for("quay.io", path) == Credentials("", "refresh", identity=True)


def test_a_helper_that_knows_none_is_no_fault(folder: Path) -> None:
    helper(folder, "echo 'credentials not found in native keychain'; exit 1")
    assert credentials_for("quay.io", config(folder, {"credsStore": "lab"})) is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'the keychain \033[31m is locked'; exit 1", "is locked"),
        ("exit 3", "status 3"),
        ("echo hello", "not JSON"),
        ("echo '[]'", "no Username"),
        ("""echo '{"Username": 1, "Secret": 2}'""", "no Username"),
        ("exec yes", "no answer within"),
    ],
)
def test_a_helper_that_does_not_help(folder: Path, script: str, why: str) -> None:
    helper(folder, script)
    with pytest.raises(HostError, match=why) as told:
        credentials_for("quay.io", config(folder, {"credsStore": "lab"}))
    assert "\033" not in told.value.message


@pytest.mark.parametrize(
    "script",
    ["exec sleep 60", "sleep 60", "setsid sleep 20 & exit 0", "exec >&-; exec sleep 60"],
    ids=["itself", "its-child", "a-child-that-left", "without-its-pipe"],
)
def test_a_helper_that_hangs_is_ended(
    folder: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dockerauth, "HELPER_SECONDS", 0.3)
    helper(folder, script)
    begun = time.monotonic()
    with pytest.raises(HostError, match="no answer within"):
        credentials_for("quay.io", config(folder, {"credsStore": "lab"}))
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_helper_runs_as_the_owner_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root must not run what a user's file names with root's rights."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
        monkeypatch.setattr(dockerauth, "SAFE_PATH", f"{folder}/bin:/usr/bin:/bin")
        check_owner(folder, monkeypatch)


def check_owner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_ROOT", "x")
    out = "$(id -u) $(id -G) ${SECRET_OF_ROOT:-none} $HOME"
    helper(folder, f"""echo "{{\\"Username\\": \\"me\\", \\"Secret\\": \\"{out}\\"}}" """)
    path = config(folder, {"credsStore": "lab"})
    found = credentials_for("quay.io", path)
    assert found is not None
    assert found.secret.startswith("0 ")
    os.chown(path, 65534, 65534)
    found = credentials_for("quay.io", path)
    assert found is not None
    assert found.secret == "65534 65534 none /nonexistent"


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's file that names a helper of root's PATH; the user may see both."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
        helper(folder, """echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"$(id -u)\\"}" """)
        os.chown(config(folder, {"credsStore": "lab"}), 65534, 65534)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_helper_of_another_user_is_not_looked_for_where_roots_are(others: Path) -> None:
    with pytest.raises(HostError, match="cannot be run"):
        credentials_for("quay.io", others / "config.json")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_file_that_is_swapped_once_it_was_read_keeps_its_owner(
    others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user puts a link to a file of root there, so that the helper would run as root."""
    monkeypatch.setattr(dockerauth, "SAFE_PATH", f"{others}/bin:/usr/bin:/bin")
    path = others / "config.json"
    parsed = json.loads

    def swapping(data: bytes) -> object:
        if path.owner() != "root":
            path.unlink()
            path.symlink_to("/etc/passwd")
        return parsed(data)

    monkeypatch.setattr(json, "loads", swapping)
    found = credentials_for("quay.io", path)
    assert path.is_symlink()
    assert found is not None
    assert found.secret == "65534"


def test_a_folder_that_may_not_be_entered_is_told(tmp_path: Path) -> None:
    """In a process of its own, which is no longer root."""
    path = config(tmp_path, {"auths": {"quay.io": {"auth": AUTH}}})
    tmp_path.chmod(0)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def ask() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            theirs.send(str(credentials_for("quay.io", path)))
        except HostError as err:
            theirs.send(err.message)

    child = context.Process(target=ask)
    child.start()
    theirs.close()
    try:
        assert "config.json cannot be read" in ours.recv()
    finally:
        child.join()
        tmp_path.chmod(0o755)


def test_the_configuration_is_that_of_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/elsewhere")
    assert docker_config() == Path("/elsewhere/config.json")
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/home/me")
    assert docker_config() == Path("/home/me/.docker/config.json")
    if os.geteuid() == 0:
        monkeypatch.setenv("SUDO_UID", "65534")
        assert docker_config() == Path("/nonexistent/.docker/config.json")
        monkeypatch.setenv("SUDO_UID", "4000000000")
        assert docker_config() == Path("/home/me/.docker/config.json")
