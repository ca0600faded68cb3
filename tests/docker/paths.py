"""The paths on which Docker itself reaches out, and the far side of each of them.

Every path has names and addresses of its own, for IPv4 and IPv6, one that the policy lists and one
that it does not. So one capture tells what arrived of which attempt.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ramnet.lab.capture import Capture
from ramnet.lab.dns import Record
from ramnet.lab.engine import Engine
from ramnet.lab.lab import Lab
from ramnet.lab.pcap import Frame
from ramnet.lab.programs import PYTHON_PATH, require
from tests.coverage_table import Outcome
from tests.docker.support import BUILT, Said, build, docker, pull
from tests.netns.support import policy

FAMILIES = (4, 6)
GIT_PORT, SWARM_PORT, OTLP_PORT = 9418, 2377, 4317
SYSLOG_UDP, SYSLOG_TCP, GELF, FLUENTD = 514, 601, 12201, 24224
SINKS = (SYSLOG_TCP, FLUENTD, OTLP_PORT)

# Containers of the tests run this: an image that no pull has to remove.
BOX = "tools/box"
SAID_IN_CONTAINER = "said-in-a-container"

Run = Callable[[Lab, str, Path], Said]

_ETHERNET, _V6_HEADER = 14, 40
_TCP, _TCP_FLAGS, _ACK = 6, 13, 0x10
_FRAGMENT = 0x3FFF  # more fragments, and the offset
_TCP_SINK = """
import socket, sys, threading
def drain(client):
    with client:
        while client.recv(4096):
            pass
def serve(listener):
    while True:
        threading.Thread(target=drain, args=listener.accept()[:1]).start()
for port in sys.argv[1:]:
    listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=serve, args=(listener,)).start()
