"""The lab without an engine: what the other tests rely on when they say "nothing leaked"."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ramnet.errors import LabError
from ramnet.lab import capture as capture_module
from ramnet.lab import janitor, programs, topology
from ramnet.lab.dns import Dns, Record, records
from ramnet.lab.forge import Datagram, checksum, forge, packet
from ramnet.lab.generator import Generator
from ramnet.lab.lab import Lab
from ramnet.lab.pcap import Frame, frames, syn_of
from ramnet.lab.pki import Pki
from ramnet.lab.process import Process, wait_until
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import CHAIN, DUAL, EVIL, GHCR, HUB, QUAY, V6ONLY

pytestmark = pytest.mark.netns

GONE_SECONDS = 10.0

RESOLVE = """
import json, socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], 443, type=socket.SOCK_STREAM)
except socket.gaierror:
    found = []
print(json.dumps(sorted({entry[4][0] for entry in found})))
"""
LISTEN_UDP = """
import json, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.bind((sys.argv[1], 5555))
    print("bound", flush=True)
    data, peer = sock.recvfrom(100)
    print(json.dumps([data.decode(), *peer[:2]]), flush=True)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Sandbox]:
    """One sandbox without any connection."""
    with Sandbox("tool", tmp_path) as sandbox:
        yield sandbox


def python(sandbox: Sandbox, code: str, *args: str) -> str:
    return sandbox.run([sys.executable, "-I", "-c", code, *args]).stdout


def resolve(sandbox: Sandbox, name: str) -> set[str]:
    return set(json.loads(python(sandbox, RESOLVE, name)))


def interfaces() -> tuple[list[str], list[str]]:
    """The machine's interfaces (sysfs shows those of who mounted it) and this process's own."""
    machine = sorted(entry.name for entry in Path("/sys/class/net").iterdir())
    return machine, [name for _, name in socket.if_nameindex()]


def footprint() -> tuple[object, ...]:
    """What a lab could spoil on the machine."""
    return (
        interfaces(),
        Path("/etc/resolv.conf").read_bytes(),
        Path("/etc/hosts").read_bytes(),
        Path("/proc/self/mounts").read_text(encoding="utf-8"),
        [Path("/run", name).exists() for name in ("docker", "docker.sock", "ramnet", ".etc")],
    )


def ethernet(kind: int, payload: bytes) -> Frame:
    return Frame(0.0, bytes(12) + struct.pack(">H", kind) + payload)


# --- nothing outside, nothing left


def test_the_lab_is_invisible_outside_and_leaves_nothing() -> None:
    before = footprint()
    with Lab() as lab:
        lab.container()
        assert footprint() == before
        assert any(line.startswith("directory") for line in lab.leftovers())
        assert any(line.startswith("process") for line in lab.leftovers())
    assert lab.leftovers() == []
    assert footprint() == before


