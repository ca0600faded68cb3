"""Images for virtual machines: a Debian release with systemd, Docker and a kernel.

They are made by mmdebstrap from the apt sources, options and keys that this machine is configured
for, and kept outside the checkout under a key of all that made them. The code under test is not in
them: it comes on a second disk. They have no network but that of the tests, so what an
installation of ramnet fetches is in them as well: the packages, and wheels with locked hashes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
# What it takes to fetch; whatever else a machine sets for apt is its own business. The lists of a
# mirror that was copied some time ago count as expired: what they name is signed all the same.
APT_OPTIONS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
ALWAYS = (
    'Acquire::Languages "none";',
    'Acquire::Check-Valid-Until "false";',
    'Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";',
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# A release by its own name or by the ones that move; backports and the like are not taken.
RELEASES = (
    *("bullseye", "bookworm", "trixie", "forky", "sid"),
    *("oldstable", "stable", "testing", "unstable"),
)
POCKETS = ("", "-updates", "-security")
# Unstable has no other, and those of an old release have moved or ended.
ONLY_MAIN_POCKET = ("bullseye", "sid")
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

RECIPE = 1  # to be counted up when what is made changes, and none of what the key is made of
DISK_MEGABYTES = 4096  # sparse
INODES = 131072
CODE_MEGABYTES = 64
BUILD_SECONDS = 420.0
KEEP_SECONDS = 86400.0  # an image that was not used for so long is not needed any more


class ImageError(Exception):
    """An image cannot be made on this machine."""


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


def cache_folder() -> Path:
    """Where bootstrap keeps its things: it may be deleted at any time."""
    return Path(os.environ.get("RAMNET_BOOTSTRAP_CACHE", "/var/cache/ramnet-bootstrap"), "vm")


class Builder:
    """Makes the image for one kernel, unless it is in the cache.

    ``machine_netns`` is a descriptor of the network namespace from which mirrors are reached: the
    tests themselves are in one without any network.
    """

    def __init__(self, kernel: Kernel, machine_netns: int) -> None:
        if os.uname().machine != "x86_64":
            raise ImageError("images are made for x86_64, by running their programs")
        self._kernel = kernel
        self._machine_netns = machine_netns
        self._lock = CHECKOUT / "requirements.lock"
        self._folder = cache_folder()

    def image(self) -> Image:
        """Return the image; it takes a minute or two when it has to be made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        name = self._kernel.name
        with _locked(self._folder / f"{name}.lock"):
            sources, options = self._sources(), self._options()
            ready = self._folder / f"{name}-{self._key(sources, options)}"
            for other in self._folder.glob(f"{name}-*"):
                if other != ready and other.stat().st_mtime < time.time() - KEEP_SECONDS:
                    shutil.rmtree(other)  # made by something else, or given up half way
            if not ready.exists():
                work = self._folder / f"{name}-making"
                shutil.rmtree(work, ignore_errors=True)
                try:
                    self._make(work, sources, options)
                    work.rename(ready)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
            os.utime(ready)
            return Image(self._kernel, ready)

    def _key(self, *parts: Sequence[str]) -> str:
        what = (parts, self._bootstrap(Path("/work")), PLATFORMS, DISK_MEGABYTES, INODES, RECIPE)
        # Wherever the checkout lies.
        seen = hashlib.sha256(repr(what).replace(str(ROOT), "").encode())
        files = sorted(file for file in ROOT.rglob("*") if file.is_file())
        for file in (self._lock, *files):
            seen.update(f"{file.name} {file.stat().st_mode:o}\n".encode() + file.read_bytes())
        return seen.hexdigest()[:16]

    def _sources(self) -> list[str]:
        """Return the machine's own apt sources, turned to the suites: lines of a sources.list."""
        targets = self._run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
                "Created-By: Packages",
            ]
        )
        lines = set()
        for uri, release, component in map(str.split, targets.splitlines()):
            name, dash, pocket = release.partition("-")
            if name not in RELEASES or component != "main" or "debian" not in uri:
                continue
            for suite in (self._kernel.suite, self._kernel.kernel_suite):
                pockets = ("",) if suite in ONLY_MAIN_POCKET else POCKETS
                if dash + pocket in pockets:
                    lines.add(f"deb {uri} {suite}{dash}{pocket} main")
        if not lines:
            raise ImageError("the apt sources of this machine have no Debian")
        return sorted(lines)

    def _options(self) -> list[str]:
        said = self._run(["apt-config", "dump"]).splitlines()
        return [*(line for line in said if line.startswith(APT_OPTIONS)), *ALWAYS]

    def _make(self, work: Path, sources: list[str], options: list[str]) -> None:
        work.mkdir()
        root, keys = work / "root", work / "keys"
        keys.mkdir()
        # Archive keys have moved from one place to the other in the course of time.
        for place in ("/etc/apt/trusted.gpg.d/*", "/usr/share/keyrings/*-archive-*"):
            for key in Path("/").glob(place.lstrip("/")):
                if key.suffix in {".gpg", ".asc"} and "removed" not in key.name:
                    shutil.copy(key, keys)
        (work / "apt.conf").write_text("\n".join(options) + "\n", encoding="utf-8")
        (work / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        self._run(self._bootstrap(work))
        made = Image(self._kernel, work)
        python = _only(root / "usr/bin", "python3.[0-9]*[0-9]").name.removeprefix("python")
        (work / "python").write_text(python, encoding="ascii")
        self._fetch_wheels(root / "opt/wheels", python)
        self._install_packages(root / "opt/site", root / "opt/wheels", python)
        for name, target in (("vmlinuz", made.vmlinuz), ("initrd.img", made.initrd)):
            shutil.copy(_only(root / "boot", f"{name}-*"), target)
        make_disk(root, made.disk, DISK_MEGABYTES, INODES)
        for folder in (root, keys):
            shutil.rmtree(folder)
        for name in ("apt.conf", "sources.list"):
            (work / name).unlink()

    def _bootstrap(self, work: Path) -> list[str]:
        """Return the command that makes the root file system in a folder."""
        root = work / "root"
        generators = '"$1"/etc/systemd/system-generators'
        without = " && ".join(
            f"ln -s /dev/null {generators}/systemd-{name}-generator" for name in GENERATORS
        )
        return [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
            *(f"--keyring={work / 'keys'}", f"--aptopt={work / 'apt.conf'}"),
            "--dpkgopt=force-unsafe-io",
            # Files of ours that a package has as well, such as those of initramfs-tools.
            "--dpkgopt=force-confold",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            f"--include={','.join(self._packages())}",
            f'--essential-hook=mkdir "$1"/mnt/code && cp -r {ROOT}/. "$1"',
            f'--customize-hook=cp -r {ROOT}/. "$1"',
            f'--customize-hook=chroot "$1" systemctl disable {" ".join(DISABLED)}',
            f'--customize-hook=chroot "$1" systemctl enable {" ".join(ENABLED)}',
            f'--customize-hook=chroot "$1" systemctl mask {" ".join(MASKED)}',
            f"--customize-hook=mkdir -p {generators} && {without}",
            # A mirror and the way to it are the machine's own: they are not kept.
            '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
            '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
            '--customize-hook=rm -f "$1"/etc/apt/sources.list',
            *(self._kernel.suite, str(root), str(work / "sources.list")),
        ]

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
        self._run(["chroot", str(root), "python3", "-m", "compileall", "-q", "/opt/site"])

    def _pip(self, command: str, python: str, *options: str) -> None:
        self._run(
            [
                *(sys.executable, "-m", "pip", command, "-q", "--no-input"),
                *("--disable-pip-version-check", "--no-deps", "--require-hashes"),
                *("--implementation=cp", f"--python-version={python}", "--only-binary=:all:"),
                *(f"--platform={platform}" for platform in PLATFORMS),
                *(*options, "-r", str(self._lock)),
            ]
        )

    def _run(self, argv: Sequence[str]) -> str:
        """Run a program where the machine's network is."""
        entered = ["nsenter", f"--net=/proc/self/fd/{self._machine_netns}", "--", *argv]
        return run(entered, pass_fds=(self._machine_netns,))


def run(argv: Sequence[str], pass_fds: Sequence[int] = ()) -> str:
    """Run a program; ``ImageError`` with the end of what it said when it fails or hangs."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_SECONDS,
            pass_fds=pass_fds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ImageError(f"{argv[0]}: {err}") from err
    if done.returncode:
        said = done.stderr.strip()[-2000:]
        raise ImageError(f"{' '.join(argv)}: status {done.returncode}: {said}")
    return done.stdout


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
        raise ImageError(f"{len(found)} files {pattern} in the image instead of one")
    return found[0]


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Let one process make images at a time."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
