"""``ramnet doctor REF``: what it prints, its exit code, whose policy it judges by."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ramnet.core.policy import parse_policy, policy_digest
from ramnet.errors import ControlError
from ramnet.host import dockerauth, walking
from tests.unit.cli.conftest import Answer, Run
from tests.unit.host.test_walk import Server, image, serving

POLICY = (
    'version = 1\norganization = "acme"\n'
    '[[registry]]\naddress = "localhost:*"\n[[registry]]\naddress = "docker.io"\n'
)
DIGEST = policy_digest(parse_policy(POLICY, source="x", ramnet_version="1"))


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def options(policy: Path, tmp_path: Path) -> tuple[str, ...]:
    where = ("--config", str(tmp_path / "ramnet.toml"), "--runtime-dir", str(tmp_path))
    return ("--policy", str(policy), *where)


def status(policy: str | None, *, state: str = "enforcing", digest: str | None = DIGEST) -> Any:
    scope = {"mode": "netns", "groups": []}
    return {"state": state, "scope": scope, "policy": {"path": policy, "digest": digest}}


def name(server: Server) -> str:
    return f"localhost:{server.port}/acme/app"


def test_a_pull_that_passes(ramnet: Run, options: tuple[str, ...]) -> None:
    with serving(image()) as server:
        said = ramnet("doctor", name(server), "--as", "host", *options)
        plain = ramnet("doctor", name(server), "--as", "host", "--json", *options)
    assert said.code == plain.code == 0
    assert "nothing is in the way" in said.out
    assert "warning: no daemon is running" in said.out
    report = json.loads(plain.out)
    assert (report["passed"], report["dialled_as"], report["class"]) == (True, "caller", "host")
    assert report["catalogue"] is None


def test_a_pull_that_fails_for_another_reason(ramnet: Run, options: tuple[str, ...]) -> None:
    with serving(image()) as server:
        pass
    said = ramnet("doctor", name(server), "--as", "host", *options)
    assert said.code == 1
    assert "not because of the policy" in said.out
    assert "failed: " in said.out


@pytest.mark.parametrize("traffic", ["engine", "containers"])
def test_a_registry_that_is_refused(ramnet: Run, options: tuple[str, ...], traffic: str) -> None:
    said = ramnet("doctor", "quay.io/a/b", "--as", traffic, *options)
    assert said.code == 1
    assert "refused  https://quay.io/v2/" in said.out
    # Of others the catalogue refuses the registry itself only, not what its layers come from.
    cdn = "refused" if traffic == "engine" else "allowed"
    assert f"blob  {cdn}  cdn.quay.io" in said.out
    assert "missing: quay.io port 443 (ping)" in said.out
    assert "  ramnet policy add quay.io\n" in said.out
    assert '  or in the policy: [[registry]]\n  address = "quay.io"\n' in said.out
    assert "the policy is in the way" in said.out
    assert ("(not dialled: containers" in said.out) is (traffic == "containers")


def test_what_a_server_says_is_fit_for_a_terminal(ramnet: Run, options: tuple[str, ...]) -> None:
    from tests.unit.host.test_walk import Said  # noqa: PLC0415 - another one is imported above

    odd = Said(404, b'{"errors":[{"code":"\\u001b[31m","message":"x"}]}')
    with serving(image(latest=odd)) as server:
        said = ramnet("doctor", name(server), "--as", "host", *options)
    assert "?[31m: x" in said.out
    assert "\033" not in said.out


def test_the_words_of_an_error_are_fit_for_a_terminal(
    ramnet: Run, options: tuple[str, ...]
) -> None:
    """Wherever they come from: what prints them does not rely on who found them."""
    from ramnet.core.hops import Hop  # noqa: PLC0415 - for this one

    walked = Hop.__init__

    def told(hop: Hop, *args: Any, **more: Any) -> None:
        walked(hop, *args, **{**more, "error": "\033[2J\x9b31mgone"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hop, "__init__", told)
        said = ramnet("doctor", "quay.io/a/b", "--as", "containers", *options)
    assert "failed: ?[2J?31mgone" in said.out
    assert "\033" not in said.out


def test_the_catalogues_note_is_told(ramnet: Run, options: tuple[str, ...]) -> None:
    assert "  note: " in ramnet("doctor", "busybox", "--as", "containers", *options).out


@pytest.mark.parametrize("reference", ["", "a b", "http://docker.io/x"])
def test_a_malformed_reference_is_told(
    ramnet: Run, options: tuple[str, ...], reference: str
) -> None:
    said = ramnet("doctor", reference, *options)
    assert said.code == 1
    assert "hint: " in said.err


def test_a_policy_that_is_not_there_is_told(ramnet: Run, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.toml")
    said = ramnet("doctor", "busybox", "--policy", nowhere, "--runtime-dir", str(tmp_path))
    assert (said.code, nowhere in said.err) == (1, True)


# --- the daemon


def warnings(said: Any) -> list[str]:
    found: list[str] = json.loads(said.out)["warnings"]
    return found


def judged(ramnet: Run, *options: str) -> Any:
    return ramnet("doctor", "busybox", "--as", "containers", "--json", *options)


def test_the_daemons_policy_is_the_one_that_judges(
    ramnet: Run, policy: Path, tmp_path: Path, daemon: dict[str, Answer]
) -> None:
    daemon["status"] = status(str(policy))
    said = judged(ramnet, "--runtime-dir", str(tmp_path))
    assert (said.code, warnings(said)) == (0, [])


def test_another_policy_than_the_daemons_is_told(
    ramnet: Run, options: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["status"] = status("/elsewhere", digest="sha256:00")
    (warning,) = warnings(judged(ramnet, *options))
    assert "another policy" in warning


def test_a_daemon_that_does_not_enforce_is_told(
    ramnet: Run, options: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["status"] = status(None, state="auditing")
    (warning,) = warnings(judged(ramnet, *options))
    assert "auditing" in warning
    daemon["status"] = {**status(None, state="standby", digest=None), "scope": {"mode": None}}
    (warning,) = warnings(judged(ramnet, *options))
    assert "standby" in warning


def test_a_daemon_that_does_not_answer_is_told(
    ramnet: Run, options: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["status"] = ControlError("too many clients")
    (warning,) = warnings(judged(ramnet, *options))
    assert "too many clients" in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_the_scope_has_no_cgroup_the_caller_dials(
    ramnet: Run, options: tuple[str, ...], daemon: dict[str, Answer]
) -> None:
    daemon["status"] = status(None)
    with serving(image()) as server:
        said = ramnet("doctor", name(server), "--json", *options)
    report = json.loads(said.out)
    assert (said.code, report["dialled_as"]) == (0, "caller")
    assert "netns" in report["because"]


# --- logins, and time


def test_a_login_that_is_not_there_is_told(
    ramnet: Run, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    said = judged(ramnet, "--credentials", *options)
    assert any("no login for docker.io" in warning for warning in warnings(said))
    (tmp_path / "config.json").write_text("{")
    said = judged(ramnet, "--credentials", *options)
    assert (said.code, "config.json" in said.err) == (1, True)
    assert str(dockerauth.docker_config()) == str(tmp_path / "config.json")


def test_a_walk_that_takes_too_long_does_not_pass(
    ramnet: Run, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "WALK_SECONDS", 0.0)
    said = judged(ramnet, *options)
    assert (said.code, json.loads(said.out)["passed"]) == (1, False)
    assert any("took more than" in warning for warning in warnings(said))
