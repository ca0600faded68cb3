"""What is tried inside a virtual machine. Run by the agent; prints what it found as JSON.

Facts only: the test outside judges them. A step that fails is in the result with its traceback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ramnet.host.control import ask
from tests.vm.guest import egress, world
from tests.vm.guest.client import query

MANY_NAMES = 10_000
FEW_NAMES = 20

POLICY = """\
version = 1
organization = "acme"

[[registry]]
address = "*.fresh.example"

[enforcement]
on_deny = "reject"
"""
CONFIG = """\
[scope]
mode = "netns"
weak = "strict"
"""
# Short enough to wait for, long enough for a step of emulated Python to be late.
LEASE_SECONDS = 16.0
SHORT_LEASES = f"""
[limits]
lease_min_seconds = {LEASE_SECONDS:.0f}
lease_grace_seconds = 0
"""

# Emulated, Python takes ten times as long for everything.
READY_SECONDS = 90.0
CLIENT_SECONDS = 900.0
ANSWER_SECONDS = 10.0
RETRY_SECONDS = 0.2
STOPPED_SECONDS = 4.0
SETTLE_SECONDS = 1.0
PAUSE_SECONDS = 0.1

FOLDER = Path("/tmp/ramnet")
RUNTIME = FOLDER / "run"


class Ramnet:
    """The daemon in the client."""

    def __init__(self, config: str = "") -> None:
        FOLDER.mkdir(exist_ok=True)
        RUNTIME.mkdir(exist_ok=True)
        (FOLDER / "policy.toml").write_text(POLICY, encoding="utf-8")
        (FOLDER / "ramnet.toml").write_text(CONFIG + config, encoding="utf-8")
        argv = [*world.enter(world.CLIENT), sys.executable, "-m", "ramnet", "run"]
        argv += ["--policy", f"{FOLDER}/policy.toml", "--config", f"{FOLDER}/ramnet.toml"]
        argv += ["--runtime-dir", str(RUNTIME), "--state-dir", str(FOLDER / "state")]
        begin = time.monotonic()
        # nsenter executes the program in its own place: the pid is the daemon's.
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(line)
            if line.startswith("ramnet: ready"):
                break
        else:
            raise RuntimeError(f"the daemon ended with status {self._process.wait()}")
        self.start_seconds = time.monotonic() - begin

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        said = self._process.communicate(timeout=READY_SECONDS)[1]
        sys.stderr.write(said)
        return self._process.returncode

    @property
    def dns(self) -> dict[str, Any]:
        """How it follows names."""
        return {key: self.status["dns"][key] for key in ("mode", "rung")}

    @property
    def status(self) -> dict[str, Any]:
        return ask(str(RUNTIME), "status")


def check() -> dict[str, Any]:
    """Run ``ramnet check --json``; return the rungs and what was seen of each feature."""
    file = Path("/tmp/check.toml")
    file.write_text(CONFIG, encoding="utf-8")
    argv = [sys.executable, "-m", "ramnet", "check", "--json", "--config", str(file)]
    said = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=False).stdout)
    seen = {item["feature"]: [item["present"], item["evidence"]] for item in said["features"]}
    return {"modes": said["modes"], "problem": said["problem"], "features": seen}


def counted() -> dict[str, int]:
    """Return what the kernel and the daemon have counted so far."""
    status = ask(str(RUNTIME), "status")
    hold = status["dns"]["hold"] or {}
    names = ("held", "released_late", "write_failures", "overruns")
    found = {name: hold.get(name, 0) for name in names}
    return {**found, "refused": status["refused"], "dropped": status["held_first_syn"]}


def race(first: int, count: int) -> dict[str, Any]:
    """Have a client take so many fresh names; add what was counted meanwhile."""
    before = counted()
    argv = [*world.enter(world.CLIENT), sys.executable, "-I", "-S"]
    argv += [str(Path(__file__).with_name("client.py")), str(first), str(count)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=CLIENT_SECONDS)
    after = counted()
    return {**json.loads(done.stdout), **{key: after[key] - before[key] for key in after}}


class Stub:
    """A resolver library in the client; every number is a name."""

    def __init__(self) -> None:
        self._sock = world.inside(world.CLIENT, world.udp)
        self._sock.settimeout(RETRY_SECONDS)

    def ask(self, number: int) -> float:
        """Ask, again and again as resolver libraries do; return the seconds to the answer."""
        begin = time.monotonic()
        wire = query(f"h{number}.fresh.example", number, 1)
        while time.monotonic() < begin + ANSWER_SECONDS:
            self._sock.sendto(wire, (world.RESOLVER, 53))
            try:
                while self._sock.recv(512)[:2] != wire[:2]:
                    pass  # a late answer to the query before
            except TimeoutError:
                continue
            break
        return time.monotonic() - begin

    def open(self, first: int) -> list[str]:
        """Ask for a few fresh names, and connect to each answer at once."""
        said = []
        for number in range(first, first + FEW_NAMES):
            self.ask(number)
            said.append(world.connect_fresh(number))
        return said


def native(found: dict[str, Any], names: int = MANY_NAMES) -> None:
    """All of it, on a kernel that has nft's queue."""
    far, stub = world.FarSide(), Stub()
    found["without"] = world.connect(world.EVIL)
    daemon = Ramnet()
    found["dns"] = daemon.dns
    found["denied"] = world.connect(world.EVIL)
    found["counted"] = counted()
    far.reached.clear()
    found["race"] = race(0, names)
    found["race"] |= {"reached": len(far.reached), "leases": daemon.status["leases"]}
    found["killed"] = killed(daemon, stub, names - 2)
    again = Ramnet(SHORT_LEASES)
    found["again"] = {"leases": again.status["leases"], "fresh": stub.open(21_000)}
    found["stopped"] = stopped(again, stub, names - 2)
    found["extended"] = extended(stub)
    again.end(signal.SIGTERM)


