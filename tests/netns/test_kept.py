"""Sockets that outlive the daemon, kept by a service manager: what waits in them is delivered.

The manager of these tests does what systemd does for FDSTORE: it takes descriptors in, closes those
that it is told to forget (a little later), and passes the rest to the next start.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from ramnet.core.terms import NFLOG_GROUP, OTHERS_QUEUE, QUEUE
from ramnet.host.nflog import NflogReader
from ramnet.host.queue import NfQueue
from ramnet.host.scratch import in_scratch_netns
from ramnet.lab.lab import Lab
from ramnet.lab.process import Process, wait_until
from ramnet.lab.sandbox import Sandbox
from tests.netns.dnsworld import LEARN_SECONDS, PatchedDaemon, inside, policy
from tests.netns.holdworld import Stream, config, elements, measured, run, wait_nothing_held, world
from tests.netns.support import Ramnet, hung, remove_rules, status

pytestmark = pytest.mark.netns

FRESH = policy("*.fresh.example")
GROUP_NAME = f"NflogReader-{NFLOG_GROUP}"
QUEUE_NAMES = {f"NfQueue-{QUEUE}", f"NfQueue-{OTHERS_QUEUE}"}
NAMES = {GROUP_NAME, *QUEUE_NAMES}
NETLINK_NETFILTER = 12
# systemd closes what it is told to forget in a thread of its own.
CLOSE_SECONDS = 0.2
# Long enough for a sign of life each second to be missed, on a loaded machine as well.
WATCH_SECONDS = 4.0
# The kernel goes on queueing for so long after the last heartbeat.
ALIVE_SECONDS = 1.0

# Takes what is passed, puts it behind descriptor 2, and becomes the daemon, with its number. Passed
# through a socket: nsenter, which stays its parent, would keep open what it inherited.
_START = """
import os, socket, sys
names, number, argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
with socket.socket(fileno=number) as source:
    _, passed, _, _ = socket.recv_fds(source, 16, 16)
high = [os.dup2(number, 100 + at) for at, number in enumerate(passed)]
for number in passed:
    os.close(number)
for at, number in enumerate(high):
    os.dup2(number, 3 + at)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)), LISTEN_FDNAMES=names)
os.execv(argv[0], argv)
"""


class Manager:
    """Listens to a service and keeps what it asks to be kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[tuple[float, str]] = []
        self._kept: list[tuple[str, int]] = []
        self._stopped = False
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", str(self.path))
        self._thread.join()
        self._socket.close()
        self.drop()

    @property
    def kept(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self._kept)

    @property
    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.kept)

    def drop(self) -> None:
        """Let go of everything, as at `systemctl stop`, and of what is still on its way."""
        with self._lock:
            self._stopped = True
            while self._kept:
                os.close(self._kept.pop()[1])

    def begin(self) -> None:
        """Listen to what is started now."""
        with self._lock:
            self._stopped = False

    def put(self, name: str, descriptor: int) -> None:
        """Have something kept that no service asked for, in the place of what has its name."""
        self._forget(name)
        with self._lock:
            self._kept.append((name, os.dup(descriptor)))

    def forgotten(self) -> set[str]:
        """The names that the service has let go of, without anything kept in their place."""
        told = {text.partition("FDNAME=")[2] for _, text in self.said if "FDSTOREREMOVE" in text}
        return told - set(self.names)

    def signs(self, since: float) -> int:
        """How many signs of life came since then."""
        return sum(text == "WATCHDOG=1" for at, text in list(self.said) if at >= since)

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 16)
            text = data.decode()
            if text == "end":
                return
            lines = dict(line.partition("=")[::2] for line in text.splitlines())
            if "FDSTOREREMOVE" in lines:
                time.sleep(CLOSE_SECONDS)
                self._forget(lines["FDNAME"])
            with self._lock:
                if self._stopped:
                    for number in descriptors:
                        os.close(number)
                elif lines.get("FDSTORE") == "1":
                    assert lines["FDPOLL"] == "0", "a netlink socket that overran is polled out"
                    self._kept += [(lines["FDNAME"], number) for number in descriptors]
            self.said.append((time.monotonic(), text))

    def _forget(self, name: str) -> None:
        with self._lock:
            for item in [item for item in self._kept if item[0] == name]:
                self._kept.remove(item)
                os.close(item[1])


