"""Images for virtual machines: a Debian release with systemd, Docker and a kernel.

They are made by mmdebstrap from the apt sources, options and keys that this machine is configured
for, and kept outside the checkout under a key of all that made them. The code under test is not in
them: it comes on a second disk. They have no network but that of the tests, so what an
installation of ramnet fetches is in them as well: the packages, and wheels with locked hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import (
    DebianError,
    Mirror,
    cache_folder,
    cached,
    locked,
    mmdebstrap,
    remove_apt,
    run,
    write_apt,
)
from tests.vm.kernels import CHECKOUT, Kernel

GUEST = Path(__file__).with_name("guest")
ROOT = GUEST / "root"  # files of the image, as they lie in it

PACKAGES = (
    *("ca-certificates", "containerd", "dbus", "docker.io", "iproute2", "iptables", "kmod"),
    *("libnftables1", "nftables", "procps", "python3", "python3-venv", "systemd-sysv", "udev"),
    *("util-linux", "initramfs-tools"),
    # What the machines of vagrant/ are provisioned with.
    *("busybox-static", "curl", "dnsmasq", "docker-registry", "tcpdump"),
)
KERNEL_PACKAGE = "linux-image-cloud-amd64"
DOCKER_CLIENT = "docker-cli"  # a package of its own from Debian 13 on
WITHOUT_DOCKER_CLIENT = ("bookworm",)
# Wheels for any of these run on every glibc of these releases.
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")
# What a machine for a few minutes has no use for, and what is slow where it is emulated.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "logrotate.timer", "man-db.timer"),
    *("systemd-tmpfiles-clean.timer", "getty.target", "systemd-logind.service"),
    *("systemd-timesyncd.service", "systemd-update-utmp.service", "systemd-binfmt.service"),
    *("proc-sys-fs-binfmt_misc.automount", "systemd-random-seed.service"),
    *("systemd-pstore.service", "kmod-static-nodes.service", "systemd-network-generator.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount"),
    *(f"modprobe@{name}.service" for name in ("configfs", "dm_mod", "drm", "efi_pstore")),
    *(f"modprobe@{name}.service" for name in ("fuse", "loop")),
)
# Programs that look for what these machines have not, at each boot and at each daemon-reload.
GENERATORS = (
    *("cryptsetup", "debug", "getty", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local"),
    *("run", "ssh", "system-update", "sysv", "tpm2", "veritysetup"),
)
# Of these it is the programs that are wanted, if at all.
DISABLED = ("dnsmasq.service", "docker-registry.service")
ENABLED = ("systemd-networkd.service", "ramnet-vm-agent.service")

RECIPE = 2  # to be counted up when what is made changes, and none of what the key is made of
DISK_MEGABYTES = 4096  # sparse
INODES = 131072
CODE_MEGABYTES = 64


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system and what boots it. ``python`` is the version that it has, as "3.11"."""

    kernel: Kernel
    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, which no machine writes to: each has an overlay."""
        return self.folder / "disk.img"

    @property
    def vmlinuz(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk."""
        return self.folder / "initrd.img"

    @property
    def python(self) -> str:
        """The version of its Python."""
        return (self.folder / "python").read_text(encoding="ascii")