def killed(daemon: Ramnet, stub: Stub, learned: int) -> dict[str, Any]:
    """Kill the daemon and look at what still works."""
    daemon.end(signal.SIGKILL)
    return {
        "answer_seconds": max(stub.ask(20_000 + number) for number in range(FEW_NAMES)),
        "learned": world.connect_fresh(learned),
        "denied": world.connect(world.EVIL),
    }


def stopped(daemon: Ramnet, stub: Stub, learned: int) -> dict[str, Any]:
    """Stop the daemon in the middle of queries, and let it go on."""
    daemon.send(signal.SIGSTOP)
    end = time.monotonic() + STOPPED_SECONDS
    waits: list[float] = []
    while time.monotonic() < end:
        waits.append(stub.ask(22_000 + len(waits)))
        time.sleep(PAUSE_SECONDS)
    found: dict[str, Any] = {"answers": len(waits), "answer_seconds": max(waits)}
    found["learned"] = world.connect_fresh(learned)
    found["denied"] = world.connect(world.EVIL)
    daemon.send(signal.SIGCONT)
    found["leases"] = daemon.status["leases"]
    time.sleep(SETTLE_SECONDS)  # until the heartbeat is in the kernel again
    found["fresh"] = stub.open(23_000)
    return found


def extended(stub: Stub) -> dict[str, Any]:
    """Have one lease extended before it runs out, and another not; use both addresses later.

    A kernel before 6.12 cannot change the timeout of an element that is there.
    """
    asked_twice, asked_once = 30_000, 30_001
    begin = time.monotonic()
    both = (asked_once, asked_twice)
    for number in both:
        stub.ask(number)
    found: dict[str, Any] = {"first": [world.connect_fresh(number) for number in both]}
    sleep_until(begin + LEASE_SECONDS * 0.6)
    again = time.monotonic()
    stub.ask(asked_twice)
    sleep_until(begin + LEASE_SECONDS + SETTLE_SECONDS)
    found["later"] = [world.connect_fresh(number) for number in both]
    # Where the machine was that slow, the extended one may have run out as well.
    found["seconds_left"] = again + LEASE_SECONDS - time.monotonic()
    stub.ask(asked_once)
    found["asked_again"] = world.connect_fresh(asked_once)
    return found


def sleep_until(moment: float) -> None:
    """Sleep, unless it is later already."""
    time.sleep(max(0.0, moment - time.monotonic()))


def lower(found: dict[str, Any]) -> None:
    """A short look at a lower rung."""
    far, daemon = world.FarSide(), Ramnet()
    found["dns"] = daemon.dns
    found["denied"] = world.connect(world.EVIL)
    found["counted"] = counted()
    far.reached.clear()
    found["race"] = race(0, FEW_NAMES)
    found["race"]["reached"] = len(far.reached)
    daemon.end(signal.SIGTERM)


CASES: dict[str, Callable[..., None]] = {
    "native": native,
    "compat": lower,
    "observe": lower,
    "egress": egress.run,
}


def main(case: str, *numbers: int) -> None:
    """Run a case; what was found is printed also when a step fails."""
    begin = time.monotonic()
    found: dict[str, Any] = {"kernel": os.uname().release}
    try:
        found["check"] = check()
        world.make()
        CASES[case](found, *numbers)
    except Exception:  # noqa: BLE001 - whatever it was, the test is to tell it
        found["failure"] = traceback.format_exc()
    found["seconds"] = time.monotonic() - begin
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # also with a daemon that still runs


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
