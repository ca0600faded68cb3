"""What the policy allows works: pull, push and build, whatever DNS does to the names."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.lab.lab import LOCAL_REGISTRY, Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.story import allowed_pairs
from ramnet.lab.world import CHAIN, CORP, DUAL, EVIL, HUB, QUAY, V6ONLY
from tests.docker.support import build, docker, has_buildkit, pull
from tests.netns.support import STRICT, policy, status

pytestmark = pytest.mark.docker

LISTED = (
    *("docker.io", "quay.io", "registry.corp.example:5000", "chain.example", "v6only.example"),
    *("dual.example", "moving.example", "rotating.example", f"localhost:{LOCAL_REGISTRY}"),
)
REFUSED = "evil.example/acme/app"

POOL = tuple(f"198.51.100.{octet}" for octet in range(111, 123))
ROTATE_SECONDS = 0.3
PULLS = 8


@pytest.fixture(scope="module", autouse=True)
def daemon(lab: Lab) -> Iterator[Daemon]:
    """One daemon for all of it; what works here works although it refuses other registries."""
    made = lab.daemon(policy(*LISTED), config=STRICT)
    assert pull(lab, REFUSED).refused
    yield made
    assert status(made)["state"] == "enforcing"
    assert pull(lab, REFUSED).refused


@pytest.mark.parametrize(
    ("reference", "addresses", "port"),
    [
        ("busybox", HUB, 443),
        ("quay.io/acme/app", QUAY, 443),
        ("registry.corp.example:5000/acme/app", CORP, 5000),
        ("chain.example/acme/app", CHAIN, 443),
        ("v6only.example/acme/app", V6ONLY, 443),
        ("dual.example/acme/app", DUAL, 443),
    ],
    ids=["several-addresses", "cname-chain-of-hosts", "port", "long-chain", "ipv6-only", "dual"],
)
def test_an_allowed_registry_is_pulled_from(
    lab: Lab, reference: str, addresses: tuple[str, ...], port: int
) -> None:
    with lab.capture() as capture:
        said = pull(lab, reference)
        assert said.worked, said.everything
        # It came over the wire, and from nowhere else.
        reached = {(str(syn.dst), syn.dport) for syn in capture.syns}
    assert reached
    assert reached <= {(str(ip_address(address)), port) for address in addresses}
    # All addresses that the name has are open, of both families: the next client may take another.
    assert {(address, port) for address in addresses} <= set(allowed_pairs(lab))


def test_addresses_that_rotate_between_answers(lab: Lab) -> None:
    reached: set[str] = set()
    with (
        lab.capture() as capture,
        lab.dns.rotating("rotating.example", POOL, size=2, period=ROTATE_SECONDS),
    ):
        for _ in range(PULLS):
            said = pull(lab, "rotating.example/acme/app")
            assert said.worked, said.everything
        reached = {str(syn.dst) for syn in capture.syns}
    # The test would show nothing if the addresses had stood still.
    assert len(reached & set(POOL)) > 2
    assert reached <= set(POOL)


def test_an_address_that_changes_while_the_daemon_runs(lab: Lab) -> None:
    reference = "moving.example/acme/app"
    assert pull(lab, reference).worked
    for new in (("198.51.100.101",), ("2001:db8::102",), ("198.51.100.103", "2001:db8::103")):
        lab.dns.set("moving.example", *new)
        with lab.capture() as capture:
            said = pull(lab, reference)
            assert said.worked, said.everything
            assert {str(syn.dst) for syn in capture.syns} <= set(new)
            assert capture.syns


def test_a_changed_address_opens_only_its_own_port(lab: Lab) -> None:
    lab.dns.set("moving.example", "198.51.100.104")
    with lab.capture() as capture:
        assert pull(lab, "198.51.100.104:5000/acme/app").refused
        assert capture.to(["198.51.100.104"], ports=[5000]) == ()
        assert pull(lab, "moving.example/acme/app").worked


def test_push(lab: Lab) -> None:
    assert pull(lab, "busybox").worked
    pushed = f"registry.corp.example:5000/acme/pushed:{time.monotonic_ns()}"
    assert docker(lab, "tag", "busybox", pushed).worked
    said = docker(lab, "push", pushed)
    assert said.worked, said.everything
    assert any(
        line.startswith("PUT /v2/acme/pushed/manifests/") for line in lab.registries.requests()
    )
    assert pull(lab, pushed).worked


@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_build_pulls_its_base_image(
    lab: Lab, built: str, tmp_path: Path, *, buildkit: bool
) -> None:
    if buildkit and not has_buildkit(lab):
        buildkit = False  # the client has no plugin: the classic builder once more
    (tmp_path / "note").write_text("hello", encoding="utf-8")
    with lab.capture() as capture:
        said = build(lab, tmp_path, "quay.io/acme/app", "COPY note /note", buildkit=buildkit)
        assert said.worked, said.everything
        assert capture.to(QUAY, ports=[443])
    assert docker(lab, "run", "--rm", built, "cat", "/note").everything == "hello"


def test_a_run_step_reaches_what_nobody_catalogued(
    lab: Lab, daemon: Daemon, built: str, tmp_path: Path
) -> None:
    report = status(daemon)
    assert any("traffic of containers" in line for line in report["not_covered"])
    assert "nobody catalogued" in report["classes"]["containers"]["because"]
    fetch = f"RUN wget -q -O /dev/null http://{EVIL[0]}/v2/"
    with lab.capture() as capture:
        said = build(lab, tmp_path, "busybox", fetch)
        assert said.worked, said.everything
        assert capture.to(EVIL, ports=[80])
    assert docker(lab, "image", "inspect", built).worked


def test_a_registry_on_localhost(lab: Lab) -> None:
    server = lab.local_registry()
    try:
        image, mine = (f"localhost:{LOCAL_REGISTRY}/acme/{name}" for name in ("app", "mine"))
        said = pull(lab, image)
        assert said.worked, said.everything
        assert docker(lab, "tag", image, mine).worked
        assert docker(lab, "push", mine).worked
    finally:
        server.kill()
