"""The Debian package, built by the programs of an image, but natively: emulated it takes long."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.debian import DebianError, run
from tests.vm.agent import Done
from tests.vm.image import Image, make_disk

CHECKOUT = "mnt/code"
GUEST = "tests/vm/guest"  # in the checkout; the agent is in it
# Where the packages are put in the userland; a later version is built from a copy of the sources.
OUT = "srv/packages"
NEWER = "9.9.9"
DISK_MEGABYTES = 512

# A network without anything, no process but its own, and of /dev only what does no harm.
_ENTER = r"""
mount --make-rprivate /
mount -t proc proc "$1/proc"
for device in null zero random urandom; do
    : >>"$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
"""
_AS_MACHINE = _ENTER + 'exec chroot "$1" /bin/sh -c "$2"'
# Not exec: that it is a chroot can be told by the root of the first process.
_AS_CHROOT = _ENTER + 'chroot "$1" /bin/sh -c "$2" || exit $?; exit 0'


@dataclass(frozen=True, slots=True)
class Userland:
    """The file system of an image, unpacked into a folder; it may be changed."""

    root: Path

    @classmethod
    def of(cls, image: Image, code: Path, root: Path) -> Userland:
        """Unpack an image, and the disk with the checkout to where machines have it."""
        root.mkdir()
        for disk, target in ((image.disk, root), (code, root / CHECKOUT)):
            run(["debugfs", "-R", f"rdump / {target}", str(disk)])
            if not any(target.iterdir()):  # its status says nothing
                raise DebianError(f"debugfs cannot read {disk}")
        return cls(root)

    def run(self, script: str, *, chroot: bool = False, check: bool = True) -> Done:
        """Run a script as root, in namespaces of its own.

        It is the root of a machine, though one without systemd, or with ``chroot`` merely a chroot.
        """
        argv = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
        argv += ["sh", "-euc", _AS_CHROOT if chroot else _AS_MACHINE, "sh", str(self.root), script]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
        }
        done = _run(argv, environment)
        if check and done.status:
            raise AssertionError(f"status {done.status} of: {script}\n{done.out}\n{done.err}")
        return done

    def build(self, checkout: str = CHECKOUT, *, out: str = OUT) -> Path:
        """Build the package as a person does, but uncompressed: an emulated machine reads it."""
        done = self.run(f"DPKG_DEB_COMPRESSOR_TYPE=none /{checkout}/bootstrap deb --output /{out}")
        return self.root / done.out.strip().lstrip("/")

    def build_newer(self) -> Path:
        """Build it from the same sources with a higher version."""
        copy = self.root / "mnt/newer"
        shutil.copytree(self.root / CHECKOUT, copy, dirs_exist_ok=True)
        module = copy / "ramnet/__init__.py"
        lines = module.read_text("utf-8").splitlines()
        changed = [
            f'__version__ = "{NEWER}"' if "__version__ =" in line else line for line in lines
        ]
        module.write_text("\n".join(changed) + "\n", "utf-8")
        return self.build("mnt/newer")

    def altered(self, package: Path, name: str, **scripts: str) -> Path:
        """Pack a package again, with other maintainer scripts and as the version 99."""
        tree, altered = self.root / "tmp/altered", self.root / OUT / f"{name}.deb"
        run(["dpkg-deb", "--raw-extract", str(package), str(tree)])
        try:
            control = tree / "DEBIAN/control"
            control.write_text(control.read_text("utf-8").replace("Version: ", "Version: 99+"))
            for script, text in scripts.items():
                (tree / "DEBIAN" / script).write_text(f"#!/bin/sh\n{text}\n")
            run(["dpkg-deb", "-Znone", "--build", str(tree), str(altered)])
        finally:
            shutil.rmtree(tree)
        return altered

    def disk(self, file: Path) -> Path:
        """Put them on a disk in the place of the checkout's: with the agent of machines."""
        shutil.copytree(self.root / CHECKOUT / GUEST, self.root / OUT / GUEST)
        make_disk(self.root / OUT, file, DISK_MEGABYTES)
        return file


def _run(argv: list[str], environment: dict[str, str]) -> Done:
    done = subprocess.run(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=400,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