HOLD = """
import sys, time
from ramnet.lab.lab import Lab
with Lab() as lab:
    sleeper = lab.client.popen(["sleep", "1000"], log=lab.directory / "sleeper")
    sleeper.signal({stop})
    print(lab.directory, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_process_leaves_nothing_of_its_lab(number: signal.Signals, stopped: bool) -> None:
    stop = "__import__('signal').SIGSTOP" if stopped else "__import__('signal').SIGCONT"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(stop=stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(programs.PYTHON_PATH)},
    ) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert janitor.leftovers(directory)
        process.send_signal(number)
    wait_until(lambda: not janitor.leftovers(directory), GONE_SECONDS, "the lab's end")


@pytest.mark.parametrize("failure", [LabError("half-way"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["Sandbox.wait_ready", "topology.connect", "Registries.start"])
def test_a_failure_half_way_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, where: str
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(f"ramnet.lab.lab.{where}", fail)
    lab = Lab()
    with pytest.raises(type(failure)), lab:
        pytest.fail("the lab came up")
    assert lab.leftovers() == []


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SEARCH_PATH", "/nonexistent")
    with pytest.raises(LabError, match="dnsmasq") as caught, Lab():
        pass
    assert "dnsmasq-base" in caught.value.hint
    with pytest.raises(LabError, match="tcpdump is missing") as caught:
        programs.require("tcpdump")
    assert caught.value.hint == "apt-get install tcpdump"


def test_without_root_the_lab_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    lab = Lab()
    with pytest.raises(LabError, match="needs root") as caught, lab:
        pass
    assert caught.value.hint
    monkeypatch.undo()
    assert lab.leftovers() == []


def test_the_janitor_touches_only_the_directory_of_a_lab(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", janitor.__file__, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert tmp_path.exists()


def test_the_janitor_says_what_it_cannot_remove(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(janitor, "CLEAN_SECONDS", 0.05)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    stuck = tmp_path / f"{janitor.PREFIX}stuck"
    stuck.mkdir()
    assert janitor.clean(stuck) == [f"directory {stuck}"]


# --- sandboxes


def test_a_sandbox_has_its_own_run_etc_and_processes(tool: Sandbox) -> None:
    assert tool.run(["cat", "/etc/hosts"]).stdout.startswith("127.0.0.1 localhost")
    assert "passwd" in tool.run(["ls", "/etc"]).stdout
    assert tool.run(["ls", "/run"]).stdout.split() == ["lock", "mount"]
    assert int(tool.run(["sh", "-c", "echo $$"]).stdout) < 1000
    assert tool.run(["ls", "/proc/1/task"]).stdout.split() == ["1"]


@pytest.mark.parametrize("rename", [False, True])
def test_resolv_conf_can_be_written_and_replaced(tool: Sandbox, rename: bool) -> None:
    machine = Path("/etc/resolv.conf").read_bytes()
    before = tool.path("/etc/resolv.conf").stat().st_ino
    tool.set_resolvers("192.0.2.53", rename=rename)
    assert "nameserver 192.0.2.53\n" in tool.run(["cat", "/etc/resolv.conf"]).stdout
    assert (tool.path("/etc/resolv.conf").stat().st_ino != before) == rename
    assert Path("/etc/resolv.conf").read_bytes() == machine


def test_run_reports_status_output_input_user_and_environment(tool: Sandbox) -> None:
    assert tool.run(["cat"], input="text").stdout == "text"
    assert tool.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    assert tool.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL
    assert tool.run(["id", "-u"], user=65534).stdout == "65534\n"
    assert tool.run(["pwd"], cwd="/usr").stdout == "/usr\n"
    assert tool.run(["sh", "-c", "echo $WORD"], env={"WORD": "said"}).stdout == "said\n"
    with pytest.raises(LabError, match=r"false: status 1 in tool"):
        tool.run(["false"])


def test_a_program_that_takes_too_long_is_ended_with_its_children(tool: Sandbox) -> None:
    with pytest.raises(LabError, match="still running after"):
        tool.run(["sh", "-c", "sleep 1234 & sleep 1234"], timeout=0.3)
    assert "1234" not in tool.run(["ps", "ax"]).stdout


def test_nothing_of_the_callers_environment_gets_in(
    monkeypatch: pytest.MonkeyPatch, tool: Sandbox
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    assert "PROXY" not in tool.run(["env"]).stdout


def test_a_program_is_signalled_by_its_own_pid(tool: Sandbox, tmp_path: Path) -> None:
    process = tool.popen(["sleep", "1000"], log=tmp_path / "log")
    assert Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x001000\0"

    def state() -> str:
        stat = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
        return stat.rpartition(")")[2].split()[0]

    process.signal(signal.SIGSTOP)
    wait_until(lambda: state() == "T", 5, "the stop")
    process.signal(signal.SIGCONT)
    wait_until(lambda: state() == "S", 5, "the continuation")
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.signal(signal.SIGTERM)  # nothing happens


def test_a_stopped_and_killed_program_is_seen_to_end(tool: Sandbox, tmp_path: Path) -> None:
    process = tool.popen(["sleep", "1000"], log=tmp_path / "log")
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.05)  # nsenter takes notice, and stops as well
    assert process.returncode is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_stop_insists(tool: Sandbox, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    process = tool.popen(["sh", "-c", script], log=log)
    process.wait_for_line("deaf")
    assert process.stop(timeout=0.2) == -signal.SIGKILL


def test_a_program_joins_its_cgroup_before_it_runs(tool: Sandbox, tmp_path: Path) -> None:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
    found = re.search(r" (\S+) cgroup2 ", mounts)
    if found is None:
        pytest.skip("no cgroup v2 hierarchy")
    group = Path(found[1]) / f"{janitor.PREFIX}{os.getpid()}"
    group.mkdir()
    try:
        process = tool.popen(["sleep", "1000"], log=tmp_path / "log", cgroup=group)
        wait_until(
            lambda: str(process.pid) in (group / "cgroup.procs").read_text().split(), 5, "the join"
        )
        assert process.name == "sleep"
        process.kill()
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 5, "the group's end")
        janitor.remove_cgroups(group.name)
    assert janitor.cgroups(group.name) == []


def test_misuse_of_programs_and_sandboxes_is_explained(tool: Sandbox, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = tool.popen(["sh", "-c", "echo word; exit 3"], log=log)
    process.wait_for_line("word")
    with pytest.raises(LabError, match="ended with 3") as caught:
        process.wait_for_line("never said")
    assert "word" in caught.value.hint
    with pytest.raises(LabError, match="ended with 3"):
        _ = process.pid
    with pytest.raises(LabError, match="without an input"):
        _ = process.stdin
    slow = tool.popen(["sleep", "1000"], log=log)
    with pytest.raises(LabError, match="did not say 'x'"):
        slow.wait_for_line("x", 0.05)
    with pytest.raises(LabError, match="the end of sleep"):
        slow.wait(0.05)
    slow.kill()
    with (
        subprocess.Popen(["true"], text=True) as true,
        pytest.raises(LabError, match="without a log"),
    ):
        Process(true, "true", None).wait_for_line("x")
    idle = Sandbox("idle", tmp_path)
    with pytest.raises(LabError, match="not running"):
        idle.run(["true"])
    with pytest.raises(LabError, match="not started"):
        idle.wait_ready()
    idle.close()


def test_namespaces_that_cannot_be_made_are_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ramnet.lab.sandbox._SETUP", "echo refused; exit 1")
    with pytest.raises(LabError, match="refused") as caught, Sandbox("broken", tmp_path):
        pass
    assert "root" in caught.value.hint


def test_a_network_that_cannot_be_made_is_explained(tool: Sandbox) -> None:
    with pytest.raises(LabError, match="could not be set up") as caught:
        topology.connect(tool, tool)  # both ends of a wire with one name
    assert "veth" in caught.value.hint


# --- the network


def test_every_address_of_the_world_answers_on_the_registry_ports(lab: Lab) -> None:
    targets = [
        (address, port)
        for address in ("198.51.100.1", "198.51.100.254", "203.0.113.9", "2001:db8::abcd")
        for port in (443, 8443, 5000, 80)
    ]
    generator = lab.generator(targets)
    generator.wait_attempts(2 * len(targets))
    report = generator.stop()
    assert report.total.connected == report.total.attempted
    assert set(report.targets) == set(targets)


def test_a_container_reaches_the_world_through_the_client(lab: Lab) -> None:
    container = lab.container()
    assert resolve(container, "ghcr.io") == set(GHCR)
    with lab.capture() as capture:
        connect = "import socket; socket.create_connection(('198.51.100.20', 443), 5).close()"
        python(container, connect)
    assert [str(syn.src) for syn in capture.to(GHCR)] == [topology.CLIENT_V4]


# --- DNS


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("registry-1.docker.io", HUB),
        ("index.docker.io", HUB),
        ("ghcr.io", GHCR),
        ("quay.io", QUAY),
        ("QUAY.io", QUAY),
        ("v6only.example", V6ONLY),
        ("dual.example", DUAL),
        ("chain.example", CHAIN),
        ("unknown.example", ()),
        ("sub.ghcr.io", ()),
    ],
)
def test_the_world_answers(lab: Lab, name: str, addresses: tuple[str, ...]) -> None:
    assert resolve(lab.client, name) == set(addresses)


def test_the_untrusted_server_lies(lab: Lab) -> None:
    lab.client.set_resolvers(topology.UNTRUSTED_DNS_V4)
    try:
        assert resolve(lab.client, "ghcr.io") == set(EVIL)
    finally:
        lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)


def test_the_server_answers_over_ipv6(lab: Lab) -> None:
    lab.client.set_resolvers(topology.DNS_V6)
    try:
        assert resolve(lab.client, "ghcr.io") == set(GHCR)
    finally:
        lab.client.set_resolvers(topology.DNS_V4, topology.DNS_V6)


def test_records_change_while_the_server_runs(lab: Lab) -> None:
    name = "moving.example"
    begin = time.monotonic()
    lab.dns.set(name, "198.51.100.101")
    assert time.monotonic() - begin < 2  # 10 ms on an idle machine
    assert resolve(lab.client, name) == {"198.51.100.101"}
    lab.dns.set(name, "198.51.100.102", "2001:db8::102")
    assert resolve(lab.client, name) == {"198.51.100.102", "2001:db8::102"}
    lab.dns.update({name: Record(cname="ghcr.io", ttl=7)})
    assert resolve(lab.client, name) == set(GHCR)
    lab.dns.update({name: Record(("198.51.100.103", "198.51.100.104"), ttl=7)})
    assert resolve(lab.client, name) == {"198.51.100.103", "198.51.100.104"}
    assert lab.dns.table[name].ttl == 7
    lab.dns.update({name: None})
    assert resolve(lab.client, name) == set()


def test_addresses_rotate_and_come_back(lab: Lab) -> None:
    pool = [f"198.51.100.{octet}" for octet in range(110, 114)]
    seen: set[str] = set()
    with lab.dns.rotating("ghcr.io", pool, period=0.05):
        deadline = time.monotonic() + 10
        while len(seen) < len(pool) and time.monotonic() < deadline:
            answer = resolve(lab.client, "ghcr.io")
            assert len(answer) == 1
            seen |= answer
    assert seen == set(pool)
    assert resolve(lab.client, "ghcr.io") == set(GHCR)


def test_a_failed_rotation_is_reported(lab: Lab) -> None:
    with (
        pytest.raises(LabError, match="not an IP address"),
        lab.dns.rotating("ghcr.io", ["198.51.100.110", "nonsense"], period=0.01),
    ):
        time.sleep(0.2)
    assert resolve(lab.client, "ghcr.io") == set(GHCR)


def test_the_server_keeps_what_it_was_asked(lab: Lab) -> None:
    lab.dns.set("asked.example", "198.51.100.120")
    assert lab.dns.asked("asked.example") == ()
    resolve(lab.client, "asked.example")
    asked = lab.dns.asked("asked.example")
    assert {query.kind for query in asked} == {"A", "AAAA"}
    assert {query.client for query in asked} <= {topology.CLIENT_V4, topology.CLIENT_V6}
    assert len(lab.dns.asked()) > len(asked)


def test_bad_records_and_a_server_that_cannot_start_are_explained(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="either addresses or a CNAME"):
        Record()
    with pytest.raises(LabError, match="not an IP address"):
        records({"a.example": ["nonsense"]})
    dns = Dns(lab.world, tmp_path, ["198.51.100.53"], {})
    with pytest.raises(LabError, match="not started"):
        dns.wait_ready()
    dns.update({"a.example": Record(("198.51.100.1",))})  # kept until it starts
    taken = Dns(lab.world, tmp_path, [topology.DNS_V4], {})
    with pytest.raises(LabError, match="ended at once") as caught:
        taken.start()
    assert "Address already in use" in caught.value.hint


# --- the judge


def test_the_capture_counts_exactly_what_the_generator_tried(lab: Lab) -> None:
    # Two of these listen, two refuse, v4 and v6.
    targets = [
        ("198.51.100.20", 443),
        ("2001:db8::60", 443),
        ("198.51.100.66", 444),
        ("2001:db8::66", 444),
    ]
    with lab.capture() as capture:
        generator = lab.generator(targets, rate=300)
        time.sleep(1.0)
        report = generator.stop()
    assert report.total.attempted > 200
    assert report.total.connected == sum(
        counts.connected for (_, port), counts in report.targets.items() if port == 443
    )
    assert report.total.refused == sum(
        counts.attempted for (_, port), counts in report.targets.items() if port == 444
    )
    tried = {
        (ip_address(ip), port): counts.attempted for (ip, port), counts in report.targets.items()
    }
    assert dict(capture.attempts()) == tried
    assert (
        len(capture.to(EVIL)) == tried[ip_address(EVIL[0]), 444] + tried[ip_address(EVIL[1]), 444]
    )
    assert capture.to(EVIL, ports=[443]) == ()
    assert all(syn.sport >= 1024 and syn.time > 0 for syn in capture.syns)


def test_the_generator_tells_timeouts_and_errors_apart(lab: Lab) -> None:
    drop = ["ip", "route", "add", "blackhole", "198.51.100.77"]
    lab.world.run(["ip", "route", "del", "local", "198.51.100.0/24", "dev", "lo"])
    lab.client.run(["ip", "route", "add", "prohibit", "203.0.113.77"])
    try:
        lab.world.run(drop)
        # Both sides of the wire would pass it back and forth; the world drops it.
        with lab.capture() as capture:
            generator = lab.generator([("198.51.100.77", 443), ("203.0.113.77", 443)], rate=100)
            generator.wait_attempts(100)
            report = generator.stop()
        silent, prohibited = (
            report.targets["198.51.100.77", 443],
            report.targets["203.0.113.77", 443],
        )
        assert silent.timeout == silent.attempted > 0
        assert prohibited.error == prohibited.attempted > 0
        assert report.errors == {"EACCES": prohibited.attempted}
        # Given up before the first retransmission: an attempt is one SYN.
        assert len(capture.to(["198.51.100.77"])) == silent.attempted
        assert report.rate > 10
    finally:
        lab.client.run(["ip", "route", "del", "prohibit", "203.0.113.77"])
        lab.world.run(["ip", "route", "del", "blackhole", "198.51.100.77"])
        lab.world.run(["ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo"])


def test_a_capture_can_be_read_while_it_runs(lab: Lab) -> None:
    with lab.capture() as capture:
        nothing = capture.syns
        assert nothing == ()
        python(lab.client, "import socket; socket.create_connection(('2001:db8::60', 443), 5)")
        first = capture.syns
        assert [str(syn.dst) for syn in first] == ["2001:db8::60"]
        python(lab.client, "import socket; socket.create_connection(('198.51.100.60', 443), 5)")
        assert len(capture.syns) == 2
    assert capture.syns[:1] == first
    with pytest.raises(LabError, match="not running"):
        _ = capture.pid


def test_a_capture_of_everything_holds_answers_too(lab: Lab) -> None:
    with lab.capture(everything=True) as capture:
        python(lab.client, "import socket; socket.create_connection(('198.51.100.60', 443), 5)")
    assert len(capture.syns) == 1
    assert len(capture.frames()) > 3


def test_a_capture_that_lost_packets_is_no_proof(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "BUFFER_KIB", 4)
    capture = lab.capture(everything=True)
    os.kill(capture.pid, signal.SIGSTOP)
    generator = lab.generator([("198.51.100.60", 443)], rate=1000)
    generator.wait_attempts(1000)
    generator.stop()
    os.kill(capture.pid, signal.SIGCONT)
    with pytest.raises(LabError, match="worth nothing"):
        capture.stop()


def test_a_capture_that_hangs_is_reported(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "FLUSH_SECONDS", 0.3)
    capture = lab.capture()
    os.kill(capture.pid, signal.SIGSTOP)
    with pytest.raises(LabError, match="does not keep up"):
        capture.stop()


def test_a_capture_that_died_is_reported(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = lab.capture()
    monkeypatch.setattr(capture, "flush", lambda: os.kill(capture.pid, signal.SIGKILL))
    with pytest.raises(LabError, match="ended with -9"):
        capture.stop()


def test_a_generator_needs_targets_and_reports_its_death(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="needs a target"):
        lab.generator([])
    log = tmp_path / "counts"
    log.touch()
    with pytest.raises(LabError, match="has not reported"):
        _ = Generator(lab.client, log, [("198.51.100.20", 443)]).report
    with pytest.raises(LabError, match="ended with 1") as caught:
        lab.generator([("nonsense", 443)])
    assert "nonsense" in caught.value.hint or "gaierror" in caught.value.hint


def test_the_pcap_reader_refuses_what_it_does_not_know() -> None:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 256, 1)
    packet_header = struct.pack("<IIII", 5, 250000, 4, 4)
    assert list(frames(header + packet_header + b"data")) == [Frame(5.25, b"data")]
    assert list(frames(header + packet_header + b"dat")) == []
    assert list(frames(b"")) == []
    with pytest.raises(LabError, match="not a pcap file"):
        list(frames(bytes(24)))
    with pytest.raises(LabError, match="link type 113"):
        list(frames(header[:20] + struct.pack("<I", 113)))


def test_the_pcap_reader_takes_only_first_fragments_of_syns() -> None:
    ports = struct.pack(">HHIIBBHHH", 1024, 443, 77, 0, 0x50, 0x02, 0, 0, 0)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + bytes(8)
    syn = syn_of(ethernet(0x0800, head + ports))
    assert syn is not None
    assert (syn.sport, syn.dport, syn.seq) == (1024, 443, 77)
    later = head[:6] + struct.pack(">H", 1) + head[8:]
    answer = ports[:13] + b"\x12" + ports[14:]
    assert syn_of(ethernet(0x0800, later + ports)) is None
    assert syn_of(ethernet(0x0800, head + answer)) is None
    assert syn_of(ethernet(0x0800, head + ports[:10])) is None
    assert syn_of(ethernet(0x0806, head + ports)) is None
    assert syn_of(Frame(0.0, b"")) is None


# --- forged datagrams


@pytest.mark.parametrize("origin", ["world", "client", "container"])
@pytest.mark.parametrize(
    ("src", "dst"),
    [(topology.DNS_V4, topology.CLIENT_V4), (topology.DNS_V6, topology.CLIENT_V6)],
    ids=["v4", "v6"],
)
def test_a_forged_datagram_arrives_with_the_forged_source(
    lab: Lab, tmp_path: Path, origin: str, src: str, dst: str
) -> None:
    if origin == "container" and ":" in src:
        src, dst = topology.DNS_V4, topology.BRIDGE_V4
    sender = {"world": lab.world, "client": lab.client}.get(origin) or lab.container()
    listener = lab.client.popen(
        [sys.executable, "-I", "-c", LISTEN_UDP, dst], log=tmp_path / "listener"
    )
    listener.wait_for_line("bound")
    forge(sender, [Datagram(src, 53, dst, 5555, b"lie")])
    assert listener.wait() == 0
    heard = (tmp_path / "listener").read_text(encoding="utf-8").splitlines()[1]
    assert json.loads(heard) == ["lie", src, 53]


def test_forging_repeats(lab: Lab) -> None:
    datagram = Datagram("203.0.113.5", 53, "198.51.100.9", 5555, b"again")
    with lab.capture(everything=True) as capture:
        forge(lab.client, [datagram], repeat=5, interval=0.001)
    assert sum(frame.data.endswith(b"again") for frame in capture.frames()) == 5


def test_forged_packets_have_right_checksums_and_one_family() -> None:
    made = packet(Datagram("192.0.2.1", 53, "192.0.2.2", 5555, b"odd"))
    assert checksum(made[:20]) == 0
    pseudo = made[12:20] + struct.pack(">BBH", 0, 17, len(made) - 20)
    assert checksum(pseudo + made[20:]) == 0
    with pytest.raises(LabError, match="mixes IPv4 and IPv6"):
        packet(Datagram("192.0.2.1", 53, "2001:db8::1", 5555, b""))


# --- registries and certificates


@pytest.mark.parametrize(
    "reference",
    [
        "docker.io/library/busybox",
        "ghcr.io/acme/app",
        "quay.io/acme/app",
        "registry.corp.example:5000/acme/app",
        "v6only.example/acme/app",
        "dual.example/acme/app",
        "evil.example/acme/app",
        "evil.example:8443/acme/app",
        "198.51.100.66/acme/app",
        "chain.example/acme/app",
    ],
)
def test_every_registry_serves_its_image(lab: Lab, reference: str) -> None:
    programs.require("skopeo")
    done = lab.client.run(["skopeo", "inspect", f"docker://{reference}"])
    found = json.loads(done.stdout)
    assert found["RepoTags"] == ["latest"]
    assert len(found["Layers"]) == 1


def test_an_image_can_be_added_while_the_registries_run(lab: Lab) -> None:
    digest = lab.registries.add_image("acme/late", "v1", files={"note": b"hello"}, filler=100_000)
    assert digest == lab.registries.add_image(
        "acme/late", "v1", files={"note": b"hello"}, filler=100_000
    )
    copy = ["skopeo", "--insecure-policy", "copy", f"docker://ghcr.io/acme/late@{digest}"]
    lab.client.run([*copy, f"dir:{lab.directory}/late"])
    assert lab.client.run(["ls", f"{lab.directory}/late"]).stdout.count("\n") == 5
    assert f"GET /v2/acme/late/manifests/{digest}" in lab.registries.requests()


def test_a_plain_registry_listens_on_the_clients_loopback(lab: Lab) -> None:
    server = lab.local_registry(5001)
    fetch = "import urllib.request as u; print(u.urlopen('http://localhost:5001/v2/').status)"
    assert python(lab.client, fetch) == "200\n"
    server.kill()


def test_certificates_need_names_and_openssls_refusal_is_passed_on(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    with pytest.raises(LabError, match="needs a name"):
        pki.issue("empty", ())
    with pytest.raises(LabError, match="no certificate"):
        pki.issue("bad", ["a\nb"])


def test_a_lab_says_what_it_was_made_without() -> None:
    bare = Lab(registries=False)
    with pytest.raises(LabError, match="no registries"):
        _ = bare.registries
    with pytest.raises(LabError, match="no engine"):
        _ = bare.engine


# --- the daemon under test


def test_a_daemon_that_does_not_start_is_reported_with_its_log(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = lab.daemon(None, start=False)
    assert not daemon.running
    with pytest.raises(LabError, match="was not started"):
        daemon.stop()
    monkeypatch.setattr(type(daemon), "running", True)
    with pytest.raises(LabError, match="the daemon is running"):
        daemon.start()
    monkeypatch.undo()
    for answer in ("text", "[]"):
        done = subprocess.CompletedProcess([], 0, answer, "")
        monkeypatch.setattr(daemon, "cli", lambda *_, done=done: done)
        with pytest.raises(LabError, match="no JSON"):
            daemon.status()
    broken = lab.daemon(None, config="]", start=False)
    with pytest.raises(LabError, match="ended with") as caught:
        broken.start()
    assert caught.value.hint == broken.log[-2000:]
