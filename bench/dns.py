"""What DNS costs through ramnet's mode ``hold``, against dnsmasq with ``nftset=`` and no guard.

``run()`` returns the figures; ``python -m bench.dns`` prints them. It needs root, dnsperf, unbound
and dnsmasq. Each contender is a machine of its own (namespaces), with the same wire to one unbound:

* ``direct``: the client asks unbound, and nothing follows.
* ``dnsmasq``: the client asks dnsmasq on its own machine, which puts what it hears into one nft set
  whose elements time out. Without a cache: like ramnet it passes every query on.
* ``dnsmasq_cache``: the same with its cache on. What comes from the cache renews no element.
* ``ramnet``: the client asks unbound, and the daemon holds the answers.

Measured for ``allowed`` names (they go into the set) and for ``other`` names:

* ``answers_s``: answers a second with 200 queries outstanding (dnsperf).
* ``p50_us``, ``p99_us``: microseconds of one query at a time. dnsperf's two threads wait for each
  other then, so this is a client of one thread.
* ``first``: answers a second of allowed names that were never asked before; each writes to the set.

All of it with empty sets and with ``FILLED`` elements in them. The machine may be shared, and the
client and unbound take their part of its cores: the contenders take turns of a second, ratios are
those of one round, and medians of all rounds are reported.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack

from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox

ROUNDS = 9
NAMES = 2_000
# Names that are asked once, in rounds of their own at the end: they make the sets grow.
FIRST_ROUNDS = 5
FIRST_NAMES = 4_000
FILLED = 100_000
OUTSTANDING = 200
# Sockets that share them: answers beyond 5,000 a second to one socket would pass ramnet unread.
CLIENTS = 40
SINGLE_QUERIES = 4_000

RESOLVER = "203.0.113.54"
DNSMASQ_PORT = 5353
READY_SECONDS = 60.0
# A query is lost now and then when 200 start at once, and those that are outstanding at the end.
COMPLETED = 0.99

CONFIG = f"""
[scope]
mode = "netns"
weak = "strict"
[dns]
mode = "hold"
[limits]
leases_total = {FILLED * 2}
"""
POLICY = """
version = 1
organization = "bench"
[[registry]]
address = "*.allowed.example"
[enforcement]
on_deny = "reject"
"""
UNBOUND = f"""
server:
  interface: {RESOLVER}
  access-control: 0.0.0.0/0 allow
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  num-threads: 1
  minimal-responses: yes
  local-zone: "example." static
"""
# What dnsmasq's users have in front of it.
PEER = """
table inet peer {
  set hosts { type ipv4_addr; flags timeout; timeout 1h; }
  chain output {
    type filter hook output priority filter;
    tcp dport 443 tcp flags & (fin|syn|rst|ack) == syn ip daddr != @hosts reject
  }
}
"""
# One query at a time: the microseconds of each, as JSON.
SINGLE = """
import json, socket, struct, sys, time
server, port, count, file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def query(number, name):
    labels = b"".join(bytes([len(x)]) + x for x in name.encode().split(b"."))
    head = struct.pack("!HHHHHH", number & 0xFFFF, 0x100, 1, 0, 0, 0)
    return head + labels + struct.pack("!BHH", 0, 1, 1)
names = [line.split()[0] for line in open(file)]
queries = [query(number, names[number % len(names)]) for number in range(count)]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((server, port))
sock.settimeout(1)
took, clock = [], time.perf_counter_ns
for wire in queries:
    begin = clock()
    sock.send(wire)
    while sock.recv(4096)[:2] != wire[:2]:
        pass
    took.append((clock() - begin) / 1000)
