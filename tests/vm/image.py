"""Images for virtual machines: a Debian release with its own kernel and the locked packages.

They are made by mmdebstrap from the apt sources, options and keys that this machine is configured
for, and kept outside the checkout under a key of all that made them. The code under test is not in
them: it comes on a second disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("guest")

# Each release with the Python that it has.
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
SUITE = os.environ.get("RAMNET_VM_SUITE", "bookworm")

PACKAGES = (
    *("iproute2", "kmod", "libnftables1", "linux-image-cloud-amd64", "nftables", "python3"),
    *("udev", "util-linux"),
)
# Wheels for any of these run on every glibc that a release in PYTHONS has.
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")
# What it takes to fetch; whatever else a machine sets for apt is its own business.
APT_OPTIONS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
ALWAYS = ('Acquire::Languages "none";', 'Dir::Etc::netrcparts "/etc/apt/auth.conf.d/";')
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# A release by its own name or by the ones that move; backports and the like are not taken.
RELEASES = ("bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")
POCKETS = ("", "-updates", "-security")

DISK_MEGABYTES = 1024  # sparse; three times what is in it
BUILD_SECONDS = 300.0


class ImageError(Exception):
    """An image cannot be made on this machine."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system, and what boots it; ``python`` is the version it has, as "3.11"."""

    disk: Path
    kernel: Path
    initrd: Path
    python: str

    @classmethod
    def of(cls, folder: Path, python: str) -> Image:
        return cls(folder / "disk.img", folder / "vmlinuz", folder / "initrd.img", python)


def cache_folder() -> Path:
    """Where bootstrap keeps its things: it may be deleted at any time."""
    return Path(os.environ.get("RAMNET_BOOTSTRAP_CACHE", "/var/cache/ramnet-bootstrap"), "vm")


class Builder:
    """Makes the image of one suite, unless it is in the cache.

    ``machine_netns`` is a descriptor of the network namespace from which mirrors are reached: the
    tests themselves are in one without any network.
    """

    def __init__(self, suite: str, machine_netns: int) -> None:
        if suite not in PYTHONS:
            raise ImageError(f"RAMNET_VM_SUITE is {suite!r}; known are {', '.join(PYTHONS)}")
        if os.uname().machine != "x86_64":
            raise ImageError("images are made for x86_64, by running their programs")
        self._suite = suite
        self._python = PYTHONS[suite]
        self._machine_netns = machine_netns
        self._lock = CHECKOUT / "requirements.lock"
        self._folder = cache_folder()

    def image(self) -> Image:
        """Return the image; it takes a minute when it has to be made."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / "lock"):
            sources, options = self._sources(), self._options()
            ready = self._folder / f"{self._suite}-{self._key(sources, options)}"
            if not ready.exists():
                for old in self._folder.glob(f"{self._suite}-*"):
                    shutil.rmtree(old)  # made by something else, or given up half way
                work = self._folder / f"{self._suite}-making"
                try:
                    self._make(work, sources, options)
                    work.rename(ready)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
            return Image.of(ready, self._python)

    def _key(self, *parts: Sequence[str]) -> str:
        seen = hashlib.sha256(repr((parts, os.uname().machine)).encode())
        for file in (Path(__file__), GUEST / "init", self._lock):
            seen.update(file.read_bytes())
        return seen.hexdigest()[:16]

    def _sources(self) -> list[str]:
        """Return the machine's own apt sources, turned to the suite, as lines of a sources.list."""
        targets = self._run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
                "Created-By: Packages",
            ]
        )
        lines = []
        for uri, release, component in map(str.split, targets.splitlines()):
            name, dash, pocket = release.partition("-")
            known = name in RELEASES and dash + pocket in POCKETS
            if known and component == "main" and "debian" in uri:
                lines.append(f"deb {uri} {self._suite}{dash}{pocket} main")
        if not lines:
            raise ImageError("the apt sources of this machine have no Debian")
        return sorted(set(lines))

    def _options(self) -> list[str]:
        said = self._run(["apt-config", "dump"]).splitlines()
        return [*ALWAYS, *(line for line in said if line.startswith(APT_OPTIONS))]

    def _make(self, work: Path, sources: list[str], options: list[str]) -> None:
        work.mkdir()
        packages, root = work / "packages", work / "root"
        self._install_packages(packages)
        # Archive keys have moved from one place to the other in the course of time.
        keys = work / "keys"
        keys.mkdir()
        for place in ("/etc/apt/trusted.gpg.d/*", "/usr/share/keyrings/*-archive-*"):
            for key in Path("/").glob(place.lstrip("/")):
                if key.suffix in {".gpg", ".asc"} and "removed" not in key.name:
                    shutil.copy(key, keys)
        (work / "apt.conf").write_text("\n".join(options) + "\n", encoding="utf-8")
        (work / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
        site = f"/usr/local/lib/python{self._python}/dist-packages"
        self._run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--keyring={keys}"),
                f"--aptopt={work / 'apt.conf'}",
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
                f"--include={','.join(PACKAGES)}",
                f'--customize-hook=mkdir -p "$1{site}"',
                f'--customize-hook=cp -r {packages}/. "$1{site}"',
                f'--customize-hook=chroot "$1" python3 -m compileall -q {site}',
                f'--customize-hook=install -m 755 {GUEST / "init"} "$1/sbin/ramnet-vm-init"',
                # A mirror and the way to it are the machine's own: they are not kept.
                '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
                '--customize-hook=rm -f "$1"/etc/apt/sources.list',
                *(self._suite, str(root), str(work / "sources.list")),
            ]
        )
        made = Image.of(work, self._python)
        for name, target in (("vmlinuz", made.kernel), ("initrd.img", made.initrd)):
            shutil.copy(_only(root / "boot", f"{name}-*"), target)
        make_disk(root, made.disk, DISK_MEGABYTES)
        for folder in (root, packages, keys):
            shutil.rmtree(folder)
        for name in ("apt.conf", "sources.list"):
            (work / name).unlink()

    def _install_packages(self, target: Path) -> None:
        """Install the locked packages for the Python of the image, which is not that of the tests.

        By the index and the options that this machine's pip is configured for.
        """
        self._run(
            [
                *(sys.executable, "-m", "pip", "install", "-q", "--no-input", "--no-compile"),
                *("--disable-pip-version-check", "--root-user-action=ignore", "--no-deps"),
                *("--implementation=cp", f"--python-version={self._python}"),
                *(f"--platform={platform}" for platform in PLATFORMS),
                *("--only-binary=:all:", "--require-hashes", f"--target={target}"),
                *("-r", str(self._lock)),
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


def make_disk(content: Path, disk: Path, megabytes: int) -> None:
    """Write a folder into a file system of its own, with its owners and modes."""
    run(["mkfs.ext4", "-q", "-m", "0", "-d", str(content), str(disk), f"{megabytes}M"])


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
