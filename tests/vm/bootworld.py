"""A machine that is told to reach a refused registry as it boots, by all means that it has.

Who tries, each by ports of its own so that the far side can tell them apart:

- the engine, because a unit behind docker.service asks it to, in a loop: TCP 443 and 5000;
- the engine by itself, for the log of a container that it starts at boot: UDP 12201;
- a program in the engines' cgroup, from the first moment that systemd starts anything: TCP 2377 and
  UDP 7946, the ports of a swarm; and another one behind network-online.target: 2378 and 7947;
- an engine of another name, with the drop-in that ours have: TCP 2379 and UDP 7948.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ramnet.lab.capture import Capture
from ramnet.lab.pcap import Frame, syn_of
from ramnet.lab.world import EVIL
from tests.vm.vm import VmError
from tests.vm.world import VmWorld

REFUSED_IMAGE = "evil.example/acme/app"
REFUSED_BY_ADDRESS = f"{EVIL[0]}:5000/acme/app"
ALLOWED_IMAGE = "registry.corp.example:5000/acme/app"

POLICY = """\
version = 1
organization = "acme"

[[registry]]
address = "registry.corp.example:5000"
"""
BROKEN_POLICY = 'version = 1\norganization = "acme\n'
POLICY_FILE = "/etc/ramnet/policy.toml"
LOCKED_FILE = "/var/lib/ramnet/locked.nft"

GELF_PORT = 12201
EARLY_PORTS = (2377, 7946)
LATE_PORTS = (2378, 7947)
OTHER_PORTS = (2379, 7948)
ENGINE_PORTS = (443, 5000)

_CONNECTING = f"""\
import errno, socket, sys, time
tcp, udp = map(int, sys.argv[1:])
told = set()
while True:
    waiting = []
    for address in {EVIL!r}:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"gossip", (address, udp))
        except OSError:
            pass
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        waiting.append((sock, sock.connect_ex((address, tcp))))
    time.sleep(0.5)
    for sock, said in waiting:
        try:
            sock.getpeername()
            said = 0
        except OSError:
            said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or said
        sock.close()
        if said not in told:
            told.add(said)
            print(errno.errorcode.get(said, "CONNECTED"), flush=True)
