"""Nothing but our own table is touched: Docker's rules are the same before, during and after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import CLIENT_V4
from ramnet.lab.world import EVIL
from tests.docker.support import docker, pull
from tests.netns.support import Ramnet, policy, wait_status

pytestmark = pytest.mark.docker

OURS = (("inet", "ramnet"), ("netdev", "ramnet"))
IMAGE = "registry.corp.example:5000/acme/app"
# Another image: the first one belongs to a container that runs and cannot be pulled afresh.
OTHER = "registry.corp.example:5000/acme/other"
# Published ports: one leads to a port that is not judged, the other to one that is.
FREE, JUDGED = 8081, 8082
SERVE = "nc -ll -p 8080 -e echo hello & nc -ll -p 80 -e echo hello"
LISTED = ("registry.corp.example:5000", "dual.example")
START_SECONDS = 10.0
# What a base chain has counted is state, not a rule; and iptables-save writes the time of day.
_MOVES = re.compile(r"\[\d+:\d+\]|^#.*$", re.MULTILINE)


def tables(lab: Lab) -> list[tuple[str, str]]:
    listing = lab.client.run(["nft", "--json", "list", "tables"]).stdout
    found = [item["table"] for item in json.loads(listing)["nftables"] if "table" in item]
    return [(item["family"], item["name"]) for item in found]


def foreign_rules(lab: Lab) -> str:
    """Every table but ours as nft lists it, without counts, and as both iptables save it."""
    said = [
        lab.client.run(["nft", "-s", "list", "table", *table]).stdout
        for table in tables(lab)
        if table not in OURS
    ]
    saved = [lab.client.run([f"{name}-save"]).stdout for name in ("iptables", "ip6tables")]
    return "\n".join([*said, *(_MOVES.sub("", text) for text in saved)])


def hello(sandbox: Sandbox, address: str, port: int) -> str:
    """What a container says at its published port."""
    return sandbox.run(["busybox", "nc", "-w", "5", address, str(port)], check=False).stdout


@pytest.fixture(scope="module")
def busy(lab: Lab) -> Iterator[str]:
    """A container with published ports on a network of its own: Docker has made rules for it."""
    lab.registries.add_image("acme/other", files={"note": b"other"})
    assert pull(lab, IMAGE).worked
    assert docker(lab, "network", "create", "before").worked
    run = ["run", "--detach", "--name", "server", "--network", "before"]
    run += ["--publish", f"{FREE}:8080", "--publish", f"{JUDGED}:80"]
    said = docker(lab, *run, IMAGE, "sh", "-c", SERVE)
    assert said.worked, said.everything
    wait_until(
        lambda: {hello(lab.client, "127.0.0.1", port) for port in (FREE, JUDGED)} == {"hello\n"},
        START_SECONDS,
        "the container does not answer",
    )
    yield "server"
    docker(lab, "rm", "--force", "server")


def end(daemon: Daemon) -> None:
    done = daemon.cli("off")
    assert done.returncode == 0, done.stderr
    daemon.wait()


def test_dockers_ruleset_is_byte_for_byte_the_same(lab: Lab, ramnet: Ramnet, busy: str) -> None:
    assert busy
    before = foreign_rules(lab)
    assert "DOCKER" in before
    assert str(FREE) in before
    daemon = ramnet(policy(*LISTED))
    assert set(OURS) <= set(tables(lab))
    assert foreign_rules(lab) == before
    assert pull(lab, OTHER).worked
    assert pull(lab, "evil.example/acme/app").refused
    daemon.write_policy(policy(*LISTED, "ghcr.io"))
    wait_status(daemon, lambda said: "ghcr.io" in said["policy"]["registries"], "the new policy")
    assert foreign_rules(lab) == before
    daemon.kill()
    assert set(OURS) <= set(tables(lab))
    assert foreign_rules(lab) == before
    daemon.start()
    daemon.stop()
    assert foreign_rules(lab) == before
    daemon.start()
    end(daemon)
    assert not set(OURS) & set(tables(lab))
    assert foreign_rules(lab) == before


def test_the_comparison_sees_one_changed_rule(lab: Lab, busy: str) -> None:
    assert busy
    before = foreign_rules(lab)
    rule = ["DOCKER-USER", "-d", EVIL[0], "-j", "DROP"]
    lab.client.run(["iptables", "-w", "-I", *rule])
    try:
        assert foreign_rules(lab) != before
    finally:
        lab.client.run(["iptables", "-w", "-D", *rule])
    assert foreign_rules(lab) == before


def test_container_networks_work_and_come_and_go_while_ramnet_runs(
    lab: Lab, ramnet: Ramnet, busy: str
) -> None:
    before = foreign_rules(lab)
    daemon = ramnet(policy(*LISTED))
    try:
        assert docker(lab, "network", "create", "during").worked
        created = foreign_rules(lab)
        assert created != before
        run = ["run", "--rm", "--network"]
        # Out to the world, to a neighbour by name, and by the published port.
        world = docker(lab, *run, "during", IMAGE, "wget", "-qO-", f"http://{EVIL[0]}/v2/")
        assert world.worked, world.everything
        neighbour = docker(lab, *run, "before", IMAGE, "nc", "-w", "5", busy, "8080")
        assert neighbour.everything == "hello", neighbour
        assert hello(lab.client, "127.0.0.1", FREE) == "hello\n"
        for port in (FREE, JUDGED):
            assert hello(lab.world, CLIENT_V4, port) == "hello\n"
    finally:
        end(daemon)
    assert foreign_rules(lab) == created
    # Rules that Docker made while ramnet ran outlive it, and go with their network.
    after = docker(lab, *run, "during", IMAGE, "wget", "-qO-", f"http://{EVIL[0]}/v2/")
    assert after.worked, after.everything
    assert docker(lab, "network", "rm", "during").worked
    assert foreign_rules(lab) == before


def test_dockers_own_proxy_counts_as_an_engine(lab: Lab, ramnet: Ramnet, busy: str) -> None:
    """The price of scope netns: docker-proxy dials a judged port from the engine's namespace.

    Only what comes in by loopback takes the proxy, as the rest is redirected by Docker's rules.
    """
    assert busy
    assert hello(lab.client, "127.0.0.1", JUDGED) == "hello\n"
    ramnet(policy(*LISTED))
    assert hello(lab.client, "127.0.0.1", JUDGED) == ""
    assert hello(lab.client, "127.0.0.1", FREE) == "hello\n"
