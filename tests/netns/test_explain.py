"""``explain`` against the real kernel: what it says decides is what the kernel says decided.

The judge is ``nft monitor trace``: the kernel's own account of the rules that a packet met.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ramnet.errors import ControlError
from ramnet.host.control import ask
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import require
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import CORP, DUAL, EVIL, QUAY
from tests.netns.places import engine, machine, outcomes
from tests.netns.scoped import enforcing, wait_denied
from tests.netns.support import CORP_REGISTRY, DUAL_REGISTRY, policy, wait_leases

pytestmark = pytest.mark.netns

NETWORK = "203.0.113.0"  # listed as a network, where nobody answers
POLICY = policy(CORP_REGISTRY, DUAL_REGISTRY, more=f'networks = ["{NETWORK}/26"]\n')
SPY = """\
table inet spy {
  chain out {
    type filter hook output priority -400;
    tcp flags & (syn|ack) == syn meta nftrace set 1;
  }
}
"""
TARGETS = [
    (CORP[0], 5000),
    (DUAL[0], 443),
    (DUAL[1], 443),
    (NETWORK.replace(".0", ".9"), 443),
    (EVIL[0], 443),
    (EVIL[1], 5000),
    (QUAY[0], 443),
    (QUAY[0], 80),
]
# A packet's last rule in a chain that judges, and what it was judged to.
_RULE = re.compile(r"inet ramnet (\S+) rule (.*) \(verdict (\w+)(?: (\S+))?\)")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(engine_cgroup=True) as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with enforcing(lab, "cgroup", POLICY) as made:
        wait_denied(lab.client, *QUAY)
        wait_leases(made.daemon, 3)
        yield made.daemon


def explain(daemon: Daemon, target: str, *options: str) -> dict[str, Any]:
    said = daemon.cli("explain", "--json", target, *options)
    found: dict[str, Any] = json.loads(said.stdout)
    assert said.returncode == (0 if found["allowed"] else 1)
    return found


def written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def traced(log: Path, place: Any, target: tuple[str, int]) -> tuple[str, str] | None:
    """The chain and the rule at which the kernel decided a connection; None where none did."""
    before = log.stat().st_size
    outcomes(place, [target])
    address, port = target
    wanted = f"daddr {address} "

    def lines() -> list[str]:
        with log.open(encoding="utf-8") as stream:
            stream.seek(before)
            return stream.read().splitlines()

    def ids() -> list[str]:
        found = [line for line in lines() if wanted in line and f"tcp dport {port} " in line]
        return [line.split()[2] for line in found]

    wait_until(lambda: bool(ids()), 5, "the trace")
    first = ids()[0]
    mine = [line for line in lines() if line.startswith(f"trace id {first} ")]
    met = [found for line in mine if (found := _RULE.search(line))]
    for found in met:
        refused = (found[4] or "").startswith("refuse_")
        if found[1] in JUDGING and (refused or found[3] == "accept"):
            return found[1], found[2]
    return None


JUDGING = {"engine", "judge", "host", "catalog_host", "catalog_engine"}


@pytest.fixture
def trace(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "trace"
    lab.client.run(["nft", "-f", "-"], input=SPY)
    monitor = lab.client.popen([require("nft"), "monitor", "trace"], log=log)
    try:
        yield log
    finally:
        monitor.kill()
        lab.client.run(["nft", "delete", "table", "inet", "spy"])


@pytest.mark.parametrize("who", ["engine", "host"])
def test_the_rule_that_is_named_is_the_one_that_the_kernel_decided_by(
    lab: Lab, daemon: Daemon, trace: Path, who: str
) -> None:
    place = engine(lab) if who == "engine" else machine(lab.client)
    seen = set()
    for target in TARGETS:
        said = explain(daemon, written(*target), "--class", who)
        (decision,) = said["classes"][who]["decisions"]
        found = traced(trace, place, target)
        if decision["chain"] is None:
            assert found is None, (target, found)
        else:
            assert found is not None, (target, decision)
            assert found[0] == decision["chain"], (target, decision, found)
            assert normal(found[1]) == normal(decision["rule"]), (target, decision)
        seen.add(decision["verdict"])
    assert seen == (
        {"accepted", "refused"} if who == "engine" else {"accepted", "refused", "passes"}
    )


def normal(rule: str) -> str:
    """A rule as the kernel lists it and as it was written, alike."""
    return " ".join(rule.replace("meta l4proto tcp ", "").replace("th dport", "dport").split())


def listed(lab: Lab, name: str) -> dict[str, dict[str, Any]]:
    """The elements of a set as nft lists them, by their address."""
    argv = ["nft", "-j", "list", "set", "inet", "ramnet", name]
    listing = json.loads(lab.client.run(argv).stdout)["nftables"]
    found = next(entry["set"] for entry in listing if "set" in entry)
    return {item["elem"]["val"]["concat"][0]: item["elem"] for item in found["elem"]}


def test_the_elements_are_those_of_the_kernel(lab: Lab, daemon: Daemon) -> None:
    said = explain(daemon, DUAL_REGISTRY)
    found = {item["address"]: item for item in said["elements"] if item["book"] == "allow"}
    assert set(found) == set(DUAL)
    for address, item in found.items():
        assert item["held"] is True
        element = listed(lab, item["set"])[address]
        assert abs(element["expires"] - item["kernel_seconds"]) <= 2
        assert abs(item["seconds"] - item["kernel_seconds"]) <= 2


def test_an_element_that_somebody_took_away_is_told(lab: Lab, daemon: Daemon) -> None:
    (address,) = CORP
    argv = ["nft", "delete", "element", "inet", "ramnet", "allow4"]
    lab.client.run([*argv, f"{{ {address} . 5000 }}"])
    said = explain(daemon, CORP_REGISTRY)
    (item,) = (item for item in said["elements"] if item["book"] == "allow")
    assert (item["held"], item["kernel_seconds"]) == (False, None)
    (decision,) = said["classes"]["engine"]["decisions"]
    assert decision["verdict"] == "refused"
    assert "NOT in set allow4" in daemon.cli("explain", CORP_REGISTRY).stdout
    assert outcomes(engine(lab), [(address, 5000)]) == {"refused"}
    said = explain(daemon, written(address, 5000))
    assert (said["allowed"], said["classes"]["engine"]["verdict"]) == (False, "refused")
    assert said["reason"].endswith("led to it), but no rule lets it pass")
    lab.client.run(
        ["nft", "add", "element", "inet", "ramnet", "allow4", f"{{ {address} . 5000 timeout 60s }}"]
    )
    (decision,) = explain(daemon, CORP_REGISTRY)["classes"]["engine"]["decisions"]
    assert (decision["verdict"], decision["seconds"]) == ("accepted", pytest.approx(60, abs=3))
    assert outcomes(engine(lab), [(address, 5000)]) == {"reached"}
    assert explain(daemon, written(address, 5000))["allowed"] is True


def test_a_refused_registry_and_a_class_that_is_not_there(daemon: Daemon) -> None:
    said = explain(daemon, "quay.io/acme/app")
    assert (said["allowed"], said["advice"]["command"]) == (False, "ramnet policy add quay.io")
    assert {item["set"] for item in said["elements"]} == {"deny4", "deny6"}
    assert explain(daemon, "quay.io", "--class", "host")["allowed"] is False
    assert explain(daemon, "evil.example", "--class", "host")["allowed"] is True
    assert daemon.cli("explain", "quay.io", "--class", "nobody").returncode == 2
    asked: dict[str, Any] = {"target": "quay.io", "class": "nobody"}
    with pytest.raises(ControlError, match="no class 'nobody'"):
        ask(str(daemon.runtime_dir), "explain", **asked)
