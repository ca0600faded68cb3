"""A virtual machine: one process of qemu over an image that stays as it is."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import run
from tests.vm.agent import Agent, Done, Monitor, VmError
from tests.vm.image import Image

__all__ = ["BARE", "BOOT_SECONDS", "Done", "Nic", "Vm", "VmError"]

BOOT_SECONDS = 400.0  # 40 s on an idle machine; 200 were seen beside other tests
STOP_SECONDS = 120.0
MEMORY_MEGABYTES = 1024
# Without AVX: the C library would use it, and emulated it is slower than what it is to speed up.
CPU = "Nehalem,+rdrand"
CONSOLE_TAIL = 6000  # characters that a failure quotes
RETRY_SECONDS = 0.3

BARE = "/usr/sbin/ramnet-vm-init"  # the init of guests that want a kernel and nothing else

# What ends a machine cleanly, with systemd or with an init of a test's own.
_SHUT_DOWN = """
if [ -d /run/systemd/system ]; then exec systemctl poweroff --no-block; fi
sync
for key in s u o; do echo $key >/proc/sysrq-trigger; done
"""


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card: the tap that is its other end, and how to enter the namespace of that."""

    enter: Sequence[str]
    tap: str
    mac: str


class Vm:
    """A machine, switched off at first. Its disk is an overlay of ``base``, a disk or an overlay.

    Everything that it makes is in ``folder``, which exists; ``code`` is the disk with the checkout.
    ``init`` is what the kernel starts instead of systemd. The kernel refuses to load the modules of
    ``blacklist``, as if they had not been built. If the tests are killed, so is the machine.
    """

    def __init__(
        self,
        image: Image,
        folder: Path,
        code: Path,
        *,
        base: Path | None = None,
        nic: Nic | None = None,
        init: str | None = None,
        blacklist: Sequence[str] = (),
    ) -> None:
        self.image = image
        self.folder = folder
        self.disk = folder / "disk.qcow2"
        self._code = code
        self._nic = nic
        self._init = init
        self._blacklist = tuple(blacklist)
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: Agent | None = None
        self._monitor: Monitor | None = None
        below = base or image.disk
        form = "qcow2" if below.suffix == ".qcow2" else "raw"
        run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                str(below),
                "-F",
                form,
                str(self.disk),
            ]
        )

    @property
    def console(self) -> str:
        """What the kernel and systemd have said so far, of all boots."""
        file = self._console
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        return self._qemu is not None and self._qemu.poll() is None

    def power_on(self, *, seconds: float = BOOT_SECONDS, wait: bool = True) -> None:
        """Switch it on and, unless told otherwise, wait until its agent answers."""
        if self.running:
            raise VmError("the machine is running")
        self.power_off()
        with (self.folder / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )
        try:
            self._monitor = Monitor(self.folder / "qmp")
            self._agent = Agent(self.folder / "agent")
        except VmError as err:
            raise self._failed("qemu does not run", err) from err
        if wait:
            self.wait_agent(seconds)

    def wait_agent(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the agent of a machine that was switched on answers."""
        self._wait_boot(seconds, other=False)

    def power_off(self) -> None:
        """Pull the plug; nothing when it is off."""
        for end in (self._agent, self._monitor):
            if end is not None:
                end.close()
        self._agent = self._monitor = None
        qemu, self._qemu = self._qemu, None
        if qemu is not None:
            qemu.kill()
            qemu.wait()

    def reset(self, *, wait: bool = True) -> None:
        """Switch it off and on at once: what was not written to its disk is lost."""
        self._on()
        assert self._monitor is not None
        self._monitor.do("system_reset")
        if wait:
            self._wait_boot(BOOT_SECONDS, other=True)

    def wait_other_boot(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the agent of another boot than the last one answers."""
        self._wait_boot(seconds, other=True)

    def reboot(self) -> None:
        """Boot it anew, as its administrator does."""
        self.run("systemctl reboot --no-block")
        self._wait_boot(STOP_SECONDS + BOOT_SECONDS, other=True)

    def shut_down(self) -> Path:
        """Let it end cleanly, and return its disk: other machines may be based on it."""
        self.run(_SHUT_DOWN, check=False)
        assert self._qemu is not None
        try:
            self._qemu.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as err:
            raise self._failed(f"not shut down after {STOP_SECONDS:g} s") from err
        self.power_off()
        return self.disk

    def run(
        self,
        script: str,
        *,
        seconds: float = 60.0,
        check: bool = True,
        input: str = "",  # noqa: A002 - the name that subprocess.run uses
    ) -> Done:
        """Run a script by the shell of the guest, as root.

        ``VmError`` when the machine does not answer and, with ``check``, when the status is not 0;
        124 means that it was killed after ``seconds``.
        """
        self._on()
        assert self._agent is not None
        try:
            done = self._agent.run(script, input, seconds)
        except (VmError, OSError) as err:
            raise self._failed(script, err) from err
        if check and done.status:
            said = f"its output:\n{done.out}\nits errors:\n{done.err}"
            raise VmError(f"status {done.status} of: {script}\n{said}")
        return done

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the guest, and the folders that it lies in."""
        self.run(f"install -D -m {mode:o} /dev/stdin {shlex.quote(path)}", input=text)

    def get(self, path: str) -> str:
        """Read a file of the guest."""
        return self.run(f"cat {shlex.quote(path)}").out

    def wait_for(self, script: str, *, seconds: float) -> None:
        """Run a script again and again until its status is 0."""
        deadline = time.monotonic() + seconds
        while (done := self.run(script, check=False)).status:
            if time.monotonic() > deadline:
                raise VmError(f"not within {seconds:g} s: {script}\n{done.out}{done.err}")
            time.sleep(RETRY_SECONDS)

    def settle(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until systemd has nothing left to start: the boot is over, well or not."""
        wait = "systemctl is-system-running --wait"
        state = self.run(wait, seconds=seconds, check=False).out.strip()
        if state not in {"running", "degraded"}:
            raise self._failed(f"after {seconds:g} s the boot is still {state or 'under way'}")

    @property
    def _console(self) -> Path:
        return self.folder / "console.log"

    def _on(self) -> None:
        if not self.running or self._agent is None:
            raise self._failed("the machine is not running")

    def _wait_boot(self, seconds: float, *, other: bool) -> None:
        assert self._agent is not None
        try:
            if self._agent.wait(seconds, other=other):
                return
        except (VmError, OSError) as err:
            raise self._failed("no boot", err) from err
        raise self._failed(f"no agent after {seconds:g} s")

    def _failed(self, what: str, err: Exception | None = None) -> VmError:
        said = self.folder / "qemu.log"
        parts = [what, *([str(err)] if err else [])]
        with contextlib.suppress(OSError):
            parts.append(said.read_text(encoding="utf-8", errors="replace")[-CONSOLE_TAIL:])
        tail = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.console[-CONSOLE_TAIL:])
        return VmError("\n".join([*parts, "its console:", tail]))

    def _argv(self) -> list[str]:
        nic = self._nic
        argv = [
            *(nic.enter if nic else ()),
            *("setpriv", "--pdeathsig=KILL", "--", "qemu-system-x86_64", "-nodefaults"),
            *("-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"),
            *("-m", str(MEMORY_MEGABYTES), "-display", "none"),
            *("-chardev", "file,id=console,path=console.log,append=on"),
            *("-serial", "chardev:console", "-qmp", "unix:qmp,server=on,wait=off"),
            *("-kernel", str(self.image.vmlinuz), "-initrd", str(self.image.initrd)),
            *("-append", self._command_line()),
            *("-drive", f"file={self.disk},format=qcow2,if=virtio,cache=unsafe"),
            *("-drive", f"file={self._code},format=raw,if=virtio,readonly=on"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", "socket,id=agent,path=agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=ramnet.agent"),
        ]
        if nic:
            argv += ["-netdev", f"tap,id=wire,ifname={nic.tap},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev=wire,mac={nic.mac}"]
        return argv

    def _command_line(self) -> str:
        # Nothing untrusted runs in there: what guards against side channels only costs time.
        words = ["root=/dev/vda", "rw", "console=ttyS0", "loglevel=5", "mitigations=off"]
        # The program that loads what AppArmor is to enforce is not in the image.
        words += ["net.ifnames=0", "fsck.mode=skip", "apparmor=0"]
        # An emulated kernel may trip over code that it patches while another processor runs it.
        # During a boot that costs another boot; later, a test is told that it started anew.
        words.append("panic=-1")
        if self._init:
            words.append(f"init={self._init}")
        if self._blacklist:
            words.append(f"module_blacklist={','.join(self._blacklist)}")
        return " ".join(words)
