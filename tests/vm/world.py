"""The lab with a virtual machine in the place of its client.

The client's end of the wire is bridged to a tap: what the machine sends is what the capture at the
far side judges, from the moment that it is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ramnet.lab.capture import Capture
from ramnet.lab.dns import Record
from ramnet.lab.lab import Lab
from ramnet.lab.programs import require
from ramnet.lab.topology import CLIENT_V4, CLIENT_V6, UPLINK
from tests.vm.image import Image
from tests.vm.vm import Nic, Vm

MAC = "52:54:00:00:02:02"
BRIDGE, TAP = "wire", "tap0"
# Where every release that has an image keeps the certificates that programs trust.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


class VmWorld:
    """A lab for one machine at a time; a context manager that takes everything down again.

    ``image`` is that of machines for which no other disk is named, ``code`` the disk with the
    checkout. ``records`` and the rest are as for ``Lab``.
    """

    def __init__(
        self,
        image: Image,
        code: Path,
        *,
        records: Mapping[str, Record] | None = None,
        ttl: int = 60,
    ) -> None:
        self.image = image
        self.lab = Lab(records=records, ttl=ttl)
        self._code = code
        self._machines: list[Vm] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.lab)
            self._bridge()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def capture(self, *, everything: bool = False) -> Capture:
        """Start a capture at the far side; see ``Lab.capture``."""
        return self.lab.capture(everything=everything)

    def machine(
        self,
        base: Image | Path | None = None,
        *,
        init: str | None = None,
        blacklist: Sequence[str] = (),
    ) -> Vm:
        """Make a machine over the image or over the disk of one that was shut down.

        It is switched off, and ends with the world; so do now those that were made before: there
        is one wire.
        """
        for other in self._machines:
            other.power_off()
        folder = self.lab.directory / f"vm{len(self._machines)}"
        folder.mkdir()
        image = base if isinstance(base, Image) else self.image
        vm = Vm(
            image,
            folder,
            self._code,
            base=base if isinstance(base, Path) else None,
            nic=Nic(self._enter(), TAP, MAC),
            init=init,
            blacklist=blacklist,
        )
        self._stack.callback(vm.power_off)
        self._machines.append(vm)
        return vm

    def trust(self, vm: Vm) -> None:
        """Make a machine trust the lab's authority. Go programs look once, at their first use."""
        vm.run(f"cat >>{CERTIFICATES}", input=self.lab.pki.ca.read_text(encoding="ascii"))

    def _enter(self) -> list[str]:
        # Only the network: qemu is to see the machine's files.
        return [require("nsenter"), f"--net=/proc/{self.lab.client.pid}/ns/net", "--"]

    def _bridge(self) -> None:
        # The sandbox has no address left and says nothing of its own accord.
        quiet = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6"
        self.lab.client.run(["/bin/sh", "-c", quiet])
        commands = (
            f"address flush dev {UPLINK}",
            f"link add {BRIDGE} type bridge",
            f"link set {UPLINK} master {BRIDGE}",
            f"tuntap add {TAP} mode tap",
            f"link set {TAP} master {BRIDGE}",
            f"link set {TAP} up",
            f"link set {BRIDGE} up",
        )
        self.lab.client.run([require("ip"), "-batch", "-"], input="\n".join(commands))
        # The capture sends markers to the machine, also while it is off and answers to no ARP.
        known = [
            f"neighbour replace {address} lladdr {MAC} nud permanent dev {UPLINK}"
            for address in (CLIENT_V4, CLIENT_V6)
        ]
        self.lab.world.run([require("ip"), "-batch", "-"], input="\n".join(known))
