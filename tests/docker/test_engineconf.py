"""What `ramnet check` says of a real dockerd: where it runs, and what it was told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.programs import PYTHON_PATH, require
from tests.netns.support import policy

pytestmark = pytest.mark.docker

SECRET = "hunter2"
OPTIONS = {
    "userland-proxy-path": require("docker-proxy"),  # not the wrapper, which the lab would take
    "registry-mirrors": ["https://mirror.example"],
    "insecure-registries": ["evil.example:80"],
    "dns": ["198.51.100.99"],
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine=True, engine_cgroup=True, engine_options=OPTIONS, registries=False) as made:
        yield made


def findings(lab: Lab, folder: Path, cgroup: str) -> dict[str, tuple[str, str]]:
    """Return kind and text of what `check` finds, by subject; an engine without its number."""
    config, rules = folder / "ramnet.toml", folder / "policy.toml"
    config.write_text(f'[scope]\nmode = "cgroup"\ncgroups = ["{cgroup}"]\n')
    rules.write_text(policy("mirror.example"))
    script = "from ramnet.cli.main import main; main()"
    argv = [sys.executable, "-c", script, "check", "--json", "--config", str(config)]
    done = lab.client.run(
        [*argv, "--policy", str(rules)], env={"PYTHONPATH": str(PYTHON_PATH)}, check=False
    )
    assert SECRET not in done.stdout
    report = json.loads(done.stdout)
    assert report["modes"]["scope"] == "cgroup", report["problem"]
    return {
        item["subject"].partition(" (pid")[0]: (key, item["text"])
        for key in ("warnings", "not_covered")
        for item in report[key]
    }


def test_an_engine_in_its_group_is_covered_and_its_settings_are_told(
    lab: Lab, tmp_path: Path
) -> None:
    found = findings(lab, tmp_path, lab.engine_group)
    settings = str(lab.engine.log.parent / "daemon.json")
    kind, text = found["mirror mirror.example:443"]
    assert (kind, settings in text, "the policy lists it" in text) == ("warnings", True, True)
    kind, text = found["insecure registry evil.example:80"]
    assert (kind, "the policy does not list it" in text) == ("warnings", True)
    assert found["dns of containers"][0] == "warnings"
    assert "published on localhost are refused" in found["userland-proxy"][1]
    assert not {"dockerd", "containerd"} & found.keys()


def test_an_engine_elsewhere_is_not_covered(lab: Lab, tmp_path: Path) -> None:
    found = findings(lab, tmp_path, "ramnetengines.slice")
    for name in ("dockerd", "containerd"):  # dockerd runs a containerd of its own
        kind, text = found[name]
        assert kind == "not_covered"
        assert f"its cgroup is /{lab.engine_group}, outside ramnetengines.slice" in text


def test_the_proxy_that_dockerd_was_started_with(lab: Lab, tmp_path: Path) -> None:
    assert not [subject for subject in findings(lab, tmp_path, "x") if subject.startswith("proxy")]
    lab.engine.stop()
    proxy = f"http://user:{SECRET}@127.0.0.1:3128"
    lab.engine.start(env={"HTTPS_PROXY": proxy, "NO_PROXY": "localhost"})
    kind, text = findings(lab, tmp_path, lab.engine_group)["proxy 127.0.0.1:3128"]
    assert kind == "warnings"
    assert "HTTPS_PROXY of dockerd (pid " in text
    assert "it is refused; that the proxy is on loopback makes no difference" in text
