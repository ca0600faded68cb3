"""Class engine, every path: refused unless the policy lists it, on each rung of the scope ladder.

One engine for all of it. Each attempt is first made without ramnet, where it gets through; then on
every rung, with a capture at the far side that runs for as long as the daemon enforces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ramnet.lab.capture import Capture
from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import require
from ramnet.lab.ramnet import Daemon
from ramnet.lab.topology import CLIENT_V4, CLIENT_V6, DNS_V4, DNS_V6
from ramnet.lab.world import GHCR
from tests.coverage_table import Cover, Outcome, Section
from tests.docker import paths
from tests.docker.containers import PYTHON, machine
from tests.docker.paths import CASES, FAMILIES, LOW, Case, Low, address_of, arrived, host
from tests.docker.support import BUILT, Said, docker, has_buildkit, pull
from tests.netns.support import status, table

pytestmark = pytest.mark.docker

STRICT, WEAK = ("cgroup", "mark"), ("uid", "netns")
WEAK_SCOPES = "0008-rungs-and-what-they-cannot-tell-apart.md"

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
USER = 1000
DENY_SECONDS = 10.0
OTHER = "other connections of the engine: "
RELAY = Path(__file__).with_name("relay.py")
RELAY_PORT, LISTED_PORT, PROXY_PORT = 5055, 5056, 3128
CONTAINERS_V6 = "2001:db8:d0c::/64"
# Where the relay and the proxy lead, and a name that is only asked for by way of the proxy.
RELAYED = paths.address(90, 4, listed=False)
PROXIED, BEHIND_PROXY = "proxied.test", paths.address(91, 4, listed=False)
# The swarm's manager, where the policy lists it and where it does not.
MANAGER = {family: paths.address(92, family, listed=True) for family in FAMILIES}
OTHER_MANAGER = {family: paths.address(92, family, listed=False) for family in FAMILIES}
OTLP = {family: paths.address(93, family, listed=True) for family in FAMILIES}

RECORDS = paths.records_of_cases() | records(
    {
        PROXIED: [BEHIND_PROXY],
        "manager.example": list(OTHER_MANAGER.values()),
        "relay6.example": ["2001:db8:d0c::2"],  # until the container says what it has
        "machine6.example": [CLIENT_V6],
        "loop6.example": ["::1"],
    }
)
# Where the relay is asked, by family; its container's IPv4 address is known when it runs.
RELAYS = {
    ("container", 4): "",
    ("container", 6): "relay6.example",
    ("machine", 4): CLIENT_V4,
    ("machine", 6): "machine6.example",
    ("loopback", 4): "127.0.0.1",
    ("loopback", 6): "loop6.example",
}
RELAY_ROWS = {
    "container": "at the container's own address",
    "machine": "at its published port on the machine's address",
    "loopback": "at its published port on loopback",
}
OPTIONS = {
    "ipv6": True,
    "fixed-cidr-v6": CONTAINERS_V6,
    "insecure-registries": [
        *("172.16.0.0/12", f"{CLIENT_V4}/32"),
        *(f"{name}:{RELAY_PORT}" for name in RELAYS.values() if name.endswith(".example")),
    ],
}
# Go's clients take the proxy for every other place: here, for one name.
NO_PROXY = ".example,docker.io,ghcr.io,172.16.0.0/12,192.0.2.0/24,198.51.100.0/24,203.0.113.0/24"
PROXY = {"HTTPS_PROXY": f"http://127.0.0.1:{PROXY_PORT}", "NO_PROXY": NO_PROXY}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(
        engine=True,
        engine_cgroup=True,
        engine_options=OPTIONS,
        records=RECORDS,
        certificate_names=[PROXIED],
    ) as made:
        paths.start_far_side(made, tmp_path_factory.mktemp("far-side"))
        made.registries.add_image(paths.BOX, files={"note": b"not the image of any registry"})
        script = RELAY.read_text(encoding="utf-8")
        folder = tmp_path_factory.mktemp("proxy")
        argv = [str(PYTHON), "-I", "-S", "-c", script, str(PROXY_PORT)]
        made.client.popen(argv, log=folder / "log").wait_for_line("ready")
        made.engine.stop()
        made.engine.start(env=PROXY)
        assert docker(made, "pull", paths.BOX).worked
        yield made


@pytest.fixture(scope="module")
def relay(lab: Lab) -> str:
    """A container that relays to a registry; return its IPv4 address. It ends with the lab."""
    script = RELAY.read_text(encoding="utf-8")
    ports = ("-p", f"{RELAY_PORT}:{RELAY_PORT}", "-p", f"{LISTED_PORT}:{RELAY_PORT}")
    argv = (str(PYTHON), "-I", "-S", "-c", script, str(RELAY_PORT), RELAYED, "80")
    said = docker(lab, "run", "--detach", "--name=relay", *ports, *machine(), paths.BOX, *argv)
    assert said.worked, said.everything
    form = "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.GlobalIPv6Address}}"
    v4, v6 = docker(lab, "inspect", "--format", form, "relay").words.split()
    lab.dns.set("relay6.example", v6)
    return v4


@dataclass(frozen=True, slots=True)
class Control:
    """Everything without ramnet: what was said, and how many frames arrived for it."""

    cases: dict[tuple[str, int], tuple[Said, int]]
    relays: dict[tuple[str, int], tuple[Said, int]]
    proxy: tuple[Said, int]
    joins: dict[int, tuple[Said, int]]
    lows: dict[tuple[str, int], int]


def run_case(lab: Lab, case: Case, family: int, folder: Path, *, listed: bool) -> Said:
    said = case.run(lab, host(case.key, family, listed=listed), folder)
    lab.engine.forget(BUILT)
    return said


def pull_by_relay(lab: Lab, relay: str, way: tuple[str, int], capture: Capture) -> tuple[Said, int]:
    """Pull, and count what came to the registry behind the relay meanwhile."""
    before = arrived(capture, RELAYED)
    said = pull(lab, f"{RELAYS[way] or relay}:{RELAY_PORT}/acme/app")
    return said, arrived(capture, RELAYED).total() - before.total()


@dataclass(frozen=True, slots=True)
class Swarm:
    """A manager on the far side, which every address there leads to; the engine is its worker."""

    lab: Lab
    token: str

    def join(self, manager: str) -> Said:
        place = f"[{manager}]" if ":" in manager else manager
        token = ("--token", self.token)
        return docker(self.lab, "swarm", "join", *token, f"{place}:{paths.SWARM_PORT}")

    def join_and_leave(self, manager: str) -> Said:
        said = self.join(manager)
        docker(self.lab, "swarm", "leave", "--force")
        return said


@pytest.fixture(scope="module")
def swarm(lab: Lab) -> Swarm:
    _, token = paths.start_swarm(lab, lab.directory / "swarm", MANAGER[4])
    return Swarm(lab, token)


@pytest.fixture(scope="module")
def control(
    lab: Lab, relay: str, swarm: Swarm, tmp_path_factory: pytest.TempPathFactory
) -> Control:
    folder = tmp_path_factory.mktemp("control")
    with lab.capture(everything=True) as capture:
        paths.attempt_all(lab.run_as_engine, outside=False)
        said = {
            (case.key, family): run_case(lab, case, family, folder, listed=False)
            for case in CASES
            for family in FAMILIES
        }
        relays = {way: pull_by_relay(lab, relay, way, capture) for way in RELAYS}
        proxied = pull(lab, f"{PROXIED}/acme/app")
        joined = {family: swarm.join_and_leave(OTHER_MANAGER[family]) for family in FAMILIES}
        seen = paths.tally(capture)
    # dockerd keeps connections for the next request, and what is open stays open: begin anew.
    lab.engine.stop()
    lab.engine.start(env=PROXY)
    assert docker(lab, "start", "relay").worked
    return Control(
        {key: (done, seen[_unlisted(*key)]) for key, done in said.items()},
        relays,
        (proxied, seen[BEHIND_PROXY]),
        {family: (done, seen[OTHER_MANAGER[family]]) for family, done in joined.items()},
        {
            (low.row, family): seen[paths.low_address(low, family, outside=False)]
            for low in LOW
            for family in low.families
        },
    )


def _unlisted(key: str, family: int) -> str:
    return address_of(paths.BY_KEY[key], family, listed=False)


def test_control_everything_gets_through_without_ramnet(control: Control) -> None:
    runs = [*control.cases.values(), *control.relays.values(), *control.joins.values()]
    runs.append(control.proxy)
    assert [said for said, seen in runs if not (said.worked and seen)] == []
    assert [key for key, seen in control.lows.items() if not seen] == []


# --- with ramnet


@pytest.mark.parametrize("rung", WEAK)
def test_a_weak_rung_knows_only_the_catalogue_unless_told(
    lab: Lab, control: Control, rung: str, cover: Cover
) -> None:
    said, _ = control.cases["pull", 4]
    assert said.worked
    with lab.capture() as capture:
        assert pull(lab, "ghcr.io/acme/app").worked
        assert capture.to(GHCR)
    daemon = lab.daemon(paths.policy_of_cases("docker.io"), config=f'[scope]\nmode = "{rung}"\n')
    assert status(daemon)["state"] == "degraded"
    # Its own resolution of the names that it denies comes after that of the names it allows.
    wait_until(lambda: f"{GHCR[0]} . 443" in table(lab.client), DENY_SECONDS, "denied addresses")
    with lab.capture() as capture:
        assert not pull(lab, "ghcr.io/acme/app").worked
        assert capture.to(GHCR) == ()
        assert pull(lab, f"{host('pull', 4, listed=False)}/acme/app").worked
    assert daemon.cli("off").returncode == 0
    daemon.wait()
    row = 'docker pull where [scope] weak is "catalog", the default'
    cover(Section.ENGINE, row, rung, Outcome.BY_NAME, decision=WEAK_SCOPES)


@dataclass(frozen=True, slots=True)
class Enforced:
    """A daemon on one rung, and the capture that runs for as long as it enforces."""

    rung: str
    daemon: Daemon
    capture: Capture
    inside: dict[tuple[str, int], str]
    lows: Counter[str]  # what arrived of all attempts of a program of ours, by address
    joining: Future[Said] | None = field(default=None)


@contextmanager
def enforcing(lab: Lab, rung: str) -> Iterator[tuple[Daemon, Capture]]:
    """Start a daemon; at the end nothing may have arrived of all that is not listed."""
    config = f'[scope]\nmode = "{rung}"\ncgroups = ["{lab.engine_group}"]\nweak = "strict"\n'
    more = ""
    if rung in STRICT:  # a weak rung would judge the port everywhere
        more = "".join(
            paths.destination(MANAGER[family], paths.SWARM_PORT)
            + paths.destination(OTLP[family], paths.OTLP_PORT)
            for family in FAMILIES
        )
    text = paths.policy_of_cases("docker.io", f"127.0.0.1:{LISTED_PORT}", more=more)
    daemon = lab.daemon(text, config=config)
    assert status(daemon)["classes"]["engine"]["enforced"] == "strict"
    with lab.capture(everything=True) as capture:
        yield daemon, capture
        if rung in STRICT:
            never = [_unlisted(case.key, family) for case in CASES for family in FAMILIES]
            assert arrived(capture, *never, BEHIND_PROXY, *OTHER_MANAGER.values()) == {}
    assert daemon.cli("off").returncode == 0
    daemon.wait()


@pytest.fixture(scope="module")
def enforced(
    request: pytest.FixtureRequest, lab: Lab, control: Control, swarm: Swarm
) -> Iterator[Enforced]:
    rung = request.param
    assert control.cases
    with enforcing(lab, rung) as (daemon, capture), ThreadPoolExecutor(1) as pool:
        # dockerd tries for 10 s before it says that it cannot join; the last test asks for it.
        joining = pool.submit(swarm.join, "manager.example") if rung in STRICT else None
        inside = paths.attempt_all(lab.run_as_engine, outside=False)
        paths.attempt_all(lab.client.run, outside=True)
        yield Enforced(rung, daemon, capture, inside, paths.tally(capture), joining)


def on(*rungs: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("enforced", rungs, indirect=True, scope="module")


def ids(value: object) -> str | None:
    return value.key if isinstance(value, Case) else None


each_family = pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])


def check_refused(
    lab: Lab, control: Control, enforced: Enforced, case: Case, family: int, folder: Path
) -> None:
    said, seen = control.cases[case.key, family]
    assert said.worked, said.everything
    assert seen
    said = run_case(lab, case, family, folder, listed=False)
    assert arrived(enforced.capture, _unlisted(case.key, family)) == {}
    if case.words:
        assert not said.worked
        words = case.words.format(host(case.key, family, listed=False))
        assert words in said.everything, said.everything


def check_allowed(lab: Lab, enforced: Enforced, case: Case, family: int, folder: Path) -> None:
    said = run_case(lab, case, family, folder, listed=True)
    assert said.worked, said.everything
    assert arrived(enforced.capture, address_of(case, family, listed=True), old=True)


def tried(lab: Lab, case: Case) -> bool:
    """Whether the path exists here: a client without BuildKit took the classic builder."""
    return "BuildKit" not in case.row or has_buildkit(lab)


@on(*STRICT)
@each_family
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_what_is_not_listed_is_refused(
    lab: Lab,
    control: Control,
    enforced: Enforced,
    case: Case,
    family: int,
    tmp_path: Path,
    cover: Cover,
) -> None:
    check_refused(lab, control, enforced, case, family, tmp_path)
    if tried(lab, case):
        cover(Section.ENGINE, case.row, enforced.rung, Outcome.ENFORCED, family=family)


@on(*STRICT)
@each_family
@pytest.mark.parametrize("case", [case for case in CASES if case.entry], ids=ids)
def test_what_is_listed_works(
    lab: Lab, enforced: Enforced, case: Case, family: int, tmp_path: Path
) -> None:
    check_allowed(lab, enforced, case, family, tmp_path)


@on(*STRICT)
@pytest.mark.parametrize("way", RELAYS, ids=lambda way: f"{way[0]}-v{way[1]}")
def test_a_relay_in_a_container_is_no_way_round(
    lab: Lab, relay: str, control: Control, enforced: Enforced, way: tuple[str, int], cover: Cover
) -> None:
    said, seen = control.relays[way]
    assert said.worked, said.everything
    assert seen
    said, seen = pull_by_relay(lab, relay, way, enforced.capture)
    assert not said.worked
    assert "connect: connection refused" in said.everything, said.everything
    assert seen == 0
    place, family = way
    row = f"docker pull through a relay in a container, {RELAY_ROWS[place]}"
    cover(Section.ENGINE, row, enforced.rung, Outcome.ENFORCED, family=family)


@on(*STRICT)
def test_a_published_port_serves_who_is_allowed_to_use_it(
    lab: Lab, relay: str, enforced: Enforced, cover: Cover
) -> None:
    """docker-proxy, a child of dockerd, connects to the container: it is no engine all the same."""
    assert relay
    said = pull(lab, f"127.0.0.1:{LISTED_PORT}/acme/app")
    assert said.worked, said.everything
    row = "docker pull from a registry in a container, listed by its published port"
    cover(Section.ENGINE, row, enforced.rung, Outcome.ENFORCED)
    fetch = [require("busybox"), "wget", "-q", "-O", "-"]
    for name in ("127.0.0.1", "[::1]", CLIENT_V4, f"[{CLIENT_V6}]"):
        assert lab.client.run([*fetch, f"http://{name}:{RELAY_PORT}/v2/"]).stdout == "{}"
    row = "published port of a container, used by a program of the machine"
    cover(Section.HOST, row, enforced.rung, Outcome.FREE)


@on(*STRICT)
def test_a_proxy_on_loopback_is_no_way_round(
    lab: Lab, control: Control, enforced: Enforced, cover: Cover
) -> None:
    said, seen = control.proxy
    assert said.worked, said.everything
    assert seen
    said = pull(lab, f"{PROXIED}/acme/app")
    assert not said.worked
    assert f"127.0.0.1:{PROXY_PORT}: connect: connection refused" in said.everything
    assert arrived(enforced.capture, BEHIND_PROXY) == {}
    row = "docker pull through an HTTP proxy on loopback"
    cover(Section.ENGINE, row, enforced.rung, Outcome.ENFORCED)


# --- attempts of a program of ours, inside the engine's cgroup and outside


def each_low(*families: int) -> list[object]:
    return [
        pytest.param(low, family, id=f"{low.kind}-{low.port}-v{family}")
        for low in LOW
        for family in low.families
        if family in families
    ]


@on(*STRICT)
@pytest.mark.parametrize(("low", "family"), each_low(*FAMILIES))
def test_no_kind_of_connection_of_the_engine_gets_through(
    control: Control, enforced: Enforced, low: Low, family: int, cover: Cover
) -> None:
    assert control.lows[low.row, family]
    assert enforced.lows[paths.low_address(low, family, outside=False)] == 0
    if low.kind in ("tcp", "mptcp", "fast open", "ecn", "mapped"):
        # What the kernel would send without a mark has not even a socket.
        unmade = low.kind == "mptcp" and enforced.rung == "mark"
        assert enforced.inside[low.row, family] == ("EPERM" if unmade else "refused")
    row = f"{OTHER}{low.row}"
    cover(Section.ENGINE, row, enforced.rung, Outcome.ENFORCED, family=family)


@on(*WEAK)
@pytest.mark.parametrize(("low", "family"), each_low(*FAMILIES))
def test_a_weak_rung_judges_only_tcp_to_the_ports_of_registries(
    control: Control, enforced: Enforced, low: Low, family: int, cover: Cover
) -> None:
    assert control.lows[low.row, family]
    came = enforced.lows[paths.low_address(low, family, outside=False)]
    assert (came == 0) is (low.weak is Outcome.ENFORCED)
    row = f"{OTHER}{low.row}"
    decision = "" if low.weak is Outcome.ENFORCED else WEAK_SCOPES
    cover(Section.ENGINE, row, enforced.rung, low.weak, family=family, decision=decision)


@on(*STRICT, *WEAK)
@pytest.mark.parametrize(("low", "family"), each_low(*FAMILIES))
def test_what_any_other_process_of_that_user_does(
    enforced: Enforced, low: Low, family: int, cover: Cover
) -> None:
    """It is free, but where it cannot be told from an engine."""
    came = enforced.lows[paths.low_address(low, family, outside=True)]
    row = "TCP to port 443" if low.weak is Outcome.ENFORCED else "TCP to other ports, UDP, SCTP"
    refused = low.weak is Outcome.ENFORCED and enforced.rung in WEAK
    if low.kind == "mptcp":
        # Its SYNs carry no mark, whoever sends them: they count as the engine's.
        row, refused = "Multipath TCP", enforced.rung != "cgroup"
    assert (came == 0) is refused
    outcome, decision = (Outcome.OVER, WEAK_SCOPES) if refused else (Outcome.FREE, "")
    row = f"another process of the engine's user (root): {row}"
    cover(Section.HOST, row, enforced.rung, outcome, family=family, decision=decision)


@on(*STRICT, *WEAK)
@each_family
def test_what_a_process_of_another_user_does(
    lab: Lab, enforced: Enforced, family: int, cover: Cover
) -> None:
    place, refused = paths.address(94, family, listed=False), enforced.rung == "netns"
    # Not the virtual environment's: an ordinary user may have no access to it.
    argv = [require("python3"), "-I", "-S", "-c", CONNECT, place]
    done = lab.client.run([*argv, "443"], user=USER, check=False)
    assert ("ConnectionRefusedError" in done.stderr) is refused
    assert done.returncode == int(refused)
    lab.client.run([*argv, str(paths.OTLP_PORT)], user=USER)
    outcome, decision = (Outcome.OVER, WEAK_SCOPES) if refused else (Outcome.FREE, "")
    row = "a process of another user: TCP to port 443"
    cover(Section.HOST, row, enforced.rung, outcome, family=family, decision=decision)


@on(*STRICT)
@each_family
def test_a_destination_opens_one_port(
    lab: Lab, enforced: Enforced, family: int, cover: Cover
) -> None:
    place = OTLP[family]
    lab.run_as_engine([str(PYTHON), "-I", "-S", "-c", CONNECT, place, str(paths.OTLP_PORT)])
    assert {syn.dport for syn in enforced.capture.to([place])} == {paths.OTLP_PORT}
    row = f"{OTHER}TCP to any other port (OTLP, 4317)"
    cover(Section.ENGINE, row, enforced.rung, Outcome.ENFORCED, family=family)


@on(*STRICT, *WEAK)
def test_dns_at_the_trusted_resolvers_is_free(lab: Lab, enforced: Enforced, cover: Cover) -> None:
    for place in (DNS_V4, DNS_V6):
        lab.run_as_engine([str(PYTHON), "-I", "-S", "-c", CONNECT, place, "53"])
    row = f"{OTHER}DNS at the machine's own resolvers"
    cover(Section.ENGINE, row, enforced.rung, Outcome.FREE)


@on(*STRICT)
def test_a_swarm_is_joined_only_where_the_policy_says(
    swarm: Swarm, control: Control, enforced: Enforced, cover: Cover
) -> None:
    for said, seen in control.joins.values():
        assert said.worked, said.everything
        assert seen
    assert enforced.joining is not None
    said = enforced.joining.result()
    assert not said.worked
    assert "connect: connection refused" in said.everything, said.everything
    assert arrived(enforced.capture, *OTHER_MANAGER.values()) == {}
    for family in FAMILIES:
        said = swarm.join_and_leave(MANAGER[family])
        assert said.worked, said.everything
    cover(Section.ENGINE, "docker swarm join (TCP 2377)", enforced.rung, Outcome.ENFORCED)


# --- rungs that cannot tell the engine from others


@on(*WEAK)
@each_family
@pytest.mark.parametrize("case", [case for case in CASES if case.weak], ids=ids)
def test_a_weak_rung_judges_the_ports_of_registries(
    lab: Lab,
    control: Control,
    enforced: Enforced,
    case: Case,
    family: int,
    tmp_path: Path,
    cover: Cover,
) -> None:
    check_refused(lab, control, enforced, case, family, tmp_path)
    check_allowed(lab, enforced, case, family, tmp_path)
    cover(Section.ENGINE, case.row, enforced.rung, Outcome.ENFORCED, family=family)
