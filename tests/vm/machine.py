"""A virtual machine that runs one case of the guest and ends."""

from __future__ import annotations

import compileall
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.image import CHECKOUT, GUEST, Image, make_disk

CODE_MEGABYTES = 16
MEMORY_MEGABYTES = 1024
# Without AVX: the C library would use it, and emulated it is slower than what it is to speed up.
CPU = "Nehalem"
CONSOLE_TAIL = 6000  # characters that a failure quotes


class MachineError(Exception):
    """A machine or its guest did not come to the end; the message has the end of the console."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Boots an image in software emulation. Files go to ``folder``; the image stays as it is."""

    image: Image
    folder: Path

    def run(self, case: str, *, seconds: float, blacklist: tuple[str, ...] = ()) -> dict[str, Any]:
        """Boot, run a case of the guest and return what it found.

        The kernel refuses to load the modules of ``blacklist``, as if they had not been built. A
        machine that takes longer than ``seconds`` is killed, and so it is if the tests are.
        """
        work = self.folder / case
        work.mkdir()
        console, found = work / "console.log", work / "found.json"
        argv = [
            *("setpriv", "--pdeathsig=KILL", "--", "qemu-system-x86_64", "-nodefaults"),
            *("-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2"),
            *("-m", str(MEMORY_MEGABYTES), "-display", "none", "-no-reboot"),
            *("-serial", f"file:{console}", "-serial", f"file:{found}"),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd)),
            *("-append", _command_line(case, blacklist)),
            *("-drive", f"file={self.image.disk},format=raw,if=virtio,snapshot=on"),
            *("-drive", f"file={self._code(work)},format=raw,if=virtio,readonly=on"),
        ]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, cwd=work) as qemu:
            try:
                status = qemu.wait(seconds)
            except BaseException as err:
                qemu.kill()
                if isinstance(err, subprocess.TimeoutExpired):
                    raise MachineError(f"after {seconds:g} s still at:\n{_tail(console)}") from err
                raise
        if status:
            raise MachineError(f"qemu ended with status {status}:\n{_tail(console)}")
        try:
            said: dict[str, Any] = json.loads(found.read_bytes())
        except (OSError, ValueError) as err:
            raise MachineError(f"the guest told nothing:\n{_tail(console)}") from err
        if "failure" in said:
            raise MachineError(f"{said['failure']}\nits console:\n{_tail(console)}")
        return said

    def _code(self, work: Path) -> Path:
        """Put the code under test on a disk, compiled where the Python of the tests can do that."""
        content, disk = work / "code", work / "code.img"
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "ramnet", content / "ramnet", ignore=ignore)
        shutil.copytree(GUEST, content / GUEST.relative_to(CHECKOUT), ignore=ignore)
        if self.image.python == f"{sys.version_info.major}.{sys.version_info.minor}":
            compileall.compile_dir(content, stripdir=str(content), prependdir="/mnt/code", quiet=1)
        make_disk(content, disk, CODE_MEGABYTES)
        return disk


def _command_line(case: str, blacklist: tuple[str, ...]) -> str:
    # Nothing untrusted runs in there: what guards against side channels only costs time.
    words = ["root=/dev/vda", "rw", "console=ttyS0", "panic=-1", "loglevel=5", "mitigations=off"]
    words += ["init=/sbin/ramnet-vm-init", f"RAMNET_CASE={case}"]
    if blacklist:
        words.append(f"module_blacklist={','.join(blacklist)}")
    return " ".join(words)


def _tail(console: Path) -> str:
    if not console.exists():
        return "(no console)"
    return console.read_text(encoding="utf-8", errors="replace")[-CONSOLE_TAIL:]