class Service(PatchedDaemon):
    """A daemon that is started as its unit is, by a manager that passes what it has kept."""

    manager: Manager
    passes = True

    def start(self, *, wait: bool = True) -> None:
        self._starts += 1
        self.manager.begin()
        kept = self.manager.kept if self.passes else []
        argv = [sys.executable, "-m", "ramnet", "run", "--standby"]
        argv += ["--policy", str(self.policy_file), "--config", str(self.config_file)]
        argv += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        start = [sys.executable, "-I", "-S", "-c", _START, ":".join(name for name, _ in kept)]
        here, there = socket.socketpair()
        with here, there, self._log_file().open("ab") as log:
            popen = subprocess.Popen(
                [*self.sandbox.enter(), *start, str(there.fileno()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**self.sandbox.environment, **self._environment()},
                pass_fds=[there.fileno()],
                start_new_session=True,
                text=True,
            )
            socket.send_fds(here, [b"passed"], [number for _, number in kept])
        self._process = Process(popen, "ramnet", self._log_file())
        if wait:
            self.wait_ready()

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"NOTIFY_SOCKET": str(self.manager.path)}

    def pull_the_plug(self, waiting: float = 0.0) -> None:
        """Stop it, so that what comes waits, and kill it without another word."""
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(waiting)
        self.kill()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with world() as made:
        yield made


Services = Callable[..., Service]


@pytest.fixture
def services(lab: Lab) -> Iterator[Services]:
    """Make services with a manager of their own; nothing of them is left after the test."""
    with ExitStack() as stack:
        stack.callback(remove_rules, lab.client)
        number = len(list(lab.directory.glob("service-*")))

        def make(*, mode: str = "auto", patch: str = "") -> Service:
            nonlocal number
            number += 1
            folder = lab.directory / f"service-{number}"
            folder.mkdir()
            service = Service(lab.client, folder, FRESH, config(mode))
            service.patch = patch
            service.manager = Manager(folder / "notify")
            stack.callback(service.manager.close)
            stack.callback(service.abandon)
            return service

        yield make


def queues(sandbox: Sandbox) -> list[int]:
    """The numbers of the queues that have an owner in a sandbox."""
    text = sandbox.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout
    return sorted(int(line.split()[0]) for line in text.splitlines())


def wait_kept(service: Service, names: set[str] = NAMES) -> None:
    """Wait until exactly these are kept, once each."""
    wait_until(
        lambda: service.manager.names == Counter(names), 5, f"{names} kept: {service.manager.names}"
    )


# --- what waits


def test_what_it_has_is_kept_once_and_taken_over(services: Services, lab: Lab) -> None:
    service = services()
    service.start()
    wait_kept(service)
    said = [text for _, text in service.manager.said]
    assert any(text.startswith("READY=1\nSTATUS=enforcing") for text in said)
    descriptors = open_files(service)
    inodes = {name: os.fstat(number).st_ino for name, number in service.manager.kept}
    for stop in (service.stop, service.kill, service.stop):
        stop()
        service.start()
        wait_kept(service)
        assert {name: os.fstat(n).st_ino for name, n in service.manager.kept} == inodes
        wait_until(lambda: open_files(service) <= descriptors, 5, "no more open than before")
        assert run(lab, "a", 30 + service._starts, 50).said == {"connected": 50}  # noqa: SLF001
        hold = wait_nothing_held(service)
        assert (hold["held"], hold["released_late"]) == (50, 0)


