"""The daemon's life: its start and its twin, its end, ``off``, repairs, restarts, its socket."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramnet.errors import LabError
from ramnet.host.control import CLIENT_SECONDS, MAX_REQUEST, ask
from ramnet.lab.dns import Record
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import Daemon
from ramnet.lab.world import DUAL
from tests.netns.support import (
    ALLOWED,
    CORP_REGISTRY,
    DUAL_REGISTRY,
    REFUSED,
    STRICT,
    Ramnet,
    Target,
    attempt,
    hung,
    policy,
    put_policy,
    remove_rules,
    status,
    syns_to,
    table,
    wait_leases,
    wait_repairs,
    wait_status,
)

pytestmark = pytest.mark.netns

NOBODY = 65534
REPAIR_SECONDS = 2.0  # the issue's own limit

FOREIGN = """\
table inet filter {
  set friends { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
  chain output { type filter hook output priority 0; policy accept; ip daddr @friends counter; }
}
table ip ramnet { chain c { counter; }; }
table inet ramnet2 { chain c { type filter hook input priority 5; policy accept; }; }
"""
FOREIGN_TABLES = (("inet", "filter"), ("ip", "ramnet"), ("inet", "ramnet2"))


@pytest.fixture
def foreign(lab: Lab) -> Iterator[Callable[[], str]]:
    """Tables of somebody else, some of them named like ours; returns how to list them."""
    lab.client.run(["nft", "-f", "-"], input=FOREIGN)
    lists = [["nft", "-s", "-a", "list", "table", *which] for which in FOREIGN_TABLES]
    yield lambda: "".join(lab.client.run(argv, check=False).stdout for argv in lists)
    for which in FOREIGN_TABLES:
        lab.client.run(["nft", "delete", "table", *which], check=False)


@contextlib.contextmanager
def dead_dns(lab: Lab) -> Iterator[None]:
    lab.dns.stop()
    try:
        yield
    finally:
        lab.dns.start()


def no_traceback(text: str) -> bool:
    return "Traceback" not in text and 'File "' not in text


# --- one daemon for each network namespace


def test_a_second_daemon_refuses_and_the_first_is_unharmed(lab: Lab, ramnet: Ramnet) -> None:
    first = ramnet.enforcing()
    rules = lab.client.run(["nft", "-s", "-a", "list", "table", "inet", "ramnet"]).stdout
    before = status(first)
    # A folder of its own, and the first one's folder: its control socket must survive as well.
    for runtime_dir in (None, first.runtime_dir):
        second = ramnet(policy("quay.io"), start=False)
        if runtime_dir is not None:
            second.runtime_dir = runtime_dir
        second.start(wait=False)
        assert second.wait() == 1
        assert "belongs to another process in this network namespace" in second.log
        assert "hint: another ramnet runs here" in second.log
        assert no_traceback(second.log)
        after = status(first)
        assert (after["pid"], after["state"]) == (before["pid"], "enforcing")
        assert after["policy"] == before["policy"]
        assert (
            lab.client.run(["nft", "-s", "-a", "list", "table", "inet", "ramnet"]).stdout == rules
        )
    assert first.running
    assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")
    first.write_policy(policy(CORP_REGISTRY))
    wait_status(first, lambda said: said["leases"] == 1, "the first one's next policy")


def test_another_namespace_may_have_its_own(lab: Lab, ramnet: Ramnet) -> None:
    """The lock is of the network namespace, not of the machine."""
    ramnet.enforcing()
    other = lab.sandbox("other")
    other.set_resolvers("192.0.2.1")
    folder = lab.directory / "other-ramnet"
    folder.mkdir()
    daemon = Daemon(other, folder, policy(CORP_REGISTRY), STRICT)
    try:
        daemon.start()
        # Nothing can be resolved there, and it says so; nothing is refused to anyone else.
        assert any("no resolver" in warning for warning in status(daemon)["warnings"])
    finally:
        daemon.abandon()
    assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")


# --- the end of the daemon, and the end of enforcement


def test_stopping_keeps_the_rules_and_off_removes_them(
    lab: Lab, ramnet: Ramnet, foreign: Callable[[], str]
) -> None:
    theirs = foreign()
    assert theirs.count("table ") == len(FOREIGN_TABLES)
    daemon = ramnet.enforcing()
    assert foreign() == theirs
    assert daemon.stop() == 0
    assert not (daemon.runtime_dir / "control.sock").exists()
    assert foreign() == theirs
    assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "refused")
    gone = daemon.cli("status")
    assert gone.returncode == 3
    assert "not running" in gone.stderr
    assert "leaves its rules in force" in gone.stderr
    as_json = daemon.cli("status", "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["running"]) == (3, False)

    off = daemon.cli("off")
    assert (off.returncode, off.stdout.strip()) == (
        0,
        "ramnet: the rules were removed; no daemon was running",
    )
    assert table(lab.client) == ""
    assert foreign() == theirs
    assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "connected")
    again = daemon.cli("off")
    assert (again.returncode, "there were no rules" in again.stdout) == (0, True)


def test_off_with_a_daemon_removes_the_rules_and_ends_it(
    lab: Lab, ramnet: Ramnet, foreign: Callable[[], str]
) -> None:
    theirs = foreign()
    daemon = ramnet.enforcing()
    off = daemon.cli("off")
    assert (off.returncode, "nothing is enforced" in off.stdout) == (0, True)
    assert daemon.wait() == 0
    assert "off: the rules were removed by root" in daemon.log
    assert table(lab.client) == ""
    assert foreign() == theirs
    assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "connected")


def test_off_after_a_kill_finds_the_stale_socket(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    daemon.kill()
    assert (daemon.runtime_dir / "control.sock").exists()
    assert daemon.cli("status").returncode == 3
    off = daemon.cli("off")
    assert (off.returncode, "no daemon was running" in off.stdout) == (0, True)
    assert table(lab.client) == ""


STORM = """
import random, socket, struct, sys, time
# Queries for ever new names below wild.example; each of the answers opens an address.
servers = [(socket.AF_INET, sys.argv[1])]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 53))
sock.setblocking(False)
print("started", flush=True)
number = 0
while True:
    number = (number + 1) % int(sys.argv[2])
    name = b"".join(bytes([len(p)]) + p for p in (b"n%d" % number, b"storm", b"example")) + b"\\0"
    head = struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0)
    sock.send(head + name + struct.pack(">HH", 28, 1))
    time.sleep(0.0005)
    try:
        while sock.recv(2000):
            pass
    except OSError:
        pass
