"""What ``ramnet demo`` tells, step by step, over one lab.

What an expectation says is counted at the far side of the wire, asked from the kernel, or quoted
from Docker; nothing is told that was not run just then.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass

from ramnet.host.control import ask
from ramnet.lab.capture import Capture
from ramnet.lab.generator import REPORT_SECONDS, Generator
from ramnet.lab.lab import Lab
from ramnet.lab.process import POLL_SECONDS
from ramnet.lab.ramnet import READY, Daemon
from ramnet.lab.sandbox import HOSTS
from ramnet.lab.screen import Screen
from ramnet.lab.world import CORP, EVIL, GHCR

POLICY = """\
version = 1
organization = "acme"

[[registry]]
address = "docker.io"

[[registry]]
address = "registry.corp.example:5000"

[[registry]]
address = "*.mirror.example"
"""
ADDITION = """
[[registry]]
address = "ghcr.io"
"""
CONFIG = '[scope]\nmode = "netns"\nweak = "strict"\n'

MIRROR = "eu.mirror.example"
MIRROR_ADDRESSES = ("198.51.100.80", "2001:db8::80")
FAKE = "fake.mirror.example"  # only a line of the hosts file leads to it
NEW_CORP = "203.0.113.41"

# What the policy does not allow, as image references, and why it would be reached without ramnet.
REFUSED = (
    ("ghcr.io/acme/app", "not on the list"),
    (f"{EVIL[0]}/acme/app", "by bare address"),
    ("registry.corp.example/acme/app", "an allowed address, but another port"),
    (f"{FAKE}/acme/app", "an allowed name, but the hosts file gives it another address"),
)
# What Docker says of a refusal: the notice, also for a bare address, or, where there is no
# notice (the daemon is dead), what it says of any closed port.
REFUSALS = (
    "registry-access-denied-by-acme",
    "registry access denied by",
    "connection refused",
)
# The same, and more, as addresses and ports, with IPv6.
TARGETS = (
    *((address, port) for address in (*GHCR, *EVIL) for port in (80, 443, 5000)),
    *((address, 443) for address in (*CORP, NEW_CORP)),
)

RATE = 250.0  # attempts per second
PHASE_ATTEMPTS = 200
PULL_SECONDS = 40.0  # Docker gives up by itself after 15 s of silence
FILL_SECONDS = 8.0  # the first sets fill in well under a second
HOSTS_SECONDS = 5.0  # for this long dockerd keeps what it has read of the hosts file (Go, net)
FORCE_SECONDS = 1.0  # what is promised for a policy edit
WATCH_SECONDS = 6.0  # how long an edit is waited for before it counts as not followed


@dataclass(frozen=True, slots=True)
class Count:
    """Connects that a generator tried, and how many of them the far side saw."""

    tried: int
    seen: int


class Story:
    """The steps, in order, over one lab."""

    def __init__(self, lab: Lab, screen: Screen) -> None:
        self._lab = lab
        self._screen = screen
        self._daemon: Daemon = lab.daemon(POLICY, config=CONFIG, start=False)
        self._shown: set[tuple[str, int]] = set()
        self._hosts_seen = 0.0
        self.enforced = Count(0, 0)
        self.control = Count(0, 0)
        self.not_shown: list[str] = []

    def tell(self, seconds: float) -> None:
        """Run all steps; ``seconds`` is what it took to bring the lab up."""
        version = self._lab.engine.docker("version", "--format", "{{.Server.Version}}", check=True)
        names = len(self._lab.dns.table)
        self._screen.say(
            f"up after {seconds:.1f} s: dockerd {version.stdout.strip()},"
            f" dnsmasq with {names} names, docker-registry behind all of them"
        )
        self._lab.client.write("/etc/hosts", f"{HOSTS}{EVIL[0]} {FAKE}\n")
        self._hosts_seen = time.monotonic() + HOSTS_SECONDS
        self._without_ramnet()
        self._start()
        self._allowed()
        self._refused()
        self._dns_change()
        self._policy_edit()
        self._kill()
        self._off()
        self._limits()

    # Steps

    def _without_ramnet(self) -> None:
        self._screen.step("Without ramnet: Docker pulls from anywhere")
        with self._lab.capture() as capture:
            for reference, _ in REFUSED:
                # dockerd may not have seen the line of the hosts file yet: its control is in _off.
                if not reference.startswith(FAKE):
                    self._pull(reference, allowed=True)
        seen = _seen(capture)
        self._screen.expect("the far side sees the connections", f"{seen} of them", held=seen > 0)

    def _start(self) -> None:
        self._screen.step("ramnet starts, and the kernel's sets fill as names resolve")
        for line in POLICY.splitlines():
            if line:
                self._screen.say(f"| {line}", style="dim")
        begin = time.monotonic()
        ready: float | None = None
        self._daemon.start(wait=False)
        wanted = {"registry-1.docker.io", "registry.corp.example"}
        names: set[str] = set()
        with self._screen.doing("python -m ramnet run"):
            while time.monotonic() < begin + FILL_SECONDS and (ready is None or wanted - names):
                if not self._daemon.running:
                    break
                if ready is None and READY in self._daemon.log:
                    ready = time.monotonic() - begin
                    self._screen.say(f"ready {ready:.2f} s after the start of the process")
                names |= set(self._show_sets(begin).values())
                time.sleep(POLL_SECONDS)
            self._daemon.wait_ready()
        state = self._daemon.log.partition(READY)[2].split("\n", 1)[0]
        self._screen.expect("ramnet enforces the policy", state, held=state == "enforcing")
        self._screen.expect(
            "addresses of the allowed names are in the kernel's sets",
            f"{len(self._shown)} pairs of address and port",
            held=not wanted - names,
        )

    def _allowed(self) -> None:
        self._screen.step("What is allowed works")
        self._pull("busybox", allowed=True)
        self._pull("registry.corp.example:5000/acme/app", allowed=True)
        self._screen.say("*.mirror.example cannot be known beforehand: it is learned when asked")
        begin = time.monotonic()
        self._pull(f"{MIRROR}/acme/app", allowed=True)
        names = self._show_sets(begin).values()
        self._screen.expect(
            "the kernel's sets hold the new name",
            MIRROR if MIRROR in names else "they do not",
            held=MIRROR in names,
        )

    def _refused(self) -> None:
        self._screen.step("What is not allowed is refused, and Docker says why")
        with self._lab.capture() as capture:
            for reference, why in REFUSED:
                self._screen.say(f"{why}:", style="dim")
                if reference.startswith(FAKE):
                    with self._screen.doing("dockerd reads the hosts file every 5 s"):
                        time.sleep(max(0.0, self._hosts_seen - time.monotonic()))
                self._pull(reference, allowed=False)
        seen = _seen(capture)
        self._screen.expect("the far side sees none of it", f"{seen} connections", held=seen == 0)

    def _dns_change(self) -> None:
        self._screen.step("A registry moves: a DNS change is followed")
        begin = time.monotonic()
        self._lab.dns.set("registry.corp.example", NEW_CORP)
        self._screen.say(f"registry.corp.example is now {NEW_CORP}, no longer {CORP[0]}")
        with self._lab.capture() as capture:
            self._pull("registry.corp.example:5000/acme/app", allowed=True)
            self._show_sets(begin)
            new = len(capture.to([NEW_CORP], ports=[5000]))
            old = len(capture.to(CORP))
        seen = f"{new} connections to {NEW_CORP}, {old} to {CORP[0]}"
        self._screen.expect("Docker reached it at its new address", seen, held=new > 0 and old == 0)

    def _policy_edit(self) -> None:
        self._screen.step("A policy edit takes effect")
        target = (GHCR[0], 443)
        capture, generator = self._lab.capture(), self._lab.generator([target], rate=RATE)
        generator.wait_attempts(50)
        added = time.time()  # the capture's clock
        self._daemon.write_policy(POLICY + ADDITION)
        self._screen.say("ghcr.io is added to the file, by an atomic rename")
        with self._screen.doing("trying to connect all the while"):
            deadline = time.monotonic() + WATCH_SECONDS
            while not capture.to(GHCR) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        self._pull("ghcr.io/acme/app", allowed=True)
        removed = time.time()
        self._daemon.write_policy(POLICY)
        self._screen.say("ghcr.io is removed again")
        with self._screen.doing("trying to connect all the while"):
            # Twice the promise, so that what comes through too late is seen as well.
            generator.wait_attempts(int(RATE * 2 * FORCE_SECONDS), WATCH_SECONDS)
        self._pull("ghcr.io/acme/app", allowed=False)
        generator.stop()
        capture.stop()
        times = [syn.time for syn in capture.to(GHCR)]
        early = [moment for moment in times if moment < added]
        first = min((moment for moment in times if moment >= added), default=None)
        last = max((moment for moment in times if moment >= removed), default=removed)
        self._screen.expect(
            "the addition is in force in under a second",
            "never" if first is None else f"first connect through after {first - added:.2f} s",
            held=first is not None and first - added < FORCE_SECONDS and not early,
        )
        self._screen.expect(
            "the removal is in force in under a second",
            f"last connect through after {last - removed:.2f} s",
            held=last - removed < FORCE_SECONDS,
        )

    def _kill(self) -> None:
        self._screen.step("kill -9: the rules stay, the daemon comes back, nothing leaks")
        capture, generator = self._lab.capture(), self._lab.generator(TARGETS, rate=RATE)
        self._screen.say(
            f"{RATE:g} connects a second to {len(TARGETS)} refused pairs of address and port"
        )
        self._phase("while it runs", capture, generator)
        pid = self._daemon.pid
        self._daemon.kill()
        self._screen.say(f"kill -9 {pid}")
        self._pull("registry.corp.example:5000/acme/app", allowed=True)
        self._pull("ghcr.io/acme/app", allowed=False)
        self._phase("while it is dead", capture, generator)
        self._daemon.start()
        self._phase("while it starts and runs again", capture, generator)
        self.enforced = self._count(generator, capture)
        self._screen.expect(
            "through all of this no SYN leaks",
            f"{self.enforced.tried} tried, {self.enforced.seen} leaked",
            held=self.enforced.seen == 0 < self.enforced.tried,
        )

    def _off(self) -> None:
        self.not_shown = ask(str(self._daemon.runtime_dir), "status")["not_covered"]
        self._screen.step("The control: `ramnet off`, and the same connects again")
        with self._screen.doing("ramnet off"):
            done = self._daemon.cli("off", check=True)
            self._daemon.wait()
        self._screen.say(done.stdout.strip())
        capture, generator = self._lab.capture(), self._lab.generator(TARGETS, rate=RATE)
        self._phase("without ramnet", capture, generator)
        self.control = self._count(generator, capture)
        self._screen.expect(
            "without ramnet the far side sees every one",
            f"{self.control.tried} tried, {self.control.seen} seen",
            held=self.control.seen == self.control.tried > 0,
        )
        self._pull(f"{FAKE}/acme/app", allowed=True)

    def _limits(self) -> None:
        self._screen.step("What this did not show")
        self.not_shown = [
            "the real registries: these were the lab's own, under their names",
            "a daemon that hangs, reboots, other kernels and other Docker versions",
            *(f"not covered by this version: {line}" for line in self.not_shown),
        ]
        for line in self.not_shown:
            self._screen.say(f"- {line}")

    # What the steps are made of

    def _pull(self, reference: str, *, allowed: bool) -> None:
        begin = time.monotonic()
        with self._screen.doing(f"docker pull {reference}"):
            done = self._lab.engine.pull(reference, timeout=PULL_SECONDS)
        seconds = time.monotonic() - begin
        words = _words(done)
        right = done.returncode == 0 if allowed else any(one in words for one in REFUSALS)
        verdict = "works" if allowed else "is refused"
        expected = f"docker pull {reference} {verdict}"
        self._screen.expect(expected, f"{seconds:.1f} s", held=right, words=words)

    def _show_sets(self, begin: float) -> dict[tuple[str, int], str]:
        """Tell what is new in the kernel's sets, and return all: the name by address and port."""
        found = allowed_pairs(self._lab)
        for (address, port), name in found.items():
            if (address, port) not in self._shown:
                self._shown.add((address, port))
                seconds = time.monotonic() - begin
                self._screen.say(f"+ {address} port {port}  {name}  ({seconds:.2f} s)", style="dim")
        return found

    def _phase(self, what: str, capture: Capture, generator: Generator) -> None:
        """Let the generator work for a while and tell the counts so far."""
        goal = generator.report.total.attempted + PHASE_ATTEMPTS
        deadline = time.monotonic() + 4 * PHASE_ATTEMPTS / RATE
        with self._screen.doing(what) as update:
            while (tried := generator.report.total.attempted) < goal:
                update(f"{what}: {tried} tried")
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            seen = _seen(capture)
            time.sleep(REPORT_SECONDS)  # its next report covers all that was seen
        tried = generator.report.total.attempted
        self._screen.say(f"{what}: {tried} tried so far, {seen} seen at the far side")

    def _count(self, generator: Generator, capture: Capture) -> Count:
        tried = generator.stop().total.attempted
        capture.stop()
        return Count(tried, _seen(capture))


def _seen(capture: Capture) -> int:
    """Count the connections to what the policy does not allow."""
    refused = set(TARGETS)
    return sum(
        count
        for (address, port), count in capture.attempts().items()
        if (str(address), port) in refused
    )


def allowed_pairs(lab: Lab) -> dict[tuple[str, int], str]:
    """Return what the kernel's host sets hold: the name by (address, port).

    Empty while there is no table.
    """
    found: dict[tuple[str, int], str] = {}
    for name in ("allow4", "allow6"):
        listing = lab.client.run(
            ["nft", "--json", "list", "set", "inet", "ramnet", name], check=False
        )
        if listing.returncode:
            continue
        for item in json.loads(listing.stdout)["nftables"]:
            for element in item.get("set", {}).get("elem", ()):
                address, port = element["elem"]["val"]["concat"]
                found[address, port] = element["elem"].get("comment", "")
    return found


def _words(done: subprocess.CompletedProcess[str]) -> str:
    """Return what Docker said last, as it said it; of a pull that worked, its status line."""
    lines = (done.stdout + done.stderr).strip().splitlines() or ["(nothing)"]
    if done.returncode == 0:
        return next((line for line in lines if line.startswith("Status: ")), lines[-1])
    return lines[-1]
