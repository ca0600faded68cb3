"""``check`` and ``run`` on kernels and configurations that will do, and on those that will not.

A kernel that is too old, or without a feature, is shown to the real program: by the personality of
setarch(8), which changes what uname says, and by taking CAP_NET_ADMIN away, so that each attempt to
use nftables fails as it does where there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramnet.core.kernel import NEEDS, Feature
from ramnet.lab.lab import Lab
from ramnet.lab.programs import PYTHON_PATH
from tests.netns.dnsworld import patched
from tests.netns.support import CORP_REGISTRY, STRICT, Ramnet, policy, remove_rules, table

pytestmark = pytest.mark.netns

OLD_KERNEL = ["setarch", "--uname-2.6"]
NO_NETFILTER = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(registries=False) as made:
        yield made


def command(
    lab: Lab, *args: str, under: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    return lab.client.run(
        [*(under or []), sys.executable, "-m", "ramnet", *args],
        env={"PYTHONPATH": str(PYTHON_PATH), "COLUMNS": "200"},
        check=False,
    )


def config_file(folder: Path, text: str) -> str:
    file = folder / "ramnet.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# --- check


def test_check_tells_in_json_what_works_and_what_is_used(lab: Lab, tmp_path: Path) -> None:
    done = command(lab, "check", "--json", "--config", config_file(tmp_path, STRICT))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["schema"], report["supported"], report["can_run"]) == (1, True, True)
    assert (report["problem"], report["hint"]) == (None, None)
    assert report["kernel"] == os.uname().release
    features = {item["feature"]: item for item in report["features"]}
    rung = "native" if features["queue"]["present"] else "compat"
    assert report["modes"] == {"scope": "netns", "dns": "hold", "rung": rung}
    assert set(features) == {str(feature) for feature in Feature}
    for feature, need in NEEDS.items():
        item = features[feature]
        assert item["required"] is need.required
        assert item["present"] or not need.required, item
        for key in ("evidence", "option", "cost_if_absent", "remedy"):
            assert item[key], (feature, key)
    assert features["nflog"]["evidence"].startswith("bound NFLOG group")
    assert features["sets"]["evidence"].startswith("loaded and read back: ")


def test_check_tables_the_same_for_people(lab: Lab, tmp_path: Path) -> None:
    path = config_file(tmp_path, STRICT)
    done = command(lab, "check", "--config", path)
    assert done.returncode == 0
    for feature in Feature:
        assert f" {feature} " in done.stdout
    report = json.loads(command(lab, "check", "--json", "--config", path).stdout)
    rungs = f"scope netns, dns hold, rung {report['modes']['rung']}"
    assert f"ramnet can run here: {rungs}" in done.stdout
    absent = [item for item in report["features"] if not item["present"]]
    assert done.stdout.count("│ NO ") == len(absent)
    flat = " ".join(done.stdout.replace("│", " ").split())
    for item in absent:
        assert f"Do: {item['remedy']}" in flat


def test_check_leaves_the_namespace_as_it_was(lab: Lab, tmp_path: Path) -> None:
    before = lab.client.run(["nft", "list", "ruleset"]).stdout
    command(lab, "check", "--config", config_file(tmp_path, STRICT))
    assert lab.client.run(["nft", "list", "ruleset"]).stdout == before == ""


def test_check_works_beside_a_running_daemon(lab: Lab, ramnet: Ramnet) -> None:
    """Its probes happen elsewhere: nothing is busy, nothing changes."""
    daemon = ramnet.enforcing(CORP_REGISTRY)
    before = table_without_times(lab)
    done = daemon.cli("check", "--json", "--config", str(daemon.config_file))
    assert done.returncode == 0
    assert all(item["present"] for item in json.loads(done.stdout)["features"] if item["required"])
    assert table_without_times(lab) == before
    assert daemon.running


def table_without_times(lab: Lab) -> str:
    return lab.client.run(["nft", "-s", "-a", "-t", "list", "table", "inet", "ramnet"]).stdout


# --- how the engines of the machine are set up

DAEMON_JSON = "/etc/docker/daemon.json"
SETTINGS = """{
  "proxies": {"https-proxy": "http://user:hunter2@proxy.example:443"},
  "registry-mirrors": ["https://dual.example"],
  "insecure-registries": ["old.example:5000"]
}"""


@contextmanager
def daemon_json(lab: Lab, text: str) -> Iterator[None]:
    lab.client.write(DAEMON_JSON, text)
    try:
        yield
    finally:
        lab.client.path(DAEMON_JSON).unlink()


@pytest.mark.parametrize("listed", [None, "proxy.example", "dual.example"])
def test_check_says_what_the_settings_of_an_engine_mean(
    lab: Lab, tmp_path: Path, listed: str | None
) -> None:
    options = ["--config", config_file(tmp_path, STRICT), "--policy", str(tmp_path / "policy.toml")]
    if listed is not None:
        (tmp_path / "policy.toml").write_text(policy(listed), encoding="utf-8")
    before = command(lab, "check", "--json", *options)
    with daemon_json(lab, SETTINGS):
        done = command(lab, "check", "--json", *options)
        shown = command(lab, "check", *options)
    assert (done.returncode, done.stderr) == (before.returncode, "") == (0, "")
    was, report = json.loads(before.stdout), json.loads(done.stdout)
    assert (was["warnings"], was["not_covered"]) == ([], [])
    found = {
        item["subject"]: (key, item["text"])
        for key in ("warnings", "not_covered")
        for item in report[key]
    }
    kind, text = found["proxy proxy.example:443"]
    assert (kind == "not_covered") == (listed == "proxy.example")
    assert f"https-proxy of {DAEMON_JSON}: every pull goes to the proxy" in text
    kind, text = found["mirror dual.example:443"]
    assert (kind, "needs an entry of its own" in text) == ("warnings", listed != "dual.example")
    assert found["insecure registry old.example:5000"][0] == "warnings"
    # The same for people, in whole lines.
    flat = " ".join(shown.stdout.split())
    for item in (*report["warnings"], *report["not_covered"]):
        assert f"- {item['subject']}: {item['text']} do: {item['hint']}" in flat
    assert ("not covered:" in flat) == bool(report["not_covered"])
    assert "hunter2" not in done.stdout + done.stderr + shown.stdout + shown.stderr


def test_settings_that_do_not_parse_are_a_warning(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("version = 'hunter2", encoding="utf-8")
    options = ["--config", config_file(tmp_path, STRICT), "--policy", str(tmp_path / "policy.toml")]
    with daemon_json(lab, '{"proxies":\n "hunter2'):
        done = command(lab, "check", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)["warnings"]
    assert found["subject"] == DAEMON_JSON
    assert "it is not valid JSON (line 2)" in found["text"]
    assert "hunter2" not in done.stdout


# --- a configuration that cannot be enforced

UNSUPPORTED = {
    "weak refuse": ('[scope]\nmode = "netns"\nweak = "refuse"\n', ['weak = "refuse"', "netns"]),
    "weak refuse, by user": (
        '[scope]\nmode = "uid"\nweak = "refuse"\n',
        ['weak = "refuse"', "uid"],
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_enforced_is_refused_with_a_way_out(
    lab: Lab, ramnet: Ramnet, name: str
) -> None:
    text, words = UNSUPPORTED[name]
    daemon = ramnet(policy(CORP_REGISTRY), config=text, start=False)
    daemon.start(wait=False)
    assert daemon.wait() == 3
    for expected in words:
        assert expected in daemon.log
    assert "hint: " in daemon.log
    assert "Traceback" not in daemon.log
    assert table(lab.client) == ""

    checked = daemon.cli("check", "--json", "--config", str(daemon.config_file))
    assert checked.returncode == 3
    report = json.loads(checked.stdout)
    assert (report["supported"], report["can_run"], report["modes"]) == (True, False, {})
    assert all(expected in report["problem"] for expected in words)
    assert report["hint"]


def test_no_configuration_file_is_one_without_settings(lab: Lab, tmp_path: Path) -> None:
    without = command(lab, "check", "--json", "--config", str(tmp_path / "gone.toml"))
    empty = command(lab, "check", "--json", "--config", config_file(tmp_path, ""))
    assert without.returncode == 0
    assert json.loads(without.stdout)["modes"] == json.loads(empty.stdout)["modes"] != {}


@pytest.mark.parametrize(
    ("configured", "mode"), [("auto", "hold"), ("hold", "hold"), ("observe", "observe")]
)
def test_the_ways_to_follow_dns_that_there_are(ramnet: Ramnet, configured: str, mode: str) -> None:
    daemon = ramnet(policy(CORP_REGISTRY), config=f'{STRICT}\n[dns]\nmode = "{configured}"\n')
    assert daemon.status()["dns"]["mode"] == mode


# What probing finds where neither of the two ways to queue a packet is built.
NO_QUEUE = """
import ramnet.host.probe as p
from ramnet.core.kernel import Evidence, Feature
probe = p.probe
def without():
    gone = (Feature.QUEUE, Feature.COMPAT_QUEUE)
    return probe() | {one: Evidence(one, present=False, evidence="taken away") for one in gone}
