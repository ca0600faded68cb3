"""What tests of the running daemon share: policies, connection attempts, waiting for a state."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

from ramnet.host.control import ask
from ramnet.lab.capture import Capture
from ramnet.lab.lab import Lab
from ramnet.lab.pcap import Syn
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import CORP, DUAL, EVIL

STRICT = """\
[scope]
mode = "netns"
weak = "strict"
"""

Target = tuple[str, int]

CORP_REGISTRY = "registry.corp.example:5000"
DUAL_REGISTRY = "dual.example"
# What the two registries lead to, and nothing else.
ALLOWED: tuple[Target, ...] = ((CORP[0], 5000), (DUAL[0], 443), (DUAL[1], 443))
# Another registry on every judged port, and other ports of allowed addresses.
# Addresses of known registries that are neither of the two: what the catalogue refuses.
DENIED = 8
REFUSED: tuple[Target, ...] = (
    *((address, port) for address in EVIL for port in (443, 80, 5000)),
    (CORP[0], 443),
    (DUAL[0], 5000),
    (DUAL[1], 80),
)

# In mode observe a first SYN that is not allowed is dropped, its retransmission after 1 s is
# answered: 3 s is the next one, and slack for a loaded machine.
ATTEMPT_SECONDS = 5.0
STATE_SECONDS = 5.0

_ATTEMPT = """
import errno, json, socket, sys, threading
seconds, targets = json.load(sys.stdin)
found, threads = [], []

def noticed(sock):
    try:
        sock.sendall(b"GET /v2/ HTTP/1.0\\r\\n\\r\\n")
        return b" 403 registry access denied " in sock.recv(64)
    except OSError:
        return False

def attempt(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(address)
            said = "refused" if noticed(sock) else "connected"
        except ConnectionRefusedError:
            said = "refused"
        except TimeoutError:
            said = "timeout"
        except OSError as err:
            said = errno.errorcode.get(err.errno, str(err))
    found.append([address[0], address[1], said])

for host, port in targets:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        found.append([host, port, "unresolved"])
        continue
    for family, _, _, _, address in entries:
        threads.append(threading.Thread(target=attempt, args=(family, address)))
        threads[-1].start()
for thread in threads:
    thread.join()
print(json.dumps(found))
"""


def policy(*registries: str, more: str = "", on_deny: str | None = "reject") -> str:
    """Write a policy that lists these registries; ``more`` is appended as it is.

    A refused ``connect`` fails, unless ``on_deny`` is None: that leaves the policy's default.
    """
    entries = "".join(f'\n[[registry]]\naddress = "{address}"\n' for address in registries)
    text = f'version = 1\norganization = "acme"\n{entries}{more}'
    if on_deny is None:
        return text
    table = "\n[enforcement]\n"
    return (text if table in text else text + table).replace(
        table, f'{table}on_deny = "{on_deny}"\n'
    )


def attempt(sandbox: Sandbox, *targets: Target) -> dict[Target, str]:
    """Connect to every address of these hosts at once, as a client does: what became of each.

    The outcomes are "connected", "refused" (by the notice as well), "timeout", "unresolved" or the
    name of an errno.
    """
    argv = [sys.executable, "-I", "-S", "-c", _ATTEMPT]
    said = sandbox.run(argv, input=json.dumps([ATTEMPT_SECONDS, targets])).stdout
    return {(address, port): outcome for address, port, outcome in json.loads(said)}


def outcomes(sandbox: Sandbox, *targets: Target) -> set[str]:
    """What became of connections to these targets, all together."""
    return set(attempt(sandbox, *targets).values())


def syns_to(capture: Capture, targets: Iterable[Target]) -> list[Syn]:
    """The SYNs at the far side to exactly these (address, port) pairs, in order."""
    wanted = set(targets)
    return [syn for syn in capture.syns if (str(syn.dst), syn.dport) in wanted]


def status(daemon: Daemon) -> dict[str, Any]:
    """Ask for the status as the command line does, without the half second of its start."""
    return ask(str(daemon.runtime_dir), "status")


def wait_status(
    daemon: Daemon,
    condition: Callable[[dict[str, Any]], object],
    what: str,
    seconds: float = STATE_SECONDS,
) -> dict[str, Any]:
    """Return the first status for which the condition holds."""
    last: list[dict[str, Any]] = []

    def holds() -> bool:
        last[:] = [status(daemon)]
        return bool(condition(last[0]))

    wait_until(holds, seconds, what)
    return last[0]


def wait_leases(daemon: Daemon, count: int) -> None:
    """Wait until the daemon has opened so many (address, port) pairs."""
    wait_status(daemon, lambda said: said["leases"] >= count, f"{count} leases")


def put_policy(daemon: Daemon, text: str) -> dict[str, Any]:
    """Write another policy and return the first status that has it."""
    before = status(daemon)["policy"]["digest"]
    daemon.write_policy(text)
    return wait_status(daemon, lambda said: said["policy"]["digest"] != before, "the new policy")


def wait_repairs(daemon: Daemon, count: int) -> dict[str, Any]:
    """Wait until the daemon has put its table back so many times."""
    return wait_status(daemon, lambda said: said["repairs"] == count, f"repair {count}")


def table(sandbox: Sandbox) -> str:
    """List our table as the kernel has it; empty when there is none."""
    return sandbox.run(["nft", "list", "table", "inet", "ramnet"], check=False).stdout


def remove_rules(sandbox: Sandbox) -> None:
    """Delete our tables, as somebody else would; one that is not there is no matter."""
    for family in ("inet", "netdev"):
        sandbox.run(["nft", "delete", "table", family, "ramnet"], check=False)


def _parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return int(stat.rpartition(")")[2].split()[1])


@contextmanager
def hung(daemon: Daemon) -> Iterator[None]:
    """Stop the daemon's process for a while; nsenter, its parent, stops with it."""
    pid = daemon.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        os.kill(_parent_of(pid), signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Ramnet:
    """Makes daemons in the client of a lab, with ``config`` unless another one is given."""

    lab: Lab
    made: list[Daemon]
    config: str | None = STRICT

    def __call__(
        self, text: str | None, *, config: str | EllipsisType | None = ..., start: bool = True
    ) -> Daemon:
        chosen = self.config if isinstance(config, EllipsisType) else config
        daemon = self.lab.daemon(text, config=chosen, start=False)
        self.made.append(daemon)
        if start:
            daemon.start()
        return daemon

    def enforcing(self, *registries: str) -> Daemon:
        """Start a daemon; return when it has looked up what the two usual registries mean."""
        daemon = self(policy(*(registries or (CORP_REGISTRY, DUAL_REGISTRY))))
        wait_leases(daemon, 1 if registries else len(ALLOWED))
        if not registries:
            wait_status(daemon, lambda said: said["denied"] == DENIED, "the catalogue's addresses")
        return daemon