"""
_CONNECTING_FILE = "/usr/local/lib/boot-trouble/connecting.py"

_EARLY = f"""\
[Unit]
DefaultDependencies=no
[Service]
Slice=ramnetengines.slice
ExecStart=/usr/bin/python3 -I -S {_CONNECTING_FILE} {EARLY_PORTS[0]} {EARLY_PORTS[1]}
[Install]
WantedBy=sysinit.target
"""
_LATE = f"""\
[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Slice=ramnetengines.slice
ExecStart=/usr/bin/python3 -I -S {_CONNECTING_FILE} {LATE_PORTS[0]} {LATE_PORTS[1]}
[Install]
WantedBy=multi-user.target
"""
_PULLING = f"""\
#!/bin/sh
# The second container is made again and again: its image is to be asked for each time.
while :; do
    docker pull {REFUSED_BY_ADDRESS}
    docker create --pull always --restart always --name refused {REFUSED_IMAGE} sh
    sleep 3
done
"""
_PULLING_FILE = "/usr/local/lib/boot-trouble/pulling"
_PULL = f"""\
[Unit]
After=docker.service
[Service]
ExecStart={_PULLING_FILE}
Restart=always
[Install]
WantedBy=multi-user.target
"""
_ENGINE = f"""\
[Service]
ExecStart=/usr/bin/python3 -I -S {_CONNECTING_FILE} {OTHER_PORTS[0]} {OTHER_PORTS[1]}
Restart=always
RestartSec=2
[Install]
WantedBy=multi-user.target
"""
UNITS = {"boot-early": _EARLY, "boot-late": _LATE, "boot-pull": _PULL, "boot-engine": _ENGINE}
_OUR_DROP_IN, _OTHER_DROP_IN = (
    f"{name}.service.d/10-ramnet.conf" for name in ("docker", "boot-engine")
)
_SYSTEM = "/etc/systemd/system"
_AWAY = "/root/away.tar"
# All by which systemd knows of ramnet.
_PARTS = "$(ls -d ramnet*.s* *.service.d/10-ramnet.conf | grep -v vm-agent)"

# Prints the state when ``status`` first says one of some, and how many seconds that took.
_WAITING = """\
import json, socket, sys, time
states, seconds, begin = sys.argv[1].split(","), float(sys.argv[2]), time.monotonic()
said = "no answer"
while time.monotonic() < begin + seconds:
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect("/run/ramnet/control.sock")
            sock.sendall(b'{"verb": "status"}\\n')
            said = json.loads(sock.makefile().readline())["result"]["state"]
    except (OSError, ValueError, KeyError) as err:
        said = repr(err)
    if said in states:
        print(said, time.monotonic() - begin)
        sys.exit()
    time.sleep(0.1)
sys.exit(f"after {seconds:g} s: {said}")
"""
PULL_SECONDS = 60.0
TALKER = "talker"


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet that came from the machine and went to a refused address.

    ``time`` is in seconds of the system clock outside: it tells in which boot that was.
    """

    time: float
    protocol: str
    destination: IPv4Address | IPv6Address
    port: int


_NAMES = {6: "tcp", 17: "udp"}


def sent_to_refused(capture: Capture) -> list[Sent]:
    """List the SYNs, and all that is not TCP, that reached a refused address."""
    refused = {ip_address(address) for address in EVIL}
    found = (_sent(frame) for frame in capture.frames())
    return [item for item in found if item is not None and item.destination in refused]


def _sent(frame: Frame) -> Sent | None:
    """Read a frame; None for the rest of a TCP connection, and for what is no IP packet."""
    (kind,) = struct.unpack_from(">H", frame.data, 12)
    packet = frame.data[14:]
    destination: IPv4Address | IPv6Address
    if kind == 0x0800:
        protocol, payload = packet[9], packet[(packet[0] & 0x0F) * 4 :]
        destination = IPv4Address(packet[16:20])
    elif kind == 0x86DD:
        protocol, payload = packet[6], packet[40:]
        destination = IPv6Address(packet[24:40])
    else:
        return None
    if protocol == 6 and syn_of(frame) is None:
        return None
    port = struct.unpack_from(">H", payload, 2)[0] if protocol in _NAMES else 0
    return Sent(frame.time, _NAMES.get(protocol, str(protocol)), destination, port)


class Trouble:
    """The machine, and how to make and mend what a boot may meet."""

    def __init__(self, world: VmWorld, installed: Path) -> None:
        self.world = world
        self.vm = world.machine(installed)

    def prepare(self) -> None:
        """Put in place what tries at each boot from the next one on."""
        vm = self.vm
        vm.put(_CONNECTING_FILE, _CONNECTING)
        vm.put(_PULLING_FILE, _PULLING, 0o755)
        for name, unit in UNITS.items():
            vm.put(f"{_SYSTEM}/{name}.service", unit)
        vm.run(f"install -D -m 644 {_SYSTEM}/{_OUR_DROP_IN} {_SYSTEM}/{_OTHER_DROP_IN}")
        vm.run(
            f"docker create --restart always --network none --name {TALKER}"
            " --security-opt apparmor=unconfined"
            f" --log-driver gelf --log-opt gelf-address=udp://{EVIL[0]}:{GELF_PORT}"
            f" {ALLOWED_IMAGE} sh -c 'while :; do echo here; sleep 1; done'"
            f" && docker start {TALKER}",
            seconds=120,
        )
        vm.run(f"systemctl enable --quiet {' '.join(UNITS)} && sync")

    def without_ramnet(self) -> None:
        """Take away all by which systemd knows of it, for the next boot."""
        self.vm.run(
            f"cd {_SYSTEM} && parts={_PARTS} && tar -cf {_AWAY} $parts && rm -r $parts && sync"
        )

    def with_ramnet(self) -> None:
        """Put it back, for the next boot, and end this one: nothing judges what it sends."""
        self.vm.run(f"tar -C {_SYSTEM} -xf {_AWAY} && docker rm --force refused && sync")
        self.vm.power_off()

    def put_policy(self, text: str) -> None:
        """Write the policy as careful editors do, and to the disk."""
        self.vm.put(f"{POLICY_FILE}.new", text)
        self.vm.run(f"mv {POLICY_FILE}.new {POLICY_FILE} && sync")

    def after(self, cure: str, state: str = "enforcing", *, seconds: float) -> float:
        """Run what takes a cause away; return how many seconds later ``status`` says the state."""
        return self._wait(f"{cure}\n", state, seconds)[1]

    def state(self, seconds: float) -> str:
        """Wait until the daemon answers, and return its state."""
        return self._wait("", "enforcing,locked-down,degraded,off", seconds)[0]

    def _wait(self, cure: str, states: str, seconds: float) -> tuple[str, float]:
        script = f"{cure}exec python3 -I -S - {states} {seconds:g}"
        said = self.vm.run(script, seconds=seconds + 60, input=_WAITING).out.split()
        return said[-2], float(said[-1])

    def is_refused(self, unit: str, seconds: float) -> None:
        """Wait until a unit was told, since it was last started, that it is refused.

        Or that it is connected, where it was the notice that it got: the far side would know.
        """
        since = f'_SYSTEMD_INVOCATION_ID="$(systemctl show --property InvocationID --value {unit})"'
        said = f"journalctl --quiet --output cat {since}"
        words = "connection refused|ECONNREFUSED|registry-access-denied|^CONNECTED"
        self.vm.wait_for(f"{said} | grep -qE '{words}'", seconds=seconds)

    def pull(self, image: str = ALLOWED_IMAGE) -> bool:
        """Tell whether the engine gets an image now; it asks the registry, whatever it has."""
        done = self.vm.run(f"docker pull --quiet {image}", seconds=PULL_SECONDS, check=False)
        if done.status not in (0, 1):
            raise VmError(f"docker pull {image}: {done.status}: {done.err}")
        return done.status == 0

    def pulls_at_last(self, seconds: float) -> None:
        """Wait until the engine gets what is allowed."""
        self.vm.wait_for(f"docker pull --quiet {ALLOWED_IMAGE}", seconds=seconds)
