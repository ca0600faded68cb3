"""The judge: tcpdump at the far end of the wire, whose SYN count is what leaked.

A count of zero is worth nothing if packets were lost on the way into the file. So every reading
first sends a marker datagram out of the far side and waits until the capture holds it - packets
keep their order, so all that came before are in the file as well - and ``stop`` raises when the
kernel dropped any.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from ramnet.errors import LabError
from ramnet.lab.pcap import Frame, Syn, frames, syn_of
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.topology import CLIENT_V4, UPLINK

BUFFER_KIB = 65536  # 64 MiB: minutes of SYNs, if tcpdump should not get a processor
SNAP_BYTES = 256  # Ethernet, IP and TCP headers with all options
FLUSH_SECONDS = 10.0
SETTLE_SECONDS = 0.05  # what was sent just now may still wait in a queue of the veth pair
MARKER_PORT = 9  # discard

# libpcap's tcp[] does not reach into IPv6; byte 6 is the next header, byte 53 the TCP flags.
SYN_FILTER = "(tcp[13] & 0x12 == 0x02 or (ip6[6] == 6 and ip6[53] & 0x12 == 0x02))"
_DROPPED = re.compile(r"^(\d+) packets? dropped by kernel", re.MULTILINE)

_SEND_MARKER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.sendto(sys.argv[1].encode(), (sys.argv[2], int(sys.argv[3])))
"""


class Capture:
    """tcpdump on one interface of a sandbox, the far end of the wire by default.

    ``everything`` keeps all packets instead of the SYNs only. As a context manager it starts on
    entry, unless it runs already, and stops on exit; the results stay readable after that.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        file: Path,
        *,
        interface: str = UPLINK,
        everything: bool = False,
    ) -> None:
        self.sandbox = sandbox
        self.file = file
        self.interface = interface
        self.everything = everything
        self._process: Process | None = None

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
        else:
            self.abandon()

    @property
    def pid(self) -> int:
        """The host pid of tcpdump."""
        if self._process is None:
            raise LabError("the capture is not running")
        return self._process.pid

    def start(self) -> None:
        """Start tcpdump and return when it listens."""
        marker = f"(udp and dst host {CLIENT_V4} and dst port {MARKER_PORT})"
        argv = [require("tcpdump"), "-i", self.interface, "-n", "-U", "--immediate-mode"]
        argv += ["-B", str(BUFFER_KIB), "-s", str(SNAP_BYTES), "-Z", "root", "-w", str(self.file)]
        if not self.everything:
            argv.append(f"{SYN_FILTER} or {marker}")
        self._process = self.sandbox.popen(argv, log=self.file.with_suffix(".log"))
        self._process.wait_for_line("listening on")

    def flush(self) -> None:
        """Return when every packet that has arrived so far is in the file."""
        if self._process is None:
            return
        time.sleep(SETTLE_SECONDS)
        marker = secrets.token_hex(16)
        argv = [sys.executable, "-I", "-S", "-c", _SEND_MARKER, marker, CLIENT_V4]
        self.sandbox.run([*argv, str(MARKER_PORT)])
        needle = marker.encode()
        wait_until(
            lambda: any(frame.data.endswith(needle) for frame in self._frames()),
            FLUSH_SECONDS,
            "the capture does not keep up",
            hint=self._process.tail(),
        )

    def stop(self) -> None:
        """Flush and end the capture; LabError when the kernel dropped a packet."""
        if self._process is None:
            return
        try:
            self.flush()
        except BaseException:
            self.abandon()
            raise
        process, self._process = self._process, None
        process.signal(signal.SIGINT)
        with contextlib.suppress(LabError):
            process.wait()
        said = process.tail()
        dropped = _DROPPED.search(said)
        if process.returncode != 0 or dropped is None:
            process.kill()
            raise LabError(f"the capture ended with {process.returncode}", hint=said)
        if int(dropped[1]):
            raise LabError(f"the capture lost {dropped[1]} packets, so its count is worth nothing")

    def abandon(self) -> None:
        """End the capture without a judgement."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def frames(self) -> tuple[Frame, ...]:
        """Return all captured frames up to now."""
        self.flush()
        return tuple(self._frames())

    @property
    def syns(self) -> tuple[Syn, ...]:
        """The SYNs up to now, in order, retransmissions included."""
        return tuple(syn for frame in self.frames() if (syn := syn_of(frame)) is not None)

    def to(
        self, addresses: Iterable[str], *, ports: Iterable[int] | None = None
    ) -> tuple[Syn, ...]:
        """Return the SYNs to any of these addresses (and to any of these ports)."""
        wanted = {ip_address(address) for address in addresses}
        doors = None if ports is None else frozenset(ports)
        return tuple(
            syn for syn in self.syns if syn.dst in wanted and (doors is None or syn.dport in doors)
        )

    def attempts(self) -> Counter[tuple[IPv4Address | IPv6Address, int]]:
        """Count the connection attempts for each (address, port), retransmissions counted once."""
        once = {(syn.src, syn.sport, syn.dst, syn.dport, syn.seq) for syn in self.syns}
        return Counter((dst, dport) for _, _, dst, dport, _ in once)

    def _frames(self) -> list[Frame]:
        return list(frames(self.file.read_bytes())) if self.file.exists() else []