"""
STORM_NAMES = 20_000


@pytest.fixture(scope="module")
def storm() -> dict[str, Record]:
    return {
        f"n{number}.storm.example": Record(addresses=(f"2001:db8::5:{number:x}",))
        for number in range(STORM_NAMES)
    }


def test_off_stays_off_while_addresses_are_being_learned(
    lab: Lab, ramnet: Ramnet, storm: dict[str, Record]
) -> None:
    """A write that finds no table any more must not be taken for a foreign flush."""
    lab.dns.update(storm)
    try:
        for _ in range(4):
            daemon = ramnet(policy("*.storm.example"))
            asking = lab.client.popen(
                [sys.executable, "-I", "-S", "-c", STORM, lab.dns.addresses[0], str(STORM_NAMES)],
                log=lab.directory / "storm.log",
            )
            try:
                wait_leases(daemon, 200)
                ask(str(daemon.runtime_dir), "off")
                assert daemon.wait() == 0
            finally:
                asking.kill()
            assert table(lab.client) == ""
            assert "loading the whole table again" not in daemon.log
    finally:
        lab.dns.update(dict.fromkeys(storm))


# --- who may do what


# The interpreter may be in a folder of root's, so the user is changed when all is imported.
AS_USER = """
import locale, os, sys
import ramnet.daemon, rich.console, rich.table
from ramnet.cli.main import VERBS, cli, main
for verb in VERBS: cli.get_command(None, verb)
os.setgroups([]), os.setgid(int(sys.argv[1])), os.setuid(int(sys.argv[1]))
main(sys.argv[2:])
"""


def as_user(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    return daemon.sandbox.run(
        [sys.executable, "-c", AS_USER, str(NOBODY), *args],
        env={"PYTHONPATH": str(PYTHON_PATH), "RAMNET_RUNTIME_DIR": str(daemon.runtime_dir)},
        check=False,
    )


def test_only_root_may_run_or_switch_off(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    for verb in ("off", "run", "check", "policy confirm"):
        refused = as_user(daemon, *verb.split())
        assert refused.returncode == 77, verb
        assert f"ramnet: ramnet {verb} needs root" in refused.stderr, verb
        assert f"hint: try `sudo ramnet {verb}`" in refused.stderr, verb
    assert daemon.running
    assert table(lab.client) != ""


SAY = """
import os, socket, sys
os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(sys.stdin.buffer.read())
    print(sock.makefile().readline())
