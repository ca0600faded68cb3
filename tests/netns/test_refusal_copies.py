"""Copies of refused packets: what the kernel tells of them, and what the record makes of it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest

from ramnet.core.activity import NameFrom, RefusalCopy, Verdict
from ramnet.core.pairing import refused
from ramnet.core.terms import REFUSALS_GROUP, TrafficClass
from ramnet.errors import OccupiedError
from ramnet.host.activity import Reader
from ramnet.host.journal import Journal
from ramnet.host.nflog import RefusalReader
from ramnet.host.nft import Nft
from ramnet.host.recorder import Recorder
from ramnet.host.scratch import in_scratch_netns
from tests.netns.nflogworld import beyond, started_in
from tests.unit.core.support import CLIENT, SERVER, reply, udp

T = TypeVar("T")

SECONDS = 10.0
NOBODY, NOGROUP = 65534, 65533
SNAPLEN = 128


def log(prefix: str, cut: str = f"snaplen {SNAPLEN}") -> str:
    return f'log prefix "{prefix}" group {REFUSALS_GROUP} {cut}'


def table(head: str, *rules: str, family: str = "inet") -> str:
    """A table by hand, with one chain."""
    lines = "\n".join((f"type filter hook {head};", *rules))
    return f"table {family} copies {{\nchain c {{\n{lines}\n}}\n}}\n"


def output(*rules: str) -> str:
    """Rules for what leaves this machine."""
    return table("output priority -160", *rules)


def with_reader(work: Callable[[RefusalReader], T]) -> T:
    def body() -> T:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        reader = RefusalReader(REFUSALS_GROUP)
        try:
            return work(reader)
        finally:
            reader.close()

    return in_scratch_netns(body)


def wait(reader: RefusalReader, count: int) -> list[RefusalCopy]:
    found: list[RefusalCopy] = []
    while len(found) < count:
        readable, _, _ = select.select([reader.fileno()], [], [], SECONDS)
        assert readable, f"{len(found)} of {count} copies came"
        found += reader.read()
    return found


_DIALS = """
import os, socket, sys
os.setgid(int(sys.argv[4]))
os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as client:
    client.settimeout(0.2)
    try: client.connect((sys.argv[1], int(sys.argv[2])))
    except OSError: pass
