"""Places from which connections are begun, and what can be reached from each."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from typing import Any

from ramnet.lab.lab import Lab
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox
from tests.netns.support import Target

# Runs a Python program with arguments at a place, and returns what it wrote, read as JSON.
Place = Callable[..., Any]
# A refusal takes milliseconds. What is dropped (a macvlan network's packets) takes as long as this.
REACH_SECONDS = 3.0
USER = 1000

_REACH = """
import errno, json, socket, sys, threading
family, seconds, targets = json.loads(sys.argv[1])
found, threads = [], []

def attempt(host, port, protocol, family, address):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(address)
            if protocol == "udp":
                sock.send(b"ping")
                sock.recv(16)
            said = "reached"
        except ConnectionRefusedError:
            said = "refused"
        except TimeoutError:
            said = "timeout"
        except OSError as err:
            said = errno.errorcode.get(err.errno, str(err))
    found.append([host, port, said])

for host, port, protocol in targets:
    try:
        entries = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except socket.gaierror as err:
        unknown = err.errno == socket.EAI_NONAME
        found.append([host, port, "unknown" if unknown else err.strerror])
        continue
    for family_of, _, _, _, address in entries:
        args = (host, port, protocol, family_of, address)
        threads.append(threading.Thread(target=attempt, args=args))
        threads[-1].start()
for thread in threads:
    thread.join()
print(json.dumps(found))
"""


def machine(sandbox: Sandbox, uid: int = USER) -> Place:
    """Return the place that is a program of a sandbox, run by an ordinary user."""

    def run(script: str, *args: str) -> Any:
        # Not the interpreter of the tests: an ordinary user may have no access to that.
        argv = [require("python3"), "-I", "-S", "-c", script, *args]
        return json.loads(sandbox.run(argv, user=uid or None).stdout)

    return run


def engine(lab: Lab) -> Place:
    """Return the place that is a program in the engine's own cgroup."""

    def run(script: str, *args: str) -> Any:
        argv = [require("python3"), "-I", "-S", "-c", script, *args]
        return json.loads(lab.run_as_engine(argv).stdout)

    return run


def reach(
    place: Place, targets: Iterable[Target], *, family: int = 0, protocol: str = "tcp"
) -> dict[Target, set[str]]:
    """Connect from a place to every address of these hosts (of one family, 4 or 6, if given).

    What became of each host and port: "reached" (by UDP: and it answered), "refused", "timeout",
    "unknown" (DNS knows no such name) or the name of an errno.
    """
    wanted = list(targets)
    number = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[family]
    asked = [[host, port, protocol] for host, port in wanted]
    found: dict[Target, set[str]] = {target: set() for target in wanted}
    for host, port, said in place(_REACH, json.dumps([number, REACH_SECONDS, asked])):
        found[host, port].add(said)
    return found


def outcomes(
    place: Place, targets: Iterable[Target], *, family: int = 0, protocol: str = "tcp"
) -> set[str]:
    """What became of connections to these targets, all together; see ``reach``."""
    return set().union(*reach(place, targets, family=family, protocol=protocol).values())
