"""A refusal reads at the prompt: each client ends at once, with words of the organisation's.

Under a policy that says nothing of how to refuse. Every pull is first made without ramnet, where it
gets through, and the judge of what leaves is a capture at the far side.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from ramnet.lab.capture import Capture
from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import DNS_V4
from ramnet.lab.world import EVIL, GHCR, QUAY
from tests.conftest import CONFINEMENT
from tests.debian import DebianError
from tests.docker.clients import CLIENTS, World, skopeo_by, world_of
from tests.docker.support import Said
from tests.docker.tree import newest
from tests.netns.activity import activity, wait_record
from tests.netns.noticing import wait_notice
from tests.netns.places import USER
from tests.netns.scoped import wait_denied
from tests.netns.support import policy

# A tree that has to be made, two engines, and every pull without ramnet: all before the first test.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(480)]

# Far more than it takes; Docker waits 15 s for what is dropped.
SECONDS = 10.0
NAME = "registry-access-denied-by-acme.ramnet.invalid"
SENTENCE = "registry access denied by acme"
# Of a certificate for a bare address Go has no name to show, but who may have been to sign it.
AUTHORITY = f'while trying to verify candidate authority certificate "{SENTENCE}"'
CONTACT = "it@acme.example"

ALLOWED = "registry.corp.example:5000/acme/app"
PLAIN = ("evil4.example:80", "evil6.example:80")
RECORDS = records({"evil4.example": list(EVIL[:1]), "evil6.example": list(EVIL[1:])})
PROXY_ADDRESS, PROXY_PORT = "198.51.100.90", 3128
RELAY = Path(__file__).with_name("relay.py")
PROXY = {
    "HTTPS_PROXY": f"http://{PROXY_ADDRESS}:{PROXY_PORT}",
    "NO_PROXY": "registry.corp.example",
}


@dataclass(frozen=True, slots=True)
class Case:
    """An image that is not allowed, where its registry is, and what has to be told of it."""

    reference: str
    address: str
    port: int = 443
    says: str = NAME

    @property
    def plain(self) -> bool:
        return self.port == 80


CASES = {
    "tls-ipv4": Case("evil4.example/acme/app", EVIL[0]),
    "tls-ipv6": Case("evil6.example/acme/app", EVIL[1]),
    "bare-ipv4": Case(f"{EVIL[0]}/acme/app", EVIL[0], says=AUTHORITY),
    "bare-ipv6": Case(f"[{EVIL[1]}]/acme/app", EVIL[1], says=AUTHORITY),
    "http-ipv4": Case("evil4.example:80/acme/app", EVIL[0], 80, SENTENCE),
    "http-ipv6": Case("evil6.example:80/acme/app", EVIL[1], 80, SENTENCE),
}
# These take no reference with an IPv6 address: Docker 20.10 neither.
NO_IPV6 = ("docker", "skopeo", "skopeo-newest", "podman-newest")
NO_SUCH = {(name, "bare-ipv6") for name in NO_IPV6}
BOTH = [pair for pair in product(CLIENTS, CASES) if pair not in NO_SUCH]
# What the address of a proxy is for is decided by the environment of who pulls.
BY_PROXY = [name for name in CLIENTS if not name.startswith(("docker", "ctr-newest"))]
ENGINES = ("docker", "docker-newest")
# Refused as soon, but not in these words: skopeo 1.9 does not read what comes with the status.
TERSE = {("skopeo", "http-ipv4"): "403 (Forbidden)", ("skopeo", "http-ipv6"): "403 (Forbidden)"}
# A registry that the catalogue knows, for those who are no engines.
HOSTS = {"quay.io": NAME, QUAY[0]: SENTENCE}


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    try:
        tree = newest(request.config.stash[CONFINEMENT].machine_fd)
    except DebianError as err:  # in CI, where every test must run, this is a failure
        pytest.skip(str(err))
    options = {"insecure-registries": list(PLAIN)}
    with Lab(engine=True, engine_cgroup=True, engine_options=options, records=RECORDS) as lab:
        lab.world.set_resolvers(DNS_V4)
        script = RELAY.read_text(encoding="utf-8")
        argv = [sys.executable, "-I", "-S", "-c", script, str(PROXY_PORT)]
        lab.world.popen(argv, log=lab.world.directory / "proxy.log").wait_for_line("ready")
        with world_of(lab, tree, *PLAIN) as made:
            yield made


@dataclass(frozen=True, slots=True)
class Control:
    """The same without ramnet: what was said, and the SYNs that the far side saw for it."""

    pulls: dict[tuple[str, str], tuple[Said, int]]
    proxied: dict[str, tuple[Said, int]]
    by_user: dict[str, Said]


@pytest.fixture(scope="module")
def control(world: World) -> Control:
    pulls, proxied = {}, {}
    with world.lab.capture() as capture:

        def counted(said: Said, address: str, port: int, before: int) -> tuple[Said, int]:
            return said, len(capture.to([address], ports=[port])) - before

        for name, key in BOTH:
            case = CASES[key]
            before = len(capture.to([case.address], ports=[case.port]))
            said = world.pull(name, case.reference, plain=case.plain)
            pulls[name, key] = counted(said, case.address, case.port, before)
        for name in (*BY_PROXY, *ENGINES):
            before = len(capture.to([PROXY_ADDRESS], ports=[PROXY_PORT]))
            said = pull_by_proxy(world, name)
            proxied[name] = counted(said, PROXY_ADDRESS, PROXY_PORT, before)
    by_user = {host: skopeo_by(USER, world.old, f"{host}/acme/app") for host in HOSTS}
    return Control(pulls, proxied, by_user)


def pull_by_proxy(world: World, name: str) -> Said:
    reference = CASES["tls-ipv4"].reference
    if name not in ENGINES:
        return world.pull(name, reference, env=PROXY)
    engine = world.place(CLIENTS[name]).engine
    engine.stop()
    engine.start(env=PROXY)
    try:
        return world.pull(name, reference)
    finally:
        engine.stop()
        engine.start()


@pytest.fixture(scope="module")
def daemon(world: World, control: Control) -> Iterator[Daemon]:
    assert control.pulls
    support = f'\n[support]\ncontact = "{CONTACT}"\n'
    made = world.lab.daemon(policy("registry.corp.example:5000", more=support, on_deny=None))
    wait_notice(world.lab.client)
    yield made
    assert made.cli("off").returncode == 0
    made.wait()


@pytest.fixture
def capture(world: World, daemon: Daemon) -> Iterator[Capture]:
    assert daemon.running
    with world.lab.capture() as made:
        yield made


def test_without_ramnet_every_client_gets_through(control: Control) -> None:
    for said, syns in (*control.pulls.values(), *control.proxied.values()):
        assert said.worked, said
        assert syns > 0
    for said in control.by_user.values():
        assert said.worked, said


def refused(said: Said, words: str) -> None:
    assert not said.worked, said
    assert words in said.everything.replace('\\"', '"'), said  # as skopeo's log has quotes
    assert said.seconds < SECONDS, said
    # Shown by `pytest -rP`.
    sys.stdout.write(f"{said.everything}\n({said.seconds:.2f} s)\n")


@pytest.mark.parametrize(("name", "key"), BOTH, ids=[f"{one}-{two}" for one, two in BOTH])
def test_a_refused_pull_says_who_refused_it(
    world: World, control: Control, capture: Capture, name: str, key: str
) -> None:
    case = CASES[key]
    assert control.pulls[name, key][1] > 0
    words = TERSE.get((name, key), case.says)
    refused(world.pull(name, case.reference, plain=case.plain), words)
    assert capture.syns == ()


@pytest.mark.parametrize("name", [*BY_PROXY, *ENGINES])
def test_a_refused_proxy_says_who_refused_it(
    world: World, control: Control, capture: Capture, name: str
) -> None:
    assert control.proxied[name][1] > 0
    refused(pull_by_proxy(world, name), SENTENCE)
    assert capture.syns == ()


@pytest.mark.parametrize("name", CLIENTS)
def test_what_is_allowed_is_pulled_as_before(world: World, capture: Capture, name: str) -> None:
    said = world.pull(name, ALLOWED)
    assert said.worked, said
    assert capture.syns != ()


@pytest.mark.parametrize("newer", [False, True], ids=["docker", "docker-newest"])
def test_buildkit_says_it_as_well(world: World, capture: Capture, *, newer: bool) -> None:
    place = world.new if newer else world.old
    folder = world.lab.directory / f"build-{place.engine.socket.parent.name}"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM ghcr.io/acme/app\n", encoding="utf-8")
    done = place.engine.docker("build", str(folder), env={"DOCKER_BUILDKIT": "1"})
    assert done.returncode != 0
    assert NAME in done.stderr
    assert capture.to(GHCR) == ()


@pytest.mark.parametrize("host", HOSTS)
def test_a_user_who_is_no_engine_reads_it_as_well(
    world: World, control: Control, capture: Capture, host: str
) -> None:
    assert control.by_user[host].worked
    wait_denied(world.lab.client, *QUAY)
    refused(skopeo_by(USER, world.old, f"{host}/acme/app"), HOSTS[host])
    assert capture.to(QUAY) == ()


def test_the_record_has_the_names_that_clients_said(
    world: World, control: Control, daemon: Daemon
) -> None:
    assert control.by_user
    world.pull("docker", CASES["tls-ipv6"].reference)
    world.pull("skopeo-newest", CASES["http-ipv4"].reference, plain=True)
    world.pull("ctr", CASES["tls-ipv4"].reference, env=PROXY)
    skopeo_by(USER, world.old, "quay.io/acme/app")
    said = (("engine", "evil6.example", "sni"), ("engine", "evil4.example", "connect"))
    for who, name, origin in (*said, ("host", "quay.io", "sni")):
        wanted = {"class": who, "name_from": origin}
        record = wait_record(daemon, verdict="denied", name=name, **wanted)
        assert record["why"]
    wait_record(daemon, verdict="denied", address=PROXY_ADDRESS, port=PROXY_PORT)
    wait_record(daemon, verdict="denied", address=EVIL[0], port=80)
    # One attempt is one record: what was copied and what was told of it are the same.
    for record in activity(daemon, "--verdict", "denied"):
        assert record["class"] is not None
        assert record["name"] is not None, record