"""


def test_anybody_may_read_but_the_socket_knows_who_asks(lab: Lab, ramnet: Ramnet) -> None:
    """The peer's uid comes from the kernel, so leaving our command line out does not help."""
    daemon = ramnet.enforcing()
    path = str(daemon.runtime_dir / "control.sock")

    def say(user: int, request: object) -> dict[str, object]:
        argv = [sys.executable, "-I", "-S", "-c", SAY, path, str(user)]
        said = lab.client.run(argv, input=json.dumps(request) + "\n").stdout
        answer: dict[str, object] = json.loads(said)
        return answer

    assert say(NOBODY, {"verb": "status"})["ok"] is True
    assert say(NOBODY, {"verb": "explain", "target": "quay.io"})["ok"] is True
    for claim in ({}, {"uid": 0}, {"user": "root"}):
        answer = say(NOBODY, {"verb": "off", **claim})
        assert (answer["ok"], answer["error"]) == (False, "only root may ask for 'off'")
    for verb in ("trial", "confirm", "revert"):
        answer = say(NOBODY, {"verb": verb})
        assert (answer["ok"], answer["error"]) == (False, f"only root may ask for '{verb}'")
    assert daemon.running
    assert table(lab.client) != ""
    assert as_user(daemon, "status").returncode == 0
    assert as_user(daemon, "explain", DUAL_REGISTRY).returncode == 0
    assert say(0, {"verb": "off"})["ok"] is True, "control: root may"
    assert daemon.wait() == 0


# --- repair