print(json.dumps(took))
"""

# The figures of one contender in one round, by kind of name and what was measured.
_Figures = dict[tuple[str, str], float]


class _Direct:
    """A machine with a wire to the resolver, and what the client there asks."""

    server, port = RESOLVER, 53

    def __init__(self, lab: Lab, name: str, number: int) -> None:
        self.folder = lab.directory / "bench"
        self.sandbox = lab.sandbox(name)
        self.sandbox.set_resolvers(RESOLVER)
        _lay_wire(lab.world, self.sandbox, number)

    def nft(self, text: str) -> None:
        """Load rules into the machine's namespace."""
        file = self.folder / "rules.nft"
        file.write_text(text)
        self.sandbox.run(["nft", "-f", str(file)])

    def learned(self) -> int:
        """Return the size of the set."""
        return 0

    def answers(self, kind: str, *how: str) -> float:
        """Return answers a second at ``OUTSTANDING``; ``how`` long is dnsperf's to know."""
        argv = ["dnsperf", "-s", self.server, "-p", str(self.port), "-q", str(OUTSTANDING)]
        argv += ["-c", str(CLIENTS), "-d", str(self.folder / kind)]
        argv += ["-t", "1", "-O", "suppress=timeout", *how]
        said = self.sandbox.run(argv, timeout=READY_SECONDS).stdout
        completed = _figure(said, "Queries completed")
        if completed < COMPLETED * _figure(said, "Queries sent") - OUTSTANDING:
            raise AssertionError(f"queries were lost:\n{said}")
        return completed / _figure(said, r"Run time \(s\)")

    def single(self, kind: str) -> _Figures:
        """Ask one by one; return the percentiles."""
        argv = [sys.executable, "-c", SINGLE, self.server, str(self.port)]
        argv += [str(SINGLE_QUERIES), str(self.folder / kind)]
        took = sorted(json.loads(self.sandbox.run(argv, timeout=READY_SECONDS).stdout))
        return {
            (kind, "p50_us"): took[len(took) // 2],
            (kind, "p99_us"): took[len(took) * 99 // 100],
        }


class _Dnsmasq(_Direct):
    """As its users run it: one table, one set, one domain."""

    server, port = "127.0.0.1", DNSMASQ_PORT

    def __init__(self, lab: Lab, number: int, filled: int, *, cache: int) -> None:
        super().__init__(lab, f"dnsmasq{number}", number)
        self.nft(PEER)
        if filled:
            self.nft(f"add element inet peer hosts {{ {', '.join(_addresses(filled))} }}\n")
        argv = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"]
        argv += ["--no-resolv", "--no-hosts", "--pid-file", "--log-facility=-", "--bind-interfaces"]
        argv += [f"--listen-address={self.server}", f"--port={self.port}", f"--server={RESOLVER}"]
        argv += [f"--cache-size={cache}", "--dns-forward-max=10000"]
        argv += ["--nftset=/allowed.example/4#inet#peer#hosts"]
        process = self.sandbox.popen(argv, log=self.folder / f"dnsmasq-{number}.log")
        process.wait_for_line("using nameserver")

    def learned(self) -> int:
        listed = self.sandbox.run(
            ["nft", "list", "set", "inet", "peer", "hosts"], timeout=READY_SECONDS
        )
        return listed.stdout.count("expires")


class _Ramnet(_Direct):
    """The daemon; the elements that it finds when it starts are leases from before."""

    def __init__(self, lab: Lab, stack: ExitStack, number: int, filled: int) -> None:
        super().__init__(lab, "ramnet", number)
        folder = self.folder / "daemon"
        folder.mkdir()
        self._daemon = daemon = Daemon(self.sandbox, folder, POLICY, CONFIG)
        stack.callback(daemon.abandon)
        if filled:
            daemon.start()
            daemon.stop()
            elements = ", ".join(
                f'{address} . 443 timeout 1h comment "host{index}.allowed.example"'
                for index, address in enumerate(_addresses(filled))
            )
            self.nft(f"add element inet ramnet allow4 {{ {elements} }}\n")
        daemon.start()

    def learned(self) -> int:
        status = self._daemon.status()
        held, paced = status["dns"]["hold"], status["dns"]["paced"]
        if held["overruns"] or held["write_failures"] or paced:
            raise AssertionError(f"answers passed that should have been held: {held}, {paced}")
        return int(status["leases"])


def run() -> dict[str, object]:
    """Measure all; the keys of ``elements`` say how many the sets hold at first."""
    found: dict[str, object] = {}
    for filled in (0, FILLED):
        with Lab(registries=False) as lab, ExitStack() as stack:
            found[str(filled)] = _compare(lab, stack, filled)
    return {"rounds": ROUNDS, "outstanding": OUTSTANDING, "elements": found}


def _compare(lab: Lab, stack: ExitStack, filled: int) -> dict[str, object]:
    """Let the contenders take turns; return the median figures and ratios."""
    _start_unbound(lab)
    contenders = {
        "direct": _Direct(lab, "direct", 1),
        "dnsmasq": _Dnsmasq(lab, 2, filled, cache=0),
        "dnsmasq_cache": _Dnsmasq(lab, 3, filled, cache=2 * FIRST_ROUNDS * FIRST_NAMES),
        "ramnet": _Ramnet(lab, stack, 4, filled),
    }
    before = {name: contender.learned() for name, contender in contenders.items()}
    rounds = [_round(contenders) for _ in range(ROUNDS)]
    for turn in range(FIRST_ROUNDS):
        for name, contender in contenders.items():
            rounds[turn][name]["first", "answers_s"] = contender.answers(f"first{turn}", "-n", "1")
    for name, contender in contenders.items():
        wanted = COMPLETED * (NAMES + FIRST_ROUNDS * FIRST_NAMES)
        if name != "direct" and contender.learned() - before[name] < wanted:
            raise AssertionError(f"{name} has not put what it heard into its set")
    report: dict[str, object] = {
        name: _medians([one[name] for one in rounds]) for name in contenders
    }
    for peer in ("direct", "dnsmasq", "dnsmasq_cache"):
        report[f"ramnet_to_{peer}"] = _medians([_times(one, peer) for one in rounds])
    for name in ("dnsmasq", "dnsmasq_cache", "ramnet"):
        report[f"added_by_{name}"] = _medians([_added(one, name) for one in rounds])
    return report


def _round(contenders: Mapping[str, _Direct]) -> dict[str, _Figures]:
    figures: dict[str, _Figures] = {name: {} for name in contenders}
    for kind in ("allowed", "other"):
        for name, contender in contenders.items():
            figures[name][kind, "answers_s"] = contender.answers(kind, "-l", "1")
        for name, contender in contenders.items():
            figures[name] |= contender.single(kind)
    return figures


def _start_unbound(lab: Lab) -> None:
    """Start the resolver and write down the names that it knows, for the clients."""
    folder = lab.directory / "bench"
    folder.mkdir()
    kinds = {"allowed": (1, "allowed", NAMES), "other": (2, "other", NAMES)}
    for turn in range(FIRST_ROUNDS):
        kinds[f"first{turn}"] = (10 + turn, f"first{turn}.allowed", FIRST_NAMES)
    lines = [UNBOUND]
    for kind, (octet, domain, count) in kinds.items():
        names = [f"h{number}.{domain}.example" for number in range(count)]
        (folder / kind).write_text("".join(f"{name} A\n" for name in names))
        for number, name in enumerate(names):
            address = f"10.{octet}.{number >> 8}.{number & 255}"
            lines.append(f'  local-data: "{name}. 3600 IN A {address}"')
    conf = folder / "unbound.conf"
    conf.write_text("\n".join(lines) + "\n")
    unbound = lab.world.popen(["unbound", "-d", "-c", str(conf)], log=folder / "unbound.log")
    unbound.wait_for_line("start of service", READY_SECONDS)


def _lay_wire(world: Sandbox, machine: Sandbox, number: int) -> None:
    """Connect a machine to the world; only the network is entered, so the pid is the host's."""
    near, far, name = f"192.0.2.{4 * number + 130}", f"192.0.2.{4 * number + 129}", f"b{number}"
    link = f"link add {name} type veth peer name eth0 netns {machine.pid}"
    for sandbox, commands in (
        (world, [link, f"address add {far}/30 dev {name}", f"link set {name} up"]),
        (
            machine,
            [
                f"address add {near}/30 dev eth0",
                "link set eth0 up",
                f"route add default via {far}",
            ],
        ),
    ):
        subprocess.run(
            ["nsenter", f"--net=/proc/{sandbox.pid}/ns/net", "--", "ip", "-batch", "-"],
            input="\n".join(commands),
            text=True,
            check=True,
        )


def _addresses(count: int) -> list[str]:
    return [f"10.{128 + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(count)]


def _figure(said: str, label: str) -> float:
    found = re.search(rf"{label}:\s+([\d.]+)", said)
    if found is None:
        raise AssertionError(f"dnsperf does not say {label}:\n{said}")
    return float(found[1])


def _times(figures: Mapping[str, _Figures], peer: str) -> _Figures:
    """Return how many times the answers of a peer ramnet lets through."""
    mine, theirs = figures["ramnet"], figures[peer]
    return {key: mine[key] / theirs[key] for key in mine if key[1] == "answers_s"}


def _added(figures: Mapping[str, _Figures], name: str) -> _Figures:
    """Return how much longer a single query takes than without anything in between."""
    mine, bare = figures[name], figures["direct"]
    return {key: mine[key] - bare[key] for key in mine if key[1] != "answers_s"}


def _medians(rounds: list[_Figures]) -> dict[str, dict[str, float]]:
    made: dict[str, dict[str, float]] = defaultdict(dict)
    for kind, what in {key: None for one in rounds for key in one}:
        median = statistics.median(one[kind, what] for one in rounds if (kind, what) in one)
        made[kind][what] = round(median, 2 if abs(median) < 100 else 0)
    return dict(made)


def main() -> None:
    """Print the figures."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