"""


def dial(address: str, port: int, uid: int = 0, gid: int = 0) -> None:
    """Try to connect, as a user."""
    command = [sys.executable, "-I", "-S", "-c", _DIALS, address, str(port), str(uid), str(gid)]
    subprocess.run(command, check=True)


def send_datagram(address: str, port: int) -> None:
    """Send one large datagram, dropped or not."""
    # What a rule drops at output is an error of the call.
    with socket.socket(type=socket.SOCK_DGRAM) as client, suppress(PermissionError):
        client.sendto(b"x" * 1_000, (address, port))


@pytest.mark.parametrize("address", ["127.0.0.9", "::1"])
@pytest.mark.parametrize("verdict", [Verdict.DENIED, Verdict.WOULD_DENY])
@pytest.mark.parametrize("traffic", TrafficClass)
def test_a_copy_says_who_and_what(address: str, verdict: Verdict, traffic: TrafficClass) -> None:
    def work(reader: RefusalReader) -> None:
        Nft().apply(
            output(f"tcp dport 443 tcp flags & syn == syn {log(f'{verdict} {traffic}')} drop")
        )
        dial(address, 443)
        (copy,) = wait(reader, 1)
        assert (copy.verdict, copy.traffic) == (verdict, traffic)
        assert (copy.uid, copy.gid, copy.indev, copy.outdev) == (0, 0, "", "lo")
        record, ends = refused(copy, 1.0)
        assert (record.address, record.port, record.protocol) == (address, 443, "tcp")
        assert ends is not None
        assert ends[2] == ip_address(address)
        assert reader.lost == 0

    with_reader(work)


def test_the_user_is_that_of_the_socket() -> None:
    def work(reader: RefusalReader) -> None:
        Nft().apply(output(f"tcp dport 443 {log('denied host')} drop"))
        dial("127.0.0.9", 443, NOBODY, NOGROUP)
        copy = wait(reader, 1)[0]
        assert (copy.uid, copy.gid) == (NOBODY, NOGROUP)

    with_reader(work)


def test_a_copy_is_cut_and_still_says_where_to() -> None:
    def work(reader: RefusalReader) -> None:
        rules = (
            f"udp dport 443 {log('denied engine')} drop",
            f"udp dport 80 {log('denied engine', cut='')}",
        )
        Nft().apply(output(*rules))
        send_datagram("127.0.0.9", 443)
        send_datagram("127.0.0.9", 80)
        cut, whole = wait(reader, 2)
        assert len(cut.packet) == SNAPLEN
        assert len(whole.packet) > 1_000, "the limit is the rule's"
        assert refused(cut, 1.0)[0].port == 443

    with_reader(work)


def test_what_another_program_logs_to_the_group_is_none_of_ours() -> None:
    def work(reader: RefusalReader) -> None:
        prefixes = ("dropped", "denied", "denied engine now", "denied nobody", "allowed engine", "")
        rules = [f"tcp dport {n} {log(text)} drop" for n, text in enumerate(prefixes, 1) if text]
        plain = f"tcp dport {len(prefixes)} log group {REFUSALS_GROUP} drop"
        Nft().apply(output(*rules, plain, f"tcp dport 443 {log('denied engine')} drop"))
        for port in (*range(1, len(prefixes) + 1), 443):
            dial("127.0.0.9", port)
        assert {refused(copy, 1.0)[0].port for copy in wait(reader, 1)} == {443}

    with_reader(work)


def test_the_group_has_one_owner() -> None:
    def work(_reader: RefusalReader) -> None:
        with pytest.raises(OccupiedError):
            RefusalReader(REFUSALS_GROUP)

    with_reader(work)


_FORWARDED = """
import socket
with socket.socket() as client:
    client.settimeout(0.2)
    try: client.connect(("10.9.2.2", 443))
    except OSError: pass
"""


@pytest.mark.parametrize(
    ("head", "family", "indev"),
    [("forward priority 0", "inet", "v1"), ("egress device v2 priority 0", "netdev", "")],
)
def test_what_is_forwarded_has_devices_and_no_user(head: str, family: str, indev: str) -> None:
    """At the egress of a device the copy begins with the frame's header."""

    def work(reader: RefusalReader) -> None:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="utf-8")
        with ExitStack() as stack:
            ends = [stack.enter_context(beyond(f"10.9.{number}")) for number in (1, 2)]
            rule = f"tcp dport 443 {log('denied containers')} drop"
            Nft().apply(table(head, rule, family=family))
            client = stack.enter_context(started_in(ends[0], _FORWARDED))
            assert client.wait(SECONDS) == 0
            copy = wait(reader, 1)[0]
        assert (copy.uid, copy.gid, copy.indev, copy.outdev) == (None, None, indev, "v2")
        record, _ = refused(copy, 1.0)
        assert (record.source, record.address, record.port) == ("10.9.1.2", "10.9.2.2", 443)
        assert record.interface == (indev or "v2")

    with_reader(work)


def test_from_the_kernel_to_the_record(tmp_path: Path) -> None:
    def work(reader: RefusalReader) -> None:
        recorder = Recorder(str(tmp_path), print, journal=Journal(str(tmp_path / "none")))
        recorder.heard(udp(SERVER, 53, CLIENT, 4_000, reply("quay.example", "127.0.0.9")))
        Nft().apply(output(f"tcp dport 443 {log('would-deny host')}"))
        dial("127.0.0.9", 443, NOBODY)
        for copy in wait(reader, 1):
            recorder.refused(copy)
        recorder.close()

    with_reader(work)
    with Reader(str(tmp_path)) as reader:
        (record,) = reader.read()
    assert (record.verdict, record.traffic, record.uid) == ("would-deny", "host", NOBODY)
    assert (record.name, record.name_from) == ("quay.example", NameFrom.DNS)
    assert (record.address, record.port) == ("127.0.0.9", 443)
    assert os.listdir(tmp_path) == ["activity"]  # noqa: PTH208 - names
