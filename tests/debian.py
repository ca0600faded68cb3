"""Trees of Debian for tests: by the apt sources, options and keys of this machine, and cached.

The tests are in a network namespace without any way out: what fetches is run in the machine's own,
and sends nothing but what apt and pip send.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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

BUILD_SECONDS = 420.0
KEEP_SECONDS = 86400.0  # what was not used for so long is not needed any more


class DebianError(Exception):
    """A tree or an image cannot be made on this machine."""


def cache_folder(name: str) -> Path:
    """Where bootstrap keeps its things: it may be deleted at any time."""
    return Path(os.environ.get("RAMNET_BOOTSTRAP_CACHE", "/var/cache/ramnet-bootstrap"), name)


def run(argv: Sequence[str], pass_fds: Sequence[int] = ()) -> str:
    """Run a program; ``DebianError`` with the end of what it said when it fails or hangs.

    What is set for this Python is not for those of the tree: where they keep bytecode, above all.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_SECONDS,
            pass_fds=pass_fds,
            env=env,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise DebianError(f"{argv[0]}: {err}") from err
    if done.returncode:
        said = done.stderr.strip()[-2000:]
        raise DebianError(f"{' '.join(argv)}: status {done.returncode}: {said}")
    return done.stdout


class Mirror:
    """What this machine fetches Debian by.

    ``machine_netns`` is a descriptor of the network namespace from which mirrors are reached.
    """

    def __init__(self, machine_netns: int) -> None:
        self._machine_netns = machine_netns

    def run(self, argv: Sequence[str]) -> str:
        """Run a program where the machine's network is."""
        entered = ["nsenter", f"--net=/proc/self/fd/{self._machine_netns}", "--", *argv]
        return run(entered, pass_fds=(self._machine_netns,))

    def sources(self, suites: Iterable[str]) -> list[str]:
        """Return the machine's own apt sources, turned to the suites: lines of a sources.list."""
        targets = self.run(
            [
                *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
                "Created-By: Packages",
            ]
        )
        wanted, lines = tuple(suites), set()
        for uri, release, component in map(str.split, targets.splitlines()):
            name, dash, pocket = release.partition("-")
            if name not in RELEASES or component != "main" or "debian" not in uri:
                continue
            for suite in wanted:
                pockets = ("",) if suite in ONLY_MAIN_POCKET else POCKETS
                if dash + pocket in pockets:
                    lines.add(f"deb {uri} {suite}{dash}{pocket} main")
        if not lines:
            raise DebianError("the apt sources of this machine have no Debian")
        return sorted(lines)

    def options(self) -> list[str]:
        """Return the options of this machine's apt that it takes to fetch: lines of apt.conf."""
        said = self.run(["apt-config", "dump"]).splitlines()
        return [*(line for line in said if line.startswith(APT_OPTIONS)), *ALWAYS]


def write_apt(work: Path, sources: Iterable[str], options: Iterable[str]) -> None:
    """Write what ``mmdebstrap`` reads: the files keys/*, apt.conf and sources.list of a folder."""
    keys = work / "keys"
    keys.mkdir()
    # Archive keys have moved from one place to the other in the course of time.
    for place in ("/etc/apt/trusted.gpg.d/*", "/usr/share/keyrings/*-archive-*"):
        for key in Path("/").glob(place.lstrip("/")):
            if key.suffix in {".gpg", ".asc"} and "removed" not in key.name:
                shutil.copy(key, keys)
    (work / "apt.conf").write_text("\n".join(options) + "\n", encoding="utf-8")
    (work / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")


def mmdebstrap(work: Path, suite: str, packages: Iterable[str], hooks: Iterable[str]) -> list[str]:
    """Return the command that makes a root tree in the folder ``root`` of ``work``."""
    return [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
        *(f"--keyring={work / 'keys'}", f"--aptopt={work / 'apt.conf'}"),
        "--dpkgopt=force-unsafe-io",
        # Files of ours that a package has as well, such as those of initramfs-tools.
        "--dpkgopt=force-confold",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
        f"--include={','.join(packages)}",
        *hooks,
        # A mirror and the way to it are the machine's own: they are not kept.
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        '--customize-hook=rm -f "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap',
        '--customize-hook=rm -f "$1"/etc/apt/sources.list',
        *(suite, str(work / "root"), str(work / "sources.list")),
    ]


def remove_apt(work: Path) -> None:
    """Remove what ``write_apt`` wrote: it is the machine's own."""
    shutil.rmtree(work / "keys")
    for name in ("apt.conf", "sources.list"):
        (work / name).unlink()


def cached(folder: Path, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return what ``make`` makes in an empty folder, of which the key says all; locked meanwhile.

    What other keys have made is removed when it was not used for ``KEEP_SECONDS``.
    """
    ready = folder / f"{name}-{key}"
    for other in folder.glob(f"{name}-*"):
        if other != ready and other.stat().st_mtime < time.time() - KEEP_SECONDS:
            shutil.rmtree(other)  # made by something else, or given up half way
    if not ready.exists():
        work = folder / f"{name}-making"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            make(work)
            work.rename(ready)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    os.utime(ready)
    return ready


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time make what has this name."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