def open_files(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


@pytest.mark.parametrize("passes", [True, False], ids=["kept", "control"])
def test_answers_that_wait_outlive_a_killed_daemon(
    services: Services, lab: Lab, passes: bool
) -> None:
    """Under queries of everybody: what nobody has judged at the kill is there after it."""
    service = services()
    service.start()
    wait_kept(service)
    service.passes = passes
    streams = [
        Stream(lab, 40 + step + 2 * passes, 8, parent=f"{kind}.example", rate=200)
        for step, kind in enumerate(("fresh", "other"))
    ]
    time.sleep(1)
    service.pull_the_plug(ALIVE_SECONDS / 2)
    if not passes:
        service.manager.drop()
    killed = time.monotonic()
    service.start()
    ready = time.monotonic()
    answers = [stream.answers() for stream in streams]
    lost = [len(found.lost) for found in answers]
    measured(restart_seconds=ready - killed, lost=lost)
    if passes:
        assert lost == [0, 0]
        late = max(found.slowest(killed - ALIVE_SECONDS, killed) for found in answers)
        assert late > 0.5, "nothing waited: nothing was shown"
    else:
        assert min(lost) > 20, "the control: what waited is gone"
    # Whoever asks while there is none is answered at once.
    assert max(found.slowest(killed + 1.5, ready - 0.3) for found in answers) < 0.5
    assert run(lab, "a", 50 + passes, 100).said == {"connected": 100}
    assert wait_nothing_held(service)["overruns"] == 0


@pytest.mark.parametrize("mode", ["hold", "observe"])
@pytest.mark.parametrize("passes", [True, False], ids=["kept", "control"])
def test_copies_that_wait_are_read(services: Services, lab: Lab, mode: str, passes: bool) -> None:
    """What was answered while there was no daemon is learned by the next one."""
    service = services(mode=mode)
    service.start()
    wait_kept(service, NAMES if mode == "hold" else {GROUP_NAME})
    service.kill()
    if not passes:
        service.passes = False
        service.manager.drop()
    time.sleep(ALIVE_SECONDS + 0.5)  # what is dead holds nothing
    block = 54 + passes + 2 * (mode == "hold")
    assert run(lab, "patient", block, 200).said == {"ECONNREFUSED": 200}
    service.start()
    if passes:
        wait_until(
            lambda: len(elements(lab.client, f"10.{64 + block}.")) == 200, LEARN_SECONDS, "copies"
        )
        assert status(service)["dns"]["copies_lost"] == 0
    else:
        run(lab, "patient", block - 30, 20)  # by now it would have read them
        assert elements(lab.client, f"10.{64 + block}.") == []


def test_copies_that_did_not_fit_are_no_reason_not_to_start(services: Services, lab: Lab) -> None:
    """The kept socket overruns while there is no daemon: an error waits in it, and no room is left.

    It must neither be given up, nor be waited for as if another ramnet had it.
    """
    service = services()
    service.start()
    wait_kept(service)
    service.kill()
    Stream(lab, 0, 4, parent="other.example", rate=2_000).answers()
    service.start()
    said = status(service)
    assert said["state"] == "enforcing"
    assert said["dns"]["copies_lost"] >= 1
    assert said["dns"]["mode"] == "hold"
    assert run(lab, "a", 1, 100).said == {"connected": 100}
    wait_kept(service)


# --- who else


def test_nobody_else_steps_in_between(services: Services, lab: Lab, ramnet: Ramnet) -> None:
    service = services()
    service.start()
    wait_kept(service)
    service.kill()
    other = ramnet(FRESH, config=config(), start=False)
    other.start(wait=False)
    assert other.wait() == 1
    assert "belongs to another process in this network namespace" in other.log
    waiting = services()
    waiting.start(wait=False)
    wait_until(lambda: stands_by(waiting), 15, "it stands by")
    service.start()
    assert run(lab, "a", 2, 50).said == {"connected": 50}
    assert stands_by(waiting)
    # The unit is stopped: the manager lets go.
    service.stop()
    assert stands_by(waiting)
    service.manager.drop()
    waiting.wait_ready()
    assert status(waiting)["state"] == "enforcing"
    wait_kept(waiting)
    assert run(lab, "a", 3, 50).said == {"connected": 50}


def stands_by(service: Service) -> bool:
    with suppress(Exception):
        return bool(status(service)["state"] == "standby")
    return False


# --- what is of no use


def a_file() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def a_unix_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()


def an_unbound_socket() -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).detach()


def a_socket_of_another_subsystem() -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).detach()


def a_group_of_another_namespace() -> int:
    """Bound to the same number, in a network namespace that lives for as long as it does."""
    return in_scratch_netns(lambda: kept_of(NflogReader(NFLOG_GROUP)))


def a_queue_of_another_namespace() -> int:
    return in_scratch_netns(lambda: kept_of(NfQueue(QUEUE)))


def kept_of(owner: NflogReader | NfQueue) -> int:
    try:
        return os.dup(owner.fileno())
    finally:
        owner.close()


USELESS = (
    a_file,
    a_unix_socket,
    an_unbound_socket,
    a_socket_of_another_subsystem,
    a_group_of_another_namespace,
    a_queue_of_another_namespace,
)


@pytest.mark.parametrize("useless", USELESS, ids=lambda useless: useless.__name__)
def test_what_cannot_be_used_does_not_keep_it_from_starting(
    services: Services, lab: Lab, useless: Callable[[], int]
) -> None:
    service = services()
    descriptor = useless()
    for name in (*NAMES, "of an older version", ""):
        service.manager.put(name, descriptor)
    os.close(descriptor)
    service.start()
    wait_kept(service)
    assert status(service)["state"] == "enforcing"
    assert run(lab, "a", 4 + USELESS.index(useless), 50).said == {"connected": 50}
    assert wait_nothing_held(service)["held"] == 50


def test_sockets_under_each_others_names(services: Services, lab: Lab) -> None:
    """Both are bound to our numbers as long as they are kept, and neither is what its name says."""
    service = services()
    service.start()
    wait_kept(service)
    service.kill()
    kept = dict(service.manager.kept)
    copies = {name: os.dup(number) for name, number in kept.items()}
    queue, others = sorted(QUEUE_NAMES)
    for name, other in ((GROUP_NAME, queue), (queue, others), (others, GROUP_NAME)):
        service.manager.put(name, copies[other])
    for number in copies.values():
        os.close(number)
    service.start()
    wait_kept(service)
    assert status(service)["state"] == "enforcing"
    assert run(lab, "a", 10, 50).said == {"connected": 50}