class Builder:
    """Makes the image for one kernel, unless it is in the cache.

    ``machine_netns`` is a descriptor of the network namespace from which mirrors are reached: the
    tests themselves are in one without any network.
    """

    def __init__(self, kernel: Kernel, machine_netns: int) -> None:
        if os.uname().machine != "x86_64":
            raise DebianError("images are made for x86_64, by running their programs")
        self._kernel = kernel
        self._mirror = Mirror(machine_netns)
        self._lock = CHECKOUT / "requirements.lock"

    def image(self) -> Image:
        """Return the image; it takes a minute or two when it has to be made."""
        folder, name = cache_folder("vm"), self._kernel.name
        with locked(folder, name):
            suites = (self._kernel.suite, self._kernel.kernel_suite)
            sources, options = self._mirror.sources(suites), self._mirror.options()
            key = self._key(sources, options)

            def make(work: Path) -> None:
                self._make(work, sources, options)

            return Image(self._kernel, cached(folder, name, key, make))

    def _key(self, *parts: Sequence[str]) -> str:
        what = (parts, self._bootstrap(Path("/work")), PLATFORMS, DISK_MEGABYTES, INODES, RECIPE)
        # Wherever the checkout lies.
        seen = hashlib.sha256(repr(what).replace(str(ROOT), "").encode())
        files = sorted(file for file in ROOT.rglob("*") if file.is_file())
        for file in (self._lock, *files):
            seen.update(f"{file.name} {file.stat().st_mode:o}\n".encode() + file.read_bytes())
        return seen.hexdigest()[:16]

    def _make(self, work: Path, sources: list[str], options: list[str]) -> None:
        root = work / "root"
        write_apt(work, sources, options)
        self._mirror.run(self._bootstrap(work))
        made = Image(self._kernel, work)
        python = _only(root / "usr/bin", "python3.[0-9]*[0-9]").name.removeprefix("python")
        (work / "python").write_text(python, encoding="ascii")
        self._fetch_wheels(root / "opt/wheels", python)
        self._install_packages(root / "opt/site", root / "opt/wheels", python)
        for name, target in (("vmlinuz", made.vmlinuz), ("initrd.img", made.initrd)):
            shutil.copy(_only(root / "boot", f"{name}-*"), target)
        make_disk(root, made.disk, DISK_MEGABYTES, INODES)
        shutil.rmtree(root)
        remove_apt(work)

    def _bootstrap(self, work: Path) -> list[str]:
        """Return the command that makes the root file system in a folder."""
        generators = '"$1"/etc/systemd/system-generators'
        without = " && ".join(
            f"ln -s /dev/null {generators}/systemd-{name}-generator" for name in GENERATORS
        )
        hooks = (
            f'--essential-hook=mkdir "$1"/mnt/code && cp -r {ROOT}/. "$1"',
            f'--customize-hook=cp -r {ROOT}/. "$1"',
            f'--customize-hook=chroot "$1" systemctl disable {" ".join(DISABLED)}',
            f'--customize-hook=chroot "$1" systemctl enable {" ".join(ENABLED)}',
            f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)}',
            f"--customize-hook=mkdir -p {generators} && {without}",
        )
        return mmdebstrap(work, self._kernel.suite, self._packages(), hooks)

    def _packages(self) -> list[str]:
        kernel, suite = self._kernel, self._kernel.suite
        packages = [*PACKAGES]
        if suite not in WITHOUT_DOCKER_CLIENT:
            packages.append(DOCKER_CLIENT)
        other = kernel.kernel_suite != suite
        packages.append(f"{KERNEL_PACKAGE}/{kernel.kernel_suite}" if other else KERNEL_PACKAGE)
        return packages

    def _fetch_wheels(self, target: Path, python: str) -> None:
        """Fetch the locked packages for the Python of the image, which is not that of the tests.

        By the index and the options that this machine's pip is configured for.
        """
        self._pip("download", python, f"--dest={target}")

    def _install_packages(self, target: Path, wheels: Path, python: str) -> None:
        """Unpack them for the guests that run the code as it lies on the disk."""
        self._pip(
            *("install", python, f"--target={target}", "--no-index", f"--find-links={wheels}"),
            *("--root-user-action=ignore", "--no-compile"),
        )
        # By the Python that will read it; what it compiles is named by its version.
        root = target.parents[1]
        self._mirror.run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/opt/site"])

    def _pip(self, command: str, python: str, *options: str) -> None:
        self._mirror.run(
            [
                *(sys.executable, "-m", "pip", command, "-q", "--no-input"),
                *("--disable-pip-version-check", "--no-deps", "--require-hashes"),
                *("--implementation=cp", f"--python-version={python}", "--only-binary=:all:"),
                *(f"--platform={platform}" for platform in PLATFORMS),
                *(*options, "-r", str(self._lock)),
            ]
        )


def make_disk(content: Path, disk: Path, megabytes: int, inodes: int | None = None) -> None:
    """Write a folder into a file system of its own, with its owners and modes."""
    # What is put off at making would be done by the kernel of the guest, while tests run.
    options = ["-E", "lazy_itable_init=0,nodiscard", *(["-N", str(inodes)] if inodes else [])]
    argv = ["mkfs.ext4", "-q", "-m", "0", *options]
    run([*argv, "-d", str(content), str(disk), f"{megabytes}M"])


def make_code_disk(work: Path) -> Path:
    """Put the checkout on a disk."""
    content, disk = work / "code", work / "code.img"
    for name in _checkout_files():
        file, target = CHECKOUT / name, content / name
        if file.is_file():  # not deleted without that being committed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    run(["chown", "-R", "0:0", str(content)])
    make_disk(content, disk, CODE_MEGABYTES)
    shutil.rmtree(content)
    return disk


def _checkout_files() -> list[str]:
    """Name what is tracked, and what would be if it were added."""
    if not (CHECKOUT / ".git").exists():  # a copy of the sources without their history
        files = (file.relative_to(CHECKOUT) for file in CHECKOUT.rglob("*") if file.is_file())
        return [str(file) for file in files if "__pycache__" not in file.parts]
    # The checkout may belong to somebody else than root, who runs this.
    git = ["git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    listing = run([*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    return [name for name in listing.split("\0") if name]


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise DebianError(f"{len(found)} files {pattern} in the image instead of one")
    return found[0]
