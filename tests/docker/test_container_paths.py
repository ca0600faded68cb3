"""What runs in containers: a catalogued registry that is not allowed is refused, all else is free.

Every path is first tried without ramnet, where the same attempts get through.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ramnet.lab.dns import Record, records
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.topology import DNS_V4, DNS_V6, UNTRUSTED_DNS_V4, UPLINK, WORLD_V4, WORLD_V6
from ramnet.lab.world import EVIL, QUAY
from tests.coverage_table import Cover, Outcome, Section
from tests.docker.containers import container, inside, network
from tests.docker.nested import Nested, nested_engine
from tests.docker.support import Said, docker, has_buildkit, pull
from tests.netns.localdns import local_resolver
from tests.netns.places import Place, engine, outcomes, reach
from tests.netns.scoped import PRECISE, UNLISTED, WEAK, Enforced, enforcing, wait_denied
from tests.netns.support import Target, policy, status

pytestmark = pytest.mark.docker

SEEN_SECONDS = 10.0  # the daemon's own look-ups take milliseconds

STUB, STUB_USER = "127.0.0.53", 971
CORP = "registry.corp.example:5000"
MIRROR = (QUAY[0], QUAY[2])  # where quay.io is, by a name of its own
WILD = {f"r{n}.wild.example": (f"198.51.100.{n}", f"2001:db8::{n}") for n in range(170, 180)}
SHARED = ("198.51.100.165", "2001:db8::165")
OTHERS = {
    "deb.example": ("198.51.100.161", "2001:db8::161"),
    "git.example": ("198.51.100.162", "2001:db8::162"),
    "hub.docker.com": ("198.51.100.163", "2001:db8::163"),
    "gitlab.com": ("198.51.100.164", "2001:db8::164"),
    "gcr.io": SHARED,
    "mirror.example": MIRROR,
    "mirror6.example": MIRROR[1:],
    "evil6.example": EVIL[1:],
    **WILD,
}

# By name, and by address: what is a registry's API, and not in the policy.
CATALOGUED: dict[int, list[str]] = {
    4: ["quay.io", "ghcr.io", "registry-1.docker.io", "index.docker.io", "gcr.io"],
    6: ["quay.io", "registry-1.docker.io", "gcr.io"],
}
ADDRESSES = {
    4: [one for one in UNLISTED if ":" not in one],
    6: [one for one in UNLISTED if ":" in one],
}
FREE: list[Target] = [
    *(("evil.example", port) for port in (443, 80, 8443, 5000)),
    *((name, port) for name in ("deb.example", "git.example") for port in (443, 80)),
    *((name, 443) for name in ("hub.docker.com", "gitlab.com")),
]
UDP: list[Target] = [("evil.example", 443), ("evil.example", 8125)]
# What stands beside a refused address: another port of it, and one that others share.
BESIDE = {
    4: [(QUAY[0], 8443), (QUAY[0], 80), (SHARED[0], 443)],
    6: [(QUAY[2], 8443), (QUAY[2], 80), (SHARED[1], 443)],
}

ECHO = """
import socket, sys, threading
def serve(address, port):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, 2) as sock:
        sock.bind((address, port))
        print("ready", flush=True)
        while True:
            data, peer = sock.recvfrom(2048)
            sock.sendto(data, peer)
for address in sys.argv[2:]:
    for port in sys.argv[1].split(","):
        threading.Thread(target=serve, args=(address, int(port))).start()