def test_a_queue_of_another_program_is_told_and_not_waited_for(
    services: Services, lab: Lab
) -> None:
    """It is no ramnet, which would have the lock: to stand by would be to wait for ever."""
    taken = inside(lab.client, lambda: NfQueue(OTHERS_QUEUE))
    try:
        service = services()
        service.start(wait=False)
        assert service.wait(20) == 1
        assert f"queue {OTHERS_QUEUE} belongs to another process" in service.log
        assert "nfnetlink_queue" in service.log
        assert "Traceback" not in service.log
    finally:
        taken.close()
    service.start()
    assert status(service)["state"] == "enforcing"


def test_another_rung_lets_go_of_the_queues(services: Services, lab: Lab) -> None:
    service = services()
    service.start()
    wait_kept(service)
    assert queues(lab.client) == [QUEUE, OTHERS_QUEUE]
    service.stop()
    assert queues(lab.client) == [QUEUE, OTHERS_QUEUE], "the manager has them"
    service.config_file.write_text(config("observe"), encoding="utf-8")
    service.start()
    wait_kept(service, {GROUP_NAME})
    assert service.manager.forgotten() == QUEUE_NAMES
    assert queues(lab.client) == []
    assert status(service)["dns"]["mode"] == "observe"
    run(lab, "patient", 11, 20)
    wait_until(lambda: len(elements(lab.client, "10.75.")) == 20, LEARN_SECONDS, "learned")
    # And back.
    service.stop()
    service.config_file.write_text(config(), encoding="utf-8")
    service.start()
    wait_kept(service)
    assert run(lab, "a", 12, 20).said == {"connected": 20}


# --- numbers that have come round


def test_what_waits_passes_whatever_its_number() -> None:
    """The kernel goes on counting in a queue that is kept, and compares numbers as signed ones."""
    wanted = struct.unpack("=i", struct.pack("=I", 0x8000_0005))[0]
    assert wanted < 0
    for ident in (1, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0005, 0xFFFF_FFFF, 0):
        assert passes(ident), f"{ident:#x}"


def passes(first: int) -> bool:
    """Whether packets from this number on are let go, by the rule of the kernel.

    nfqnl_recv_verdict_batch() goes along the queue up to the first whose number is behind the one
    that was said: ``(int)(id - max) > 0``.
    """
    from ramnet.host.queue import _LAST_IDENTS  # noqa: PLC0415 - the numbers themselves

    waiting = [(first + step) & 0xFFFF_FFFF for step in range(16)]
    for last in _LAST_IDENTS:
        while waiting and not 0 < (waiting[0] - last) & 0xFFFF_FFFF < 1 << 31:
            waiting.pop(0)
    return not waiting


# --- the watchdog

# The reader hangs while a file is there; the event loop goes on.
_STUCK = """
import os, time
from ramnet.host.hold import Holder
take = Holder._take_queries

def patched(self):
    while os.path.exists({flag!r}):
        time.sleep(0.02)
    take(self)

Holder._take_queries = patched
"""


def test_signs_of_life_are_given_only_while_all_is_well(services: Services, lab: Lab) -> None:
    flag = lab.directory / "stuck"
    service = services(patch=_STUCK.format(flag=str(flag)))
    service.start()
    begin = time.monotonic()
    time.sleep(WATCH_SECONDS)
    assert WATCH_SECONDS / 2 <= service.manager.signs(begin) <= WATCH_SECONDS + 1
    # The reader is stuck: the daemon answers, and yet is not well.
    flag.touch()
    time.sleep(2)
    begin = time.monotonic()
    time.sleep(WATCH_SECONDS)
    assert status(service)["state"] == "enforcing"
    assert service.manager.signs(begin) == 0
    flag.unlink()
    wait_until(lambda: service.manager.signs(begin) >= 2, 10, "signs of life again")
    # The process is stopped.
    with hung(service):
        begin = time.monotonic()
        time.sleep(WATCH_SECONDS)
        assert service.manager.signs(begin) == 0
    wait_until(lambda: service.manager.signs(begin) >= 2, 10, "signs of life again")
    service.stop()
    assert service.manager.said[-1][1] == "STOPPING=1"


def test_one_that_stands_by_gives_signs_of_life(services: Services) -> None:
    first, second = services(), services()
    first.start()
    second.start(wait=False)
    wait_until(lambda: stands_by(second), 15, "it stands by")
    begin = time.monotonic()
    time.sleep(WATCH_SECONDS)
    assert second.manager.signs(begin) >= WATCH_SECONDS / 2
    assert second.manager.names == Counter(), "it has nothing to be kept"