def test_a_foreign_flush_is_repaired(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    with dead_dns(lab):
        for count in (1, 2):
            lab.client.run(["nft", "flush", "ruleset"])
            begin = time.monotonic()
            wait_until(lambda: table(lab.client) != "", 10, "the repair")
            assert time.monotonic() - begin < REPAIR_SECONDS
            said = wait_repairs(daemon, count)
            assert said["state"] == "enforcing"
        # What was learned is back too: there is no DNS to learn it from.
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")
    assert "another program changed or removed our table" in daemon.log
    with lab.capture() as capture:
        assert attempt(lab.client, *REFUSED) == dict.fromkeys(REFUSED, "refused")
        assert capture.to(address for address, _ in REFUSED[:6]) == ()


def test_a_flush_right_before_an_edit_is_repaired_as_soon(lab: Lab, ramnet: Ramnet) -> None:
    """The edit changes a table that is not there any more: that must not put the repair off."""
    daemon = ramnet.enforcing()
    daemon.write_policy(policy(CORP_REGISTRY))
    lab.client.run(["nft", "flush", "ruleset"])  # before the daemon has looked at the file twice
    begin = time.monotonic()
    wait_until(lambda: table(lab.client) != "", 10, "the repair")
    assert time.monotonic() - begin < REPAIR_SECONDS
    wait_status(daemon, lambda said: said["policy"]["registries"] == [CORP_REGISTRY], "the edit")
    assert status(daemon)["state"] == "enforcing"
    assert attempt(lab.client, ALLOWED[0]) == {ALLOWED[0]: "connected"}
    assert attempt(lab.client, ALLOWED[1]) == {ALLOWED[1]: "refused"}


def test_a_table_that_was_replaced_is_repaired(lab: Lab, ramnet: Ramnet) -> None:
    """A table of the same name without rules is not ours."""
    daemon = ramnet.enforcing()
    empty = "table inet ramnet\ndelete table inet ramnet\ntable inet ramnet { }\n"
    with hung(daemon):  # it looks once a second
        lab.client.run(["nft", "-f", "-"], input=empty)
        assert attempt(lab.client, REFUSED[0]) == {REFUSED[0]: "connected"}, "control: it is open"
    wait_repairs(daemon, 1)
    assert attempt(lab.client, REFUSED[0]) == {REFUSED[0]: "refused"}


@pytest.mark.parametrize(
    "tampering",
    [
        "flush chain inet ramnet judge",
        "flush chain inet ramnet output",
        "insert rule inet ramnet judge accept",
        "insert rule inet ramnet output tcp dport 443 accept",
    ],
)
def test_rules_that_were_taken_out_or_put_in_are_repaired(
    lab: Lab, ramnet: Ramnet, tampering: str
) -> None:
    daemon = ramnet.enforcing()
    with hung(daemon):  # it looks once a second
        lab.client.run(["nft", tampering])
        assert attempt(lab.client, REFUSED[0]) == {REFUSED[0]: "connected"}, "control: it is open"
    begin = time.monotonic()
    wait_repairs(daemon, 1)
    assert time.monotonic() - begin < REPAIR_SECONDS
    assert "another program changed or removed our table" in daemon.log
    assert attempt(lab.client, REFUSED[0]) == {REFUSED[0]: "refused"}
    assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")


def test_our_own_reloads_are_no_repairs(ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    for registry in ("quay.io", "ghcr.io", "docker.io"):
        put_policy(daemon, policy(registry))
    time.sleep(1.5)  # longer than one look at the table
    assert status(daemon)["repairs"] == 0
    assert "loading the whole table again" not in daemon.log


OWNED = "add table inet ramnet { flags owner; }\n"


def test_a_table_that_belongs_to_somebody_else_is_told(lab: Lab, ramnet: Ramnet) -> None:
    """The first ruleset cannot be loaded: the daemon ends and says why, and nothing is claimed."""
    log = lab.directory / "owner.log"
    owner = lab.client.popen(["nft", "-i"], log=log, feed=True)
    try:
        os.write(owner.stdin, OWNED.encode())
        wait_until(lambda: "flags owner" in table(lab.client), 5, "the owned table")
        daemon = ramnet(policy(CORP_REGISTRY), start=False)
        daemon.start(wait=False)
        assert daemon.wait() == 1
        assert "ramnet: the first ruleset was refused" in daemon.log
        assert "ready" not in daemon.log
        assert no_traceback(daemon.log)
    finally:
        owner.kill()


# --- what was learned outlives the daemon


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill], ids=["SIGTERM", "kill -9"])
def test_leases_survive_a_restart_even_with_dns_dead(
    lab: Lab, ramnet: Ramnet, end: Callable[[Daemon], int]
) -> None:
    daemon = ramnet.enforcing()
    before = {pair: seconds for pair, seconds, _ in held(lab)}
    assert set(before) == set(ALLOWED)
    with dead_dns(lab):
        end(daemon)
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")
        daemon.start()
        assert status(daemon)["leases"] == len(ALLOWED)
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "connected")
        after = held(lab)
    # They run out when they would have: neither forgotten nor given a new life.
    assert {pair for pair, _, _ in after} == set(ALLOWED)
    assert all(seconds <= before[pair] for pair, seconds, _ in after)
    assert {name for _, _, name in after} == {"registry.corp.example", DUAL_REGISTRY}
    explained = daemon.cli("explain", "--json", DUAL[0])
    assert explained.returncode == 0
    assert DUAL_REGISTRY in json.loads(explained.stdout)["reason"]


def held(lab: Lab) -> list[tuple[Target, int, str]]:
    """The elements of the allow sets: the pair, how long it has, who led there."""
    found = []
    for name in ("allow4", "allow6"):
        argv = ["nft", "-j", "list", "set", "inet", "ramnet", name]
        listing = json.loads(lab.client.run(argv).stdout)["nftables"]
        for item in next(entry["set"] for entry in listing if "set" in entry).get("elem", []):
            element = item["elem"]
            address, port = element["val"]["concat"]
            found.append(((address, port), element["expires"], element.get("comment", "")))
    return found


def test_control_without_leases_nothing_is_reached_with_dns_dead(lab: Lab, ramnet: Ramnet) -> None:
    with dead_dns(lab):
        daemon = ramnet(policy(CORP_REGISTRY, DUAL_REGISTRY))
        assert status(daemon)["leases"] == 0
        assert attempt(lab.client, *ALLOWED) == dict.fromkeys(ALLOWED, "refused")