print("ready", flush=True)
"""
_BUILD_REMOTE = """
import http.client, socket, sys
connection = http.client.HTTPConnection("docker")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("POST", "/build?nocache=1&forcerm=1&t=built&remote=" + sys.argv[2])
said = connection.getresponse()
text = said.read().decode()
print(text)
sys.exit(said.status != 200 or "errorDetail" in text)
"""


def _pull(lab: Lab, host: str, _: Path) -> Said:
    return pull(lab, f"{host}/acme/app")


def _pull_from(port: int) -> Run:
    return lambda lab, host, _: pull(lab, f"{host}:{port}/acme/app")


def _push(lab: Lab, host: str, _: Path) -> Said:
    pushed = f"{host}/acme/pushed"
    assert docker(lab, "tag", BOX, pushed).worked
    try:
        return docker(lab, "push", pushed)
    finally:
        docker(lab, "rmi", pushed)


def _build_from(lab: Lab, host: str, folder: Path) -> Said:
    return build(lab, folder, f"{host}/acme/app")


def _build_from_with_buildkit(lab: Lab, host: str, folder: Path) -> Said:
    return build(lab, folder, f"{host}/acme/app", buildkit=True)


def _add(*, buildkit: bool) -> Run:
    def run(lab: Lab, host: str, folder: Path) -> Said:
        lines = [f"FROM {BOX}", f"ADD https://{host}/v2/ /fetched", ""]
        (folder / "Dockerfile").write_text("\n".join(lines), encoding="utf-8")
        options = ("--no-cache", "--force-rm", "--tag", BUILT)
        return docker(lab, "build", *options, str(folder), buildkit=buildkit)

    return run


def _git_context(lab: Lab, host: str, _: Path) -> Said:
    """Let the engine fetch the repository, by its API: an older client clones it by itself."""
    remote = f"git://{host}/repository.git%23main"
    argv = [sys.executable, "-I", "-S", "-c", _BUILD_REMOTE, str(lab.engine.socket), remote]
    done = lab.client.run(argv, check=False)
    return Said(done.returncode, done.stdout.strip(), done.stdout, 0.0)


def _log_to(driver: str, option: str, place: str) -> Run:
    def run(lab: Lab, host: str, _: Path) -> Said:
        logging = ("--log-driver", driver, "--log-opt", f"{option}={place.format(host)}")
        return docker(lab, "run", "--rm", *logging, BOX, "echo", SAID_IN_CONTAINER)

    return run


@dataclass(frozen=True, slots=True)
class Case:
    """One path. ``key`` is a label of its host names, ``row`` the words of the coverage table.

    ``entry`` is the table of the policy that lists its hosts; empty: the policy cannot. ``words``
    are what the engine says when it is refused, "{}" stands for the host; empty: nothing at all.
    ``weak`` is what a rung does that only judges registry ports.
    """

    key: str
    row: str
    port: int
    run: Run
    entry: str = "registry"
    words: str = "connect: connection refused"
    weak: Outcome | None = None


_SILENT = ""  # a datagram is refused behind the back of the log driver
_LOGGING = "failed to initialize logging driver: dial tcp"
CASES = (
    Case("pull", "docker pull", 443, _pull, weak=Outcome.ENFORCED),
    Case("pull8443", "docker pull from another port (8443)", 8443, _pull_from(8443)),
    Case(
        "pull53",
        "docker pull from port 53 of a machine that is no resolver",
        53,
        _pull_from(53),
        entry="",
    ),
    Case("push", "docker push", 443, _push, weak=Outcome.ENFORCED),
    Case("from", "docker build, FROM", 443, _build_from, weak=Outcome.ENFORCED),
    Case("kit", "docker build with BuildKit, FROM", 443, _build_from_with_buildkit),
    Case(
        *("add", "docker build, ADD https://...", 443, _add(buildkit=False), "destination"),
        words='Get "https://{}/v2/": dial tcp',
        weak=Outcome.ENFORCED,
    ),
    Case(
        *("addkit", "docker build with BuildKit, ADD https://...", 443, _add(buildkit=True)),
        entry="destination",
        words='Get "https://{}/v2/": dial tcp',
    ),
    Case(
        *("git", "docker build of a git repository", GIT_PORT, _git_context, "destination"),
        words="unable to connect to {}",
    ),
    Case(
        *("syslogudp", "log driver syslog over UDP", SYSLOG_UDP),
        _log_to("syslog", "syslog-address", f"udp://{{}}:{SYSLOG_UDP}"),
        entry="destination",
        words=_SILENT,
    ),
    Case(
        *("syslogtcp", "log driver syslog over TCP", SYSLOG_TCP),
        _log_to("syslog", "syslog-address", f"tcp://{{}}:{SYSLOG_TCP}"),
        entry="destination",
        words=_LOGGING,
    ),
    Case(
        *("gelf", "log driver gelf over UDP", GELF),
        _log_to("gelf", "gelf-address", f"udp://{{}}:{GELF}"),
        entry="destination",
        words=_SILENT,
    ),
    Case(
        *("fluentd", "log driver fluentd (TCP)", FLUENTD),
        _log_to("fluentd", "fluentd-address", f"{{}}:{FLUENTD}"),
        entry="destination",
        words=_LOGGING,
    ),
)
BY_KEY = {case.key: case for case in CASES}


# --- names and addresses


def host(key: str, family: int, *, listed: bool) -> str:
    """Return a name that has addresses of one family only."""
    return f"{key}{family}-{'listed' if listed else 'unlisted'}.example"


def address(number: int, family: int, *, listed: bool) -> str:
    """Return the address of the path of this number: nobody else has it."""
    if family == 4:
        return f"{'203.0.113' if listed else '198.51.100'}.{100 + number}"
    return f"2001:db8::{'a' if listed else 'b'}:{number + 1:x}"


def address_of(case: Case, family: int, *, listed: bool) -> str:
    return address(CASES.index(case), family, listed=listed)


def records_of_cases() -> dict[str, Record]:
    return {
        host(case.key, family, listed=listed): Record(
            addresses=(address_of(case, family, listed=listed),)
        )
        for case in CASES
        for family in FAMILIES
        for listed in (True, False)
    }


def policy_of_cases(*registries: str, more: str = "") -> str:
    """Write the policy that lists what is listed of each path, and these registries."""
    entries, listed = [], list(registries)
    for case in CASES:
        for family in FAMILIES:
            name = host(case.key, family, listed=True)
            if case.entry == "registry":
                listed.append(name if case.port == 443 else f"{name}:{case.port}")
            elif case.entry == "destination":
                entries.append(destination(name, case.port))
    return policy(*listed, more="".join(entries) + more)


def destination(place: str, *ports: int) -> str:
    return f'\n[[destination]]\naddress = "{place}"\nports = {list(ports)}\n'


# --- the far side


def start_far_side(lab: Lab, folder: Path) -> None:
    """Start what the paths lead to, beside the lab's registries; it ends with the lab."""
    ports = [str(port) for port in SINKS]
    argv = [sys.executable, "-I", "-S", "-c", _TCP_SINK, *ports]
    sink = lab.world.popen(argv, log=folder / "sink.log")
    _start_git(lab, folder)
    for family in FAMILIES:  # the lab's DNS has port 53 on its own addresses only
        place = address_of(BY_KEY["pull53"], family, listed=False)
        at = f"[{place}]:53" if family == 6 else f"{place}:53"
        lab.registries.serve(at, tls=True).wait_for_line("listening on")
    sink.wait_for_line("ready")


def _start_git(lab: Lab, folder: Path) -> None:
    work, served = folder / "work", folder / "served"
    work.mkdir()
    (work / "Dockerfile").write_text(f"FROM {BOX}\nCOPY Dockerfile /here\n", encoding="utf-8")
    # Nothing of the machine's own configuration, and whoever owns the folders.
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory"}
    env |= {"GIT_CONFIG_VALUE_0": "*"}
    who = ("-c", "user.name=lab", "-c", "user.email=lab@site.example")
    for args in (
        ("init", "--quiet", "--initial-branch=main", "."),
        ("add", "."),
        (*who, "commit", "--quiet", "--message=lab"),
        ("clone", "--quiet", "--bare", ".", str(served / "repository.git")),
    ):
        subprocess.run(["git", *args], cwd=work, env=env, check=True)
    argv = [require("git"), "daemon", "--verbose", "--export-all", "--reuseaddr"]
    daemon = lab.world.popen([*argv, f"--base-path={served}"], log=folder / "git.log", env=env)
    daemon.wait_for_line("Ready to rumble")