"""

BRIDGE, OWN = "default bridge", "user-defined bridge"
HOST, JOINED = "--network=host", "--network=container:"
PATHS = (BRIDGE, OWN, HOST, JOINED)
ROWS = {path: f"docker run, {path}" for path in PATHS}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    table = records({name: list(addresses) for name, addresses in OTHERS.items()})
    options = {"ipv6": True, "fixed-cidr-v6": "fd00:d0::/64"}
    with Lab(
        engine=True,
        engine_cgroup=True,
        engine_options=options,
        records=table,
        certificate_names=OTHERS,
    ) as made:
        echo = [sys.executable, "-I", "-S", "-c", ECHO, ",".join(str(port) for _, port in UDP)]
        log = made.directory / "echo.log"
        process = made.world.popen([*echo, *EVIL], log=log)
        wait_until(lambda: process.tail().count("ready") == 4, SEEN_SECONDS, "the echo server")
        assert pull(made, "busybox").worked
        yield made


@pytest.fixture(scope="module")
def places(lab: Lab) -> Iterator[dict[str, Place]]:
    """One running container for each path. They live through daemons that come and go."""
    with ExitStack() as stack:
        own = stack.enter_context(network(lab, "--ipv6", "--subnet", "fd00:d1::/64"))
        first = stack.enter_context(container(lab))
        options = {
            OWN: ("--network", own),
            HOST: ("--network", "host"),
            JOINED: ("--network", f"container:{first}"),
        }
        names = {path: stack.enter_context(container(lab, *more)) for path, more in options.items()}
        yield {path: inside(lab, name) for path, name in {BRIDGE: first, **names}.items()}


@pytest.fixture(scope="module")
def nested(lab: Lab) -> Iterator[Nested]:
    with nested_engine(lab) as made:
        yield made


# --- the control: without ramnet


@dataclass(frozen=True, slots=True)
class Builder:
    """How an image is built."""

    network: str
    buildkit: bool

    def step(self, lab: Lab, folder: Path, step: str) -> Said:
        """Build an image with one step from what is there."""
        (folder / "Dockerfile").write_text(f"FROM busybox\nRUN {step}\n", encoding="utf-8")
        options = ("--no-cache", "--force-rm", "--tag", "stepped", "--network", self.network)
        buildkit = self.buildkit and has_buildkit(lab)
        return docker(lab, "build", *options, str(folder), buildkit=buildkit)


BUILDERS = [Builder(net, kit) for net in ("default", "host") for kit in (False, True)]
# By address: a static busybox cannot resolve a name but by nslookup.
KNOCK, FETCH = f"nc -w 3 {QUAY[0]} 443 </dev/null", f"wget -qO- http://{EVIL[0]}/v2/"


@dataclass(frozen=True, slots=True)
class Control:
    """What became of the same attempts without ramnet."""

    reached: dict[tuple[str, int], set[str]]
    syns: int
    pulls: dict[str, Said]
    steps: dict[Builder, Said]


NAMES = ("quay.io", "mirror.example", "mirror6.example", "evil.example", "evil6.example")
IMAGES = {name: f"{name}/acme/app" for name in NAMES}


@pytest.fixture(scope="module")
def control(
    lab: Lab,
    places: dict[str, Place],
    nested: Nested,
    tmp_path_factory: pytest.TempPathFactory,
) -> Control:
    reached = {}
    folder = tmp_path_factory.mktemp("control")
    with lab.capture() as capture:
        for path, place in places.items():
            for family in (4, 6):
                names = [(name, 443) for name in CATALOGUED[family]]
                addresses = [(address, 443) for address in ADDRESSES[family]]
                wanted = [*names, *addresses, *FREE, *BESIDE[family]]
                reached[path, family] = outcomes(place, wanted, family=family)
                reached[path, family] |= outcomes(place, UDP, family=family, protocol="udp")
        syns = len(capture.to(UNLISTED, ports=[443]))
    pulls = {name: nested.pull(image) for name, image in IMAGES.items()}
    pulls["ctr"] = nested.ctr(IMAGES["quay.io"])
    for buildkit in (False, True):
        pulls[f"build {buildkit}"] = nested.build(IMAGES["quay.io"], buildkit=buildkit)
    steps = {builder: builder.step(lab, folder, f"{FETCH} && {KNOCK}") for builder in BUILDERS}
    return Control(reached, syns, pulls, steps)


def test_without_ramnet_everything_is_reached(control: Control) -> None:
    assert {key: said for key, said in control.reached.items() if said != {"reached"}} == {}
    assert control.syns >= len(PATHS) * (len(ADDRESSES[4]) + len(ADDRESSES[6]))
    done = (*control.pulls.values(), *control.steps.values())
    assert [said for said in done if not said.worked] == []


# --- other modes of the class


STRICT = policy(
    CORP,
    "*.wild.example",
    more='\n[[destination]]\naddress = "deb.example"\nports = [443]\nreason = "packages"\n'
    '\n[enforcement]\ncontainers = "strict"\n',
)


@pytest.mark.parametrize("rung", PRECISE)
def test_strict_lets_containers_reach_what_is_allowed_and_nothing_else(
    lab: Lab, places: dict[str, Place], control: Control, rung: str, cover: Cover
) -> None:
    assert control.syns
    learned, other = list(WILD)[:2]
    with enforcing(lab, rung, STRICT) as made:
        assert status(made.daemon)["classes"]["containers"]["enforced"] == "strict"
        for path in (BRIDGE, OWN, JOINED):
            place = places[path]
            assert outcomes(place, [("registry.corp.example", 5000)]) == {"reached"}
            # Learned from what the container itself has heard.
            assert outcomes(place, [(learned, 443)]) == {"reached"}
            free = reach(place, [*FREE, *BESIDE[4], *BESIDE[6], ("registry.corp.example", 443)])
            assert set().union(*free.values()) == {"refused"}
            assert "reached" not in outcomes(place, UDP, protocol="udp")
        assert made.capture.to((*EVIL, *SHARED, *OTHERS["deb.example"])) == ()
        # A resolver that is not the machine's could be told anything: it is not asked.
        with container(lab, "--dns", UNTRUSTED_DNS_V4) as name:
            said = outcomes(inside(lab, name), [("registry.corp.example", 5000)])
            assert said == {"Temporary failure in name resolution"}
        # It is no news to the engine, until that has asked for itself.
        addresses = [(one, 443) for one in WILD[learned]]
        assert outcomes(engine(lab), addresses) == {"refused"}
        assert outcomes(engine(lab), [(learned, 443)]) == {"reached"}
        assert outcomes(engine(lab), addresses) == {"reached"}
        # What is the engine's alone: a destination, and what only the engine has heard.
        assert outcomes(engine(lab), [("deb.example", 443)]) == {"reached"}
        assert outcomes(places[BRIDGE], [("deb.example", 443)]) == {"refused"}
        assert outcomes(engine(lab), [(other, 443)]) == {"reached"}
    for path in (BRIDGE, OWN, JOINED):
        row = f"docker run, {path}, containers = strict"
        cover(Section.CONTAINERS, row, rung, Outcome.ENFORCED)


@pytest.mark.parametrize("rung", PRECISE)
def test_strict_where_the_engine_asks_for_containers(lab: Lab, control: Control, rung: str) -> None:
    """With a resolver on loopback it asks from the machine itself: who learns is everybody."""
    assert control.syns
    wild = list(WILD)[2]
    log = lab.directory / f"stub-{rung}.log"
    lab.client.set_resolvers(STUB)
    try:
        with ExitStack() as stack:
            stack.enter_context(local_resolver(lab.client, log, STUB, DNS_V4, user=STUB_USER))
            net = stack.enter_context(network(lab))
            place = inside(lab, stack.enter_context(container(lab, "--network", net)))
            stack.enter_context(enforcing(lab, rung, STRICT))
            assert outcomes(place, [(wild, 443)], family=4) == {"reached"}
            assert outcomes(place, [("evil.example", 443)], family=4) == {"refused"}
    finally:
        lab.client.set_resolvers(DNS_V4, DNS_V6)


@pytest.mark.parametrize("rung", PRECISE)
def test_containers_off_leaves_them_alone(
    lab: Lab, places: dict[str, Place], rung: str, cover: Cover
) -> None:
    text = policy(CORP, more='\n[enforcement]\ncontainers = "off"\n')
    with enforcing(lab, rung, text) as made:
        wait_denied(lab.client, QUAY[0], QUAY[2])  # for the programs of the machine
        for path in (BRIDGE, OWN, JOINED):
            names = [(name, 443) for name in CATALOGUED[4]]
            assert outcomes(places[path], [*names, (QUAY[0], 443), (QUAY[2], 443)]) == {"reached"}
        # The control: the engine is not what was switched off, nor the machine.
        assert outcomes(engine(lab), [("evil.example", 443)]) == {"refused"}
        assert outcomes(places[HOST], [(QUAY[0], 443)]) == {"refused"}
        assert status(made.daemon)["classes"]["containers"]["enforced"] == "off"
    for path in (BRIDGE, OWN, JOINED):
        row = f"docker run, {path}, containers = off"
        cover(Section.CONTAINERS, row, rung, Outcome.FREE)


# --- past the bridges


@contextmanager
def macvlan(lab: Lab) -> Iterator[Place]:
    """A container whose packets leave by the uplink without being forwarded by the machine."""
    subnet = f"{WORLD_V4.rpartition('.')[0]}.0/24"
    options = ["--driver", "macvlan", "--opt", f"parent={UPLINK}", "--subnet", subnet]
    options += ["--gateway", WORLD_V4, "--ip-range", subnet.replace(".0/24", ".128/25")]
    options += ["--ipv6", "--subnet", WORLD_V6.replace("::1", "::/64"), "--gateway", WORLD_V6]
    options += ["--ip-range", WORLD_V6.replace("::1", "::1:0/112")]
    with network(lab, *options) as net, container(lab, "--network", net) as name:
        yield inside(lab, name)


@pytest.mark.parametrize("rung", PRECISE)
def test_a_macvlan_network(lab: Lab, rung: str, cover: Cover) -> None:
    by_address = [(QUAY[0], 443), (QUAY[2], 443)]
    with macvlan(lab) as place:
        assert outcomes(place, [("quay.io", 443), *by_address]) == {"reached"}
        with enforcing(lab, rung, policy(CORP)) as made:
            wait_denied(lab.client, QUAY[0], QUAY[2])
            assert "reached" not in outcomes(place, [("quay.io", 443), *by_address])
            assert made.leaked() == 0
            assert outcomes(place, [("evil.example", 443), ("deb.example", 80)]) == {"reached"}
            assert outcomes(place, UDP, protocol="udp") == {"reached"}
    cover(Section.CONTAINERS, "docker run, macvlan network", rung, Outcome.BY_NAME)


# --- mode catalog: one daemon for each rung, so these come last


@pytest.fixture(scope="module")
def enforced(request: pytest.FixtureRequest, lab: Lab, control: Control) -> Iterator[Enforced]:
    assert control.pulls
    with enforcing(lab, request.param, policy(CORP)) as made:
        wait_denied(lab.client, *ADDRESSES[4], *ADDRESSES[6])
        yield made


on_rungs = pytest.mark.parametrize("enforced", PRECISE, indirect=True)
on_all_rungs = pytest.mark.parametrize("enforced", [*PRECISE, *WEAK], indirect=True)


@on_all_rungs
@pytest.mark.parametrize("path", PATHS)
def test_a_catalogued_registry_that_is_not_allowed_is_refused(
    places: dict[str, Place], enforced: Enforced, path: str, cover: Cover
) -> None:
    # The weak rungs take what has the machine's network and user for an engine.
    engines = path == HOST and enforced.rung in WEAK
    row = f'{ROWS[path]}, [scope] weak = "catalog"' if engines else ROWS[path]
    for family in (4, 6):
        by_name = reach(places[path], [(name, 443) for name in CATALOGUED[family]], family=family)
        if engines:
            # They hear the truth; an address that others share stays reachable.
            assert by_name.pop(("gcr.io", 443)) == {"reached"}
        assert set().union(*by_name.values()) == {"refused" if engines else "unknown"}
        addresses = [(address, 443) for address in ADDRESSES[family]]
        assert outcomes(places[path], addresses) == {"refused"}
        cover(Section.CONTAINERS, row, enforced.rung, Outcome.BY_NAME, family=family)
    assert enforced.leaked() == 0


@on_all_rungs
@pytest.mark.parametrize("path", PATHS)
def test_everything_else_is_reachable(
    places: dict[str, Place], enforced: Enforced, path: str
) -> None:
    assert enforced.daemon.running
    for family in (4, 6):
        said = reach(places[path], [*FREE, *BESIDE[family]], family=family)
        assert {target: found for target, found in said.items() if found != {"reached"}} == {}
        assert outcomes(places[path], UDP, family=family, protocol="udp") == {"reached"}
    assert outcomes(places[path], [("registry.corp.example", 5000)]) == {"reached"}


@on_rungs
def test_another_name_of_its_address_is_refused(
    places: dict[str, Place], enforced: Enforced
) -> None:
    for family in (4, 6):
        for path in (BRIDGE, OWN, HOST):
            said = reach(places[path], [("mirror.example", p) for p in (443, 8443)], family=family)
            assert said == {
                ("mirror.example", 443): {"refused"},
                ("mirror.example", 8443): {"reached"},
            }
    assert enforced.leaked() == 0


@on_rungs
def test_another_resolver_is_no_way_round(lab: Lab, enforced: Enforced, cover: Cover) -> None:
    former = lab.untrusted_dns.table.get("quay.io")
    lab.untrusted_dns.update({"quay.io": Record(QUAY), "mirror.example": Record(QUAY)})
    try:
        with container(lab, "--dns", UNTRUSTED_DNS_V4) as name:
            assert outcomes(inside(lab, name), [("quay.io", 443)]) == {"unknown"}
            assert outcomes(inside(lab, name), [("mirror.example", 443)]) == {"refused"}
    finally:
        lab.untrusted_dns.update({"quay.io": former, "mirror.example": None})
    assert enforced.leaked() == 0
    cover(Section.CONTAINERS, "docker run --dns", enforced.rung, Outcome.BY_NAME)


# --- steps of a build


@on_rungs
@pytest.mark.parametrize("builder", BUILDERS, ids=str)
def test_the_steps_of_a_build(
    lab: Lab, control: Control, enforced: Enforced, builder: Builder, tmp_path: Path, cover: Cover
) -> None:
    assert control.steps[builder].worked, control.steps[builder].everything
    assert (said := builder.step(lab, tmp_path, FETCH)).worked, said.everything
    said = builder.step(lab, tmp_path, KNOCK)
    assert not said.worked
    assert "refused" in said.everything, said
    assert said.seconds < SEEN_SECONDS
    assert enforced.leaked() == 0
    row = f"RUN in docker build, --network={builder.network}"
    cover(Section.CONTAINERS, row, enforced.rung, Outcome.BY_NAME)


# --- an engine in a container


# Debian has no buildkitd of its own: the one that dockerd carries stands for it.
NESTED = {
    "pull": "docker pull in Docker-in-Docker",
    "build": "docker build in Docker-in-Docker",
    "buildkit": "BuildKit in a container, as buildx's docker-container driver (dockerd's BuildKit)",
    "ctr": "ctr images pull in a container",
}


@on_rungs
@pytest.mark.parametrize("how", NESTED)
def test_an_engine_in_a_container_pulls_no_registry_that_is_not_allowed(
    nested: Nested, control: Control, enforced: Enforced, how: str, cover: Cover
) -> None:
    """The mirrors are addresses of quay.io by other names."""
    for name in ("quay.io", "mirror.example", "mirror6.example"):
        assert control.pulls[name].worked
        words = "no such host" if name == "quay.io" else "connection refused"
        match how:
            case "pull":
                said = nested.pull(IMAGES[name])
            case "ctr":
                said = nested.ctr(IMAGES[name])
            case _:
                said = nested.build(IMAGES[name], buildkit=how == "buildkit")
        assert not said.worked
        assert words in said.everything, said
        assert said.seconds < SEEN_SECONDS
    assert enforced.leaked() == 0
    cover(Section.CONTAINERS, NESTED[how], enforced.rung, Outcome.BY_NAME)


@on_rungs
def test_an_engine_in_a_container_pulls_everything_else(
    nested: Nested, enforced: Enforced, cover: Cover
) -> None:
    for image in (f"{CORP}/acme/app", IMAGES["evil.example"], IMAGES["evil6.example"]):
        assert (said := nested.pull(image)).worked, said.everything
        for buildkit in (False, True):
            assert (said := nested.build(image, buildkit=buildkit)).worked, said.everything
        assert (said := nested.ctr(image)).worked, said.everything
    # The innermost container: behind a bridge that is behind a bridge.
    said = nested.docker("run", "--rm", f"{CORP}/acme/app", "nslookup", "-type=a", "quay.io")
    assert "NXDOMAIN" in said.everything
    innermost = ("run", "--rm", f"{CORP}/acme/app", "sh", "-c")
    assert (said := nested.docker(*innermost, FETCH)).worked, said.everything
    said = nested.docker(*innermost, KNOCK)
    assert not said.worked
    assert "refused" in said.everything, said
    assert enforced.leaked() == 0
    row = "docker run in Docker-in-Docker"
    cover(Section.CONTAINERS, row, enforced.rung, Outcome.BY_NAME)