def test_a_restart_with_another_policy_drops_what_it_does_not_allow(
    lab: Lab, ramnet: Ramnet
) -> None:
    daemon = ramnet.enforcing()
    corp, *dual = ALLOWED
    with dead_dns(lab), lab.capture() as capture:
        daemon.kill()
        daemon.write_policy(policy(CORP_REGISTRY))
        daemon.start()
        assert [pair for pair, _, _ in held(lab)] == [corp]
        assert status(daemon)["leases"] == 1
        assert attempt(lab.client, corp) == {corp: "connected"}
        assert attempt(lab.client, *dual) == dict.fromkeys(dual, "refused")
        assert syns_to(capture, dual) == []
        # The same name on another port is another thing.
        daemon.stop()
        daemon.write_policy(policy("registry.corp.example"))
        daemon.start()
        assert held(lab) == []
        assert attempt(lab.client, corp) == {corp: "refused"}
        assert len(syns_to(capture, [corp])) == 1


def test_a_lease_of_a_removed_registry_ends_while_running(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    daemon.write_policy(policy(DUAL_REGISTRY))
    wait_status(daemon, lambda said: said["leases"] == 2, "the lease's end")
    assert {pair for pair, _, _ in held(lab)} == set(ALLOWED[1:])


def test_counts_go_on_over_a_reload(lab: Lab, ramnet: Ramnet) -> None:
    daemon = ramnet.enforcing()
    attempt(lab.client, REFUSED[0])
    before = status(daemon)["refused"]
    assert before >= 1
    put_policy(daemon, policy("quay.io"))
    assert status(daemon)["refused"] >= before


# --- the control socket under abuse


def exchange(daemon: Daemon, data: bytes, *, end: bool = False) -> bytes:
    """Send bytes and return all that comes back; ``end`` says that nothing more will follow."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(2 * CLIENT_SECONDS)
        sock.connect(str(daemon.runtime_dir / "control.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                said += part
        return said


GARBAGE = {
    "nothing": b"",
    "an empty line": b"\n",
    "no JSON": b"GET / HTTP/1.1\r\n\r\n",
    "half a JSON": b'{"verb": "sta',
    "no UTF-8": b"\xff\xfe\xfd\n",
    "NUL": b"\0" * 100 + b"\n",
    "an array": b"[]\n",
    "a number": b"17\n",
    "null": b"null\n",
    "a string": b'"status"\n',
    "no verb": b'{"target": "quay.io"}\n',
    "an unknown verb": b'{"verb": "shutdown"}\n',
    "a private verb": b'{"verb": "__class__"}\n',
    "a number as verb": b'{"verb": 1}\n',
    "null as verb": b'{"verb": null}\n',
    "a list as verb": b'{"verb": ["off"]}\n',
    "an object as verb": b'{"verb": {"off": 1}}\n',
    "explain nothing": b'{"verb": "explain"}\n',
    "explain an object": b'{"verb": "explain", "target": {"a": []}}\n',
    "explain a pattern": b'{"verb": "explain", "target": "*.example.com"}\n',
    "explain a surrogate": b'{"verb": "explain", "target": "\\ud800.example/x"}\n',
    "explain control characters": b'{"verb": "explain", "target": "\\u0000\\u001b[31m"}\n',
    "a deep array": b"[" * (MAX_REQUEST - 2) + b"\n",
    "a deep object": b'{"a":' * (MAX_REQUEST // 5 - 1) + b"\n",
    "a huge number": b"1" * (MAX_REQUEST - 2) + b"\n",
    "too long": b"a" * (4 * MAX_REQUEST) + b"\n",
    "too long without an end": b"a" * (64 * MAX_REQUEST),
}


@pytest.fixture(scope="class")
def chatty(lab: Lab) -> Iterator[Daemon]:
    """One daemon for all the garbage: none of it may hurt what comes after."""
    factory = Ramnet(lab, [])
    yield factory.enforcing()
    for daemon in factory.made:
        daemon.abandon()
    remove_rules(lab.client)


class TestTheControlSocketUnderAbuse:
    @pytest.mark.parametrize("name", GARBAGE)
    def test_garbage_on_the_control_socket_is_answered_or_cut_off(
        self, chatty: Daemon, name: str
    ) -> None:
        already = len(chatty.log)
        said = exchange(chatty, GARBAGE[name], end=True)
        if name not in ("too long", "too long without an end"):
            answer = json.loads(said)
            assert answer["ok"] is False
            assert answer["error"]
        assert chatty.log[already:] == "", "nobody but root fills the log"
        assert status(chatty)["state"] == "enforcing"

    def test_random_bytes_do_not_hurt(self, chatty: Daemon) -> None:
        dice = random.Random(2)
        already = len(chatty.log)
        for _ in range(200):
            exchange(chatty, dice.randbytes(dice.randrange(200)) + b"\n", end=True)
        good = b'{"verb": "explain", "target": "registry.corp.example:5000"}\n'
        for _ in range(200):
            data = bytearray(good)
            data[dice.randrange(len(data) - 1)] = dice.randrange(256)
            exchange(chatty, bytes(data), end=True)
        assert chatty.log[already:] == ""
        assert status(chatty)["state"] == "enforcing"

    def test_a_client_that_goes_away_leaves_no_trace(self, chatty: Daemon) -> None:
        already = len(chatty.log)
        path = str(chatty.runtime_dir / "control.sock")
        before = descriptors(chatty)
        for _ in range(100):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                sock.sendall(b'{"verb": "status"}\n')
        wait_until(lambda: descriptors(chatty) <= before, 5, "the sockets' end")
        assert chatty.log[already:] == ""
        assert status(chatty)["state"] == "enforcing"


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def test_slow_clients_neither_stop_the_daemon_nor_stay(lab: Lab, ramnet: Ramnet) -> None:
    clients = 4
    config = f"{STRICT}\n[limits]\ncontrol_clients = {clients}\n"
    daemon = ramnet(policy(CORP_REGISTRY), config=config)
    wait_leases(daemon, 1)
    path = str(daemon.runtime_dir / "control.sock")
    with contextlib.ExitStack() as stack:
        begin = time.monotonic()
        for number in range(clients):
            slow = stack.enter_context(socket.socket(socket.AF_UNIX))
            slow.connect(path)
            slow.sendall(b'{"verb"'[:number])
        refused = as_user(daemon, "status")
        assert refused.returncode == 1
        assert "ramnet: too many clients" in refused.stderr
        assert "hint:" in refused.stderr
        assert status(daemon)["state"] == "enforcing", "nobody keeps root out"
        # Meanwhile the work goes on: a policy, a name, a refusal.
        daemon.write_policy(policy(DUAL_REGISTRY))
        wait_until(lambda: len(held(lab)) == 2, 5, "the new policy's leases")
        assert attempt(lab.client, *REFUSED[:2]) == dict.fromkeys(REFUSED[:2], "refused")
        wait_until(
            lambda: as_user(daemon, "status").returncode == 0, 3 * CLIENT_SECONDS, "room again"
        )
        assert time.monotonic() - begin < 2 * CLIENT_SECONDS + 5
        assert slow.recv(1) == b"", "it was cut off"


def test_the_socket_is_for_everybody_and_its_folder_for_root(ramnet: Ramnet) -> None:
    daemon = ramnet(policy(CORP_REGISTRY), start=False)
    daemon.runtime_dir.rmdir()
    daemon.start()
    found = (daemon.runtime_dir / "control.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o666
    assert stat.S_IMODE(daemon.runtime_dir.stat().st_mode) & 0o022 == 0


def test_a_file_in_the_place_of_the_socket_is_told_and_kept(ramnet: Ramnet) -> None:
    daemon = ramnet(policy(CORP_REGISTRY), start=False)
    in_the_way = daemon.runtime_dir / "control.sock"
    in_the_way.write_text("precious", encoding="utf-8")
    with pytest.raises(LabError):
        daemon.start()
    assert daemon.wait() == 1
    assert "control.sock is in the way and is not a socket" in daemon.log
    assert no_traceback(daemon.log)
    assert in_the_way.read_text(encoding="utf-8") == "precious"


def test_a_runtime_directory_that_cannot_be_made_is_told(ramnet: Ramnet) -> None:
    daemon = ramnet(policy(CORP_REGISTRY), start=False)
    daemon.runtime_dir = Path("/proc/nowhere")
    daemon.start(wait=False)
    assert daemon.wait() == 1
    assert "control socket /proc/nowhere/control.sock" in daemon.log
    assert "hint: --runtime-dir" in daemon.log
    assert no_traceback(daemon.log)