def start_swarm(lab: Lab, folder: Path, advertised: str) -> tuple[Engine, str]:
    """Start a real manager of a swarm on the far side; return it with the token of its workers."""
    folder.mkdir()
    # What a manager advertises has to be an address of an interface: a local route is not enough.
    lab.world.run([require("ip"), "address", "add", f"{advertised}/32", "dev", "lo"])
    manager = Engine(lab.world, folder, lab.name)
    manager.start()
    place = ("--advertise-addr", advertised, "--listen-addr", f"[::]:{SWARM_PORT}")
    manager.docker("swarm", "init", *place, check=True)
    token = manager.docker("swarm", "join-token", "--quiet", "worker", check=True).stdout.strip()
    return manager, token


def tally(capture: Capture, *, old: bool = False) -> Counter[str]:
    """Count the frames that the far side got for each address.

    Segments with ACK only if ``old``: they begin nothing, and what is open stays open on purpose.
    """
    return Counter(
        str(target)
        for frame in capture.frames()
        if (target := _target(frame)) and (old or not _is_old(frame))
    )


def _target(frame: Frame) -> IPv4Address | IPv6Address | None:
    packet = frame.data[_ETHERNET:]
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return IPv4Address(packet[16:20])
    return IPv6Address(packet[24:40]) if version == 6 else None


def _is_old(frame: Frame) -> bool:
    """Whether this is a whole TCP segment with ACK."""
    packet = frame.data[_ETHERNET:]
    if packet[0] >> 4 == 4:
        whole, protocol = not int.from_bytes(packet[6:8]) & _FRAGMENT, packet[9]
        segment = packet[(packet[0] & 0x0F) * 4 :]
    else:
        whole, protocol, segment = True, packet[6], packet[_V6_HEADER:]
    return whole and protocol == _TCP and bool(segment[_TCP_FLAGS] & _ACK)


def arrived(capture: Capture, *addresses: str, old: bool = False) -> Counter[str]:
    """Return what ``tally`` found for these addresses; empty when nothing came for any."""
    wanted = {str(ip_address(one)) for one in addresses}
    found = tally(capture, old=old)
    return Counter({one: count for one, count in found.items() if one in wanted})


# --- attempts by a program of ours, see attempts.py


@dataclass(frozen=True, slots=True)
class Low:
    """One kind of connection; ``weak`` is what a rung does that only judges registry ports."""

    row: str
    kind: str
    port: int
    weak: Outcome
    families: tuple[int, ...] = FAMILIES


_STRICT, _FREE = Outcome.ENFORCED, Outcome.NOT_COVERED
LOW = (
    Low("TCP to port 443", "tcp", 443, _STRICT),
    Low("TCP to any other port (OTLP, 4317)", "tcp", OTLP_PORT, _FREE),
    Low("TCP to port 53 of a machine that is no resolver", "tcp", 53, _FREE),
    Low("Multipath TCP", "mptcp", 443, _STRICT),
    Low("TCP Fast Open, data in the SYN", "fast open", 443, _STRICT),
    Low("TCP with ECN", "ecn", 443, _STRICT),
    Low("IPv4-mapped address in an IPv6 socket", "mapped", 443, _STRICT, families=(4,)),
    Low("SYN from a raw socket", "raw", 443, _STRICT),
    Low("SYN in fragments of 8 bytes", "fragments", 443, _STRICT),
    Low("SYN behind IPv6 destination options", "destination options", 443, _STRICT, families=(6,)),
    Low("SYN behind an IPv6 routing header", "routing header", 443, _STRICT, families=(6,)),
    Low("UDP to port 443 (QUIC)", "udp", 443, _FREE),
    Low("UDP to port 53 of a machine that is no resolver", "udp", 53, _FREE),
    Low("SCTP", "sctp", 443, _FREE),
)
_FIRST_LOW = 40  # behind the numbers of the cases; those of an outsider come after
_FIRST_OUTSIDE = 70


def low_address(low: Low, family: int, *, outside: bool) -> str:
    first = _FIRST_OUTSIDE if outside else _FIRST_LOW
    return address(first + LOW.index(low), family, listed=False)


def attempt_all(
    run: Callable[..., subprocess.CompletedProcess[str]],
    lows: Iterable[Low] = LOW,
    *,
    outside: bool,
) -> dict[tuple[str, int], str]:
    """Make every attempt at once with ``run``; what became of each, by row and family."""
    wanted = [(low, family) for low in lows for family in low.families]
    targets = [
        (low.kind, low_address(low, family, outside=outside), low.port) for low, family in wanted
    ]
    argv: Sequence[str] = [sys.executable, "-m", "tests.docker.attempts"]
    done = run(argv, input=json.dumps(targets), env={"PYTHONPATH": str(PYTHON_PATH)})
    found = json.loads(done.stdout)
    return {(low.row, family): said for (low, family), said in zip(wanted, found, strict=True)}
