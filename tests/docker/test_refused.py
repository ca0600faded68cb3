"""What the policy does not allow is refused, soon and in words, and nothing of it leaves.

Each case is first run without ramnet, where the same pull works: the images are there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramnet.lab.capture import Capture
from ramnet.lab.lab import LOCAL_REGISTRY, Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import HOSTS
from ramnet.lab.world import CORP, EVIL, GHCR
from tests.docker.support import BUILT, Said, build, docker, has_buildkit, pull
from tests.netns.dnsworld import MODES
from tests.netns.support import STRICT, policy, status

pytestmark = pytest.mark.docker

ALLOWED = "registry.corp.example:5000/acme/app"
LISTED = ("docker.io", "registry.corp.example:5000", "hosts.example")
LOCAL = f"localhost:{LOCAL_REGISTRY}/acme/app"
# dockerd may hold what it read of the hosts file for 5 s (Go, net/hosts.go).
HOSTS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Case:
    """An image that is not allowed, and where its registry is."""

    reference: str
    addresses: tuple[str, ...]
    port: int = 443


CASES = {
    "not-listed": Case("ghcr.io/acme/app", GHCR),
    "not-listed-both-families": Case("evil.example/acme/app", EVIL),
    "not-listed-ipv6-only": Case("evil6.example/acme/app", EVIL[1:]),
    "bare-address": Case(f"{EVIL[0]}/acme/app", EVIL[:1]),
    "bare-address-and-port": Case(f"{EVIL[0]}:5000/acme/app", EVIL[:1], 5000),
    "plain-http": Case("evil.example:80/acme/app", EVIL, 80),
    # Listed, but only the hosts file says that it is there; and a name that DNS does not know.
    "hosts-entry-for-a-listed-name": Case("hosts.example/acme/app", EVIL[:1]),
    "hosts-entry-for-another-name": Case("unknown.example/acme/app", EVIL[:1]),
    "other-port-of-an-allowed-address": Case("registry.corp.example/acme/app", CORP),
    "plain-port-of-an-allowed-address": Case("registry.corp.example:80/acme/app", CORP, 80),
    "allowed-address-without-its-name": Case(f"{CORP[0]}/acme/app", CORP),
}


@dataclass(frozen=True, slots=True)
class Control:
    """The same without ramnet: what worked, and the SYNs that the far side saw for each case."""

    pulls: dict[str, Said]
    syns: dict[str, int]
    local: Said
    push: Said
    build: Said


def push_refused(lab: Lab) -> Said:
    assert docker(lab, "tag", ALLOWED, "ghcr.io/acme/pushed").worked
    return docker(lab, "push", "ghcr.io/acme/pushed")


@pytest.fixture(scope="module")
def control(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Control:
    names = ("hosts.example", "unknown.example")
    lab.client.write("/etc/hosts", HOSTS + "".join(f"{EVIL[0]} {name}\n" for name in names))
    lab.local_registry()  # stays: later it is what refusing has to be told from
    deadline = time.monotonic() + HOSTS_SECONDS
    while not pull(lab, "unknown.example/acme/app").worked and time.monotonic() < deadline:
        time.sleep(0.5)
    pulls, syns = {}, {}
    for name, case in CASES.items():
        with lab.capture() as capture:
            pulls[name] = pull(lab, case.reference)
            syns[name] = len(capture.to(case.addresses, ports=[case.port]))
    assert pull(lab, ALLOWED).worked
    folder = tmp_path_factory.mktemp("control")
    local, pushed = pull(lab, LOCAL), push_refused(lab)
    made = build(lab, folder, "ghcr.io/acme/app")
    lab.engine.forget(BUILT)
    return Control(pulls, syns, local, pushed, made)


@dataclass(frozen=True, slots=True)
class Enforced:
    """A daemon, and the capture that runs for as long as it does."""

    daemon: Daemon
    capture: Capture


@contextmanager
def enforcing(lab: Lab, text: str | None, config: str = STRICT) -> Iterator[Enforced]:
    daemon = lab.daemon(text, config=config)
    with lab.capture() as capture:
        yield Enforced(daemon, capture)
    assert daemon.cli("off").returncode == 0
    daemon.wait()


@pytest.fixture(scope="module")
def enforced(lab: Lab, control: Control) -> Iterator[Enforced]:
    assert control.local.worked
    with enforcing(lab, policy(*LISTED)) as made:
        assert pull(lab, ALLOWED).worked
        yield made


@pytest.mark.parametrize("name", CASES)
def test_a_pull_is_refused_in_the_engines_words(
    lab: Lab, control: Control, enforced: Enforced, name: str
) -> None:
    case = CASES[name]
    assert control.pulls[name].worked, control.pulls[name].everything
    assert control.syns[name] > 0
    said = pull(lab, case.reference)
    assert said.refused, said
    assert said.words.startswith("Error response from daemon: ")
    assert f":{case.port}: connect: connection refused" in said.words
    assert enforced.capture.to(case.addresses, ports=[case.port]) == ()


def test_localhost_is_refused_unless_listed(lab: Lab, control: Control, enforced: Enforced) -> None:
    assert control.local.worked, control.local.everything
    before = len(lab.registries.requests())
    said = pull(lab, LOCAL)
    assert said.refused, said
    assert len(lab.registries.requests()) == before
    assert enforced.daemon.running


def test_a_push_is_refused(lab: Lab, control: Control, enforced: Enforced) -> None:
    assert control.push.worked, control.push.everything
    assert pull(lab, ALLOWED).worked
    said = push_refused(lab)
    assert said.refused, said
    assert enforced.capture.to(GHCR) == ()


@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_a_build_from_a_base_image_that_is_not_allowed_is_refused(
    lab: Lab, control: Control, enforced: Enforced, tmp_path: Path, *, buildkit: bool
) -> None:
    assert control.build.worked, control.build.everything
    said = build(lab, tmp_path, "ghcr.io/acme/app", buildkit=buildkit and has_buildkit(lab))
    assert not said.worked
    assert "connect: connection refused" in said.everything
    assert enforced.capture.to(GHCR) == ()


def test_it_stays_refused_while_the_daemon_is_dead(lab: Lab, enforced: Enforced) -> None:
    enforced.daemon.kill()
    try:
        said = pull(lab, "ghcr.io/acme/app")
        assert said.refused, said
        assert pull(lab, ALLOWED).worked
        assert enforced.capture.to(GHCR) == ()
    finally:
        enforced.daemon.start()


def test_mode_observe_refuses_in_the_same_words(
    lab: Lab, control: Control, enforced: Enforced
) -> None:
    """Only later: the first SYN to each address is dropped, its retransmission is refused."""
    assert status(enforced.daemon)["dns"]["mode"] == "hold"
    enforced.daemon.stop()
    try:
        with enforcing(lab, policy(*LISTED), MODES["observe"]) as observing:
            for name in ("not-listed-both-families", "other-port-of-an-allowed-address"):
                case = CASES[name]
                assert control.pulls[name].worked
                said = pull(lab, case.reference)
                assert said.refused, said
                assert said.seconds > 1
                assert observing.capture.to(case.addresses, ports=[case.port]) == ()
            assert pull(lab, ALLOWED).worked
    finally:
        enforced.daemon.start()


def test_without_a_policy_everything_is_refused_in_words(
    lab: Lab, control: Control, enforced: Enforced
) -> None:
    assert control.pulls
    enforced.daemon.stop()
    try:
        with enforcing(lab, None) as locked:
            assert status(locked.daemon)["state"] == "locked-down"
            for reference in ("busybox", ALLOWED, "ghcr.io/acme/app", LOCAL):
                said = pull(lab, reference)
                assert said.refused, said
            assert locked.capture.syns == ()
        # The control for what is allowed otherwise: only ramnet was in the way.
        assert pull(lab, "busybox").worked
    finally:
        enforced.daemon.start()
