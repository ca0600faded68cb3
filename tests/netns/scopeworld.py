"""Engines' cgroups of a test's own, what the kernel holds of them, and what breaks them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ramnet.core.terms import TABLE
from ramnet.errors import HostError
from ramnet.host.bpf import marks
from ramnet.host.cgroups import PROBE_PREFIX, mount_point
from ramnet.host.elements import Elements
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox, joining
from tests.netns.dnsworld import inside
from tests.netns.places import Place
from tests.netns.support import hung, wait_status

# The look at the kernel once a second, a probe, and slack for a loaded machine.
REPAIR_SECONDS = 3.0
# What inotify tells is done at once.
FED_SECONDS = 5.0
BUSY_SECONDS = 20.0

# Drops the datagram of the live probe before our rules see it.
FOREIGN = """\
table inet foreign {
  chain c { type filter hook output priority -170; policy accept; udp dport 7261 drop; }
}
"""
# BPF: `r0 = 1; exit`, which lets every socket be made.
ALLOW_ALL = bytes((0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))

_SEND = """
import errno, json, socket, sys
said = []
for address, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"a datagram", (address, port))
            said.append("sent")
        except OSError as err:
            said.append(errno.errorcode.get(err.errno, str(err)))
print(json.dumps(said))
"""
_MPTCP = """
import json, socket, sys
try:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    sock.settimeout(3)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    print(json.dumps("reached"))
except ConnectionRefusedError:
    print(json.dumps("refused"))
except PermissionError:
    print(json.dumps("EPERM"))
"""
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class House:
    """A lab, and a look at our table in the network namespace of its client."""

    lab: Lab
    elements: Elements

    def group(self, path: str = "") -> Path:
        """Name a cgroup that no other test has; ``path`` is what lies below it. Not made yet."""
        return mount_point() / self.lab.name / f"g{next(_numbers)}" / path

    def fed(self, *groups: Path) -> bool:
        """Whether the kernel holds the ids that these cgroups have now, and no other."""
        wanted: dict[int, set[int]] = {}
        for group in groups:
            try:
                wanted.setdefault(level(group), set()).add(group.stat().st_ino)
            except FileNotFoundError:
                return False
        return all(self.elements.groups(depth) == found for depth, found in wanted.items())


@contextmanager
def a_house() -> Iterator[House]:
    """Make a lab without an engine."""
    with Lab(engine_cgroup=True) as lab:
        elements = inside(lab.client, lambda: Elements(TABLE))
        try:
            yield House(lab, elements)
        finally:
            elements.close()


def level(group: Path) -> int:
    """The depth of a cgroup, as nft counts it."""
    return len(group.relative_to(mount_point()).parts)


def configured(rung: str, *groups: Path, more: str = "") -> str:
    """Return a ramnet.toml; ``more`` is appended, at first to the table ``scope``."""
    paths = json.dumps([str(group.relative_to(mount_point())) for group in groups])
    return f'[scope]\nmode = "{rung}"\ncgroups = {paths}\n{more}'


def program(sandbox: Sandbox, group: Path) -> Place:
    """Return the place that is a program in a cgroup."""

    def run(script: str, *args: str) -> Any:
        argv = [*joining(group), sys.executable, "-I", "-S", "-c", script, *args]
        return json.loads(sandbox.run(argv).stdout)

    return run


def send(place: Place, targets: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Send a datagram to each of these: "sent", or the name of the errno."""
    return dict(zip(targets, place(_SEND, json.dumps(targets)), strict=True))


def mptcp(place: Place, address: str, port: int = 443) -> str:
    """Connect by Multipath TCP: "reached", "refused", or "EPERM" without such a socket."""
    return str(place(_MPTCP, address, str(port)))


def marked(group: Path) -> bool:
    """Whether a program of ours is attached to a cgroup, and only one."""
    try:
        return [item.mark is not None for item in marks(group)].count(True) == 1
    except HostError:  # the cgroup is gone
        return False


def recognised(house: House, rung: str, *groups: Path) -> bool:
    """Whether the kernel has all that it takes to know the sockets of these cgroups."""
    return house.fed(*groups) if rung == "cgroup" else all(marked(group) for group in groups)


def wait_recognised(house: House, rung: str, *groups: Path, seconds: float = FED_SECONDS) -> float:
    """Wait until then, and return how many seconds it took."""
    begin = time.monotonic()
    wait_until(lambda: recognised(house, rung, *groups), seconds, "the new cgroup is known")
    return time.monotonic() - begin


def renew(group: Path, top: Path | None = None) -> None:
    """Remove a cgroup, with those above it up to ``top``, and make it again.

    The daemon does so too, and whoever comes first is as good.
    """
    last = top or group
    ids = {place: place.stat().st_ino for place in (group, last)}
    wait_until(lambda: _removed(group, last, ids), BUSY_SECONDS, f"{last} is busy")
    group.mkdir(parents=True, exist_ok=True)


@contextmanager
def hung_at_rest(house: House, daemon: Daemon) -> Iterator[None]:
    """Stop the daemon between two of its probes: one that is stopped keeps its cgroup busy."""
    top = mount_point() / house.lab.name
    end = time.monotonic() + BUSY_SECONDS
    while True:
        with hung(daemon):
            if time.monotonic() > end or not any(top.rglob(f"{PROBE_PREFIX}*")):
                yield
                return
        time.sleep(FED_SECONDS / 100)


def _removed(group: Path, last: Path, ids: Mapping[Path, int]) -> bool:
    """Try once to remove all from ``group`` up to ``last``; tell whether none is what it was."""
    place = group
    while True:
        with suppress(OSError):  # there is a process in it, or the daemon was faster
            place.rmdir()
        if place == last:
            return not (last.exists() and last.stat().st_ino == ids[last])
        place = place.parent


@contextmanager
def foreign_table(house: House) -> Iterator[None]:
    """Have the rules of somebody else drop the live probe."""
    house.lab.client.run(["nft", "-f", "-"], input=FOREIGN)
    try:
        yield
    finally:
        house.lab.client.run(["nft", "delete", "table", "inet", "foreign"])


def flush(house: House, group: Path) -> None:
    """Empty the set of a cgroup, as nothing but root can."""
    house.lab.client.run(["nft", "flush", "set", "inet", TABLE, f"engines{level(group)}"])


def wait_problem(daemon: Daemon, words: str) -> dict[str, Any]:
    """Wait until the daemon says that engines are not told apart, in these words."""

    def told(said: dict[str, Any]) -> bool:
        return words in (said["scope"]["problem"] or "")

    return wait_status(daemon, told, words, 20.0)


def wait_well(daemon: Daemon, seconds: float) -> dict[str, Any]:
    """Wait until engines are told apart again."""

    def well(said: dict[str, Any]) -> bool:
        return said["scope"]["problem"] is None and said["state"] == "enforcing"

    return wait_status(daemon, well, "engines are told apart again", seconds)