p.probe = without
"""


def test_without_a_queue_answers_are_only_copied(lab: Lab) -> None:
    why = "the kernel has neither CONFIG_NFT_QUEUE nor xt NFQUEUE"
    with patched(lab, NO_QUEUE, policy(CORP_REGISTRY), STRICT) as daemon:
        said = daemon.status()["dns"]
        assert (said["mode"], said["rung"], said["hold"]) == ("observe", "observe", None)
        assert why in said["because"]
        checked = daemon.cli("check", "--json", "--config", str(daemon.config_file))
        report = json.loads(checked.stdout)
        assert (checked.returncode, report["modes"]["rung"]) == (0, "observe")
        daemon.stop()
        remove_rules(lab.client)
        # Who insists on holding is told so, instead of being given less.
        daemon.config_file.write_text(f'{STRICT}\n[dns]\nmode = "hold"\n', encoding="utf-8")
        daemon.start(wait=False)
        assert daemon.wait() == 3
        assert f"DNS mode 'hold' is configured, but {why}" in daemon.log
        assert "hint: load nft_queue" in daemon.log
        assert "Traceback" not in daemon.log
        assert table(lab.client) == ""
        checked = daemon.cli("check", "--json", "--config", str(daemon.config_file))
        report = json.loads(checked.stdout)
        assert (checked.returncode, report["can_run"], report["modes"]) == (3, False, {})
        assert why in report["problem"]


# --- a kernel that cannot


@pytest.mark.parametrize(
    ("under", "words"),
    [
        (OLD_KERNEL, ["is older than 5.4"]),
        (NO_NETFILTER, ["nftables: no rule can be loaded", "CONFIG_NF_TABLES"]),
    ],
    ids=["too old", "without nftables"],
)
def test_a_kernel_that_cannot_enforce_is_refused(
    lab: Lab, tmp_path: Path, under: list[str], words: list[str]
) -> None:
    config = config_file(tmp_path, STRICT)
    run = command(lab, "run", "--config", config, "--runtime-dir", str(tmp_path), under=under)
    assert run.returncode == 3
    for expected in ["this kernel cannot enforce", "hint: `ramnet check` shows", *words]:
        assert expected in run.stderr
    assert "Traceback" not in run.stderr
    assert table(lab.client) == ""

    checked = command(lab, "check", "--json", "--config", config, under=under)
    assert checked.returncode == 3
    report = json.loads(checked.stdout)
    assert (report["supported"], report["can_run"]) == (False, False)
    assert all(expected in report["problem"] for expected in words)
    assert command(lab, "check", "--json", "--config", config).returncode == 0, "control"


def test_each_missing_feature_says_what_it_costs_and_what_to_do(lab: Lab, tmp_path: Path) -> None:
    config = config_file(tmp_path, STRICT)
    done = command(lab, "check", "--json", "--config", config, under=NO_NETFILTER)
    report = json.loads(done.stdout)
    for item in report["features"]:
        assert item["present"] is False, item
        assert item["evidence"], item
        # Without nftables itself nothing else is worth a word.
        assert (item["cost_if_absent"] in report["problem"]) is (item["feature"] == "nftables")
        assert item["remedy"] in report["problem"] or item["feature"] != "nftables"
    shown = command(lab, "check", "--config", config, under=NO_NETFILTER)
    assert shown.returncode == 3
    flat = " ".join(shown.stdout.replace("│", " ").split())
    for need in NEEDS.values():
        assert f"{need.cost} (needs {need.option})." in flat
        assert f"Do: {need.remedy}." in flat
    assert "ramnet cannot run: this kernel cannot enforce" in flat


# --- faults and exit codes

FAULTY = {
    "unknown key": (f'{STRICT}wek = "strict"\n', ["line 4: scope.wek", "weak"]),
    "unknown table": (f"{STRICT}\n[scop]\n", ["scop", "scope"]),
    "unknown choice": ('[scope]\nmode = "netn"\n', ["line 2: scope.mode", "netns"]),
    "not TOML": ("scope: netns\n", ["line 1"]),
    "two faults": (
        '[scope]\nmode = 1\n\n[dns]\nservers = ["dns.example"]\n',
        ["2 faults", "line 2: scope.mode", "dns.servers"],
    ),
}


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_faulty_configuration_is_told_with_its_places(
    lab: Lab, tmp_path: Path, verb: str, name: str
) -> None:
    text, words = FAULTY[name]
    path = config_file(tmp_path, text)
    done = command(lab, verb, "--config", path)
    assert done.returncode == 1
    for expected in (path, *words):
        assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert table(lab.client) == ""


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["version"], 0, ""),
        (["--help"], 0, ""),
        (["run", "--polizy", "x"], 2, "No such option"),
        (["chek"], 2, "No such command"),
        (["explain"], 2, "Missing argument"),
        (["status", "--runtime-dir", "/nonexistent"], 3, "not running"),
        (["explain", "quay.io", "--policy", "/nonexistent"], 1, "does not exist"),
        (["explain", "https://quay.io", "--policy", "/nonexistent"], 1, "hint: "),
        (["check", "--config", "/proc/self/mem"], 1, "/proc/self/mem"),
        (["check", "--config", "/"], 1, "not a regular file"),
    ],
)
def test_exit_codes(lab: Lab, args: list[str], code: int, words: str) -> None:
    done = command(lab, *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
