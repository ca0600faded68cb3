"""Removes what namespaces do not take with them: the lab's directory and its cgroups.

The janitor runs as a process of its own, started before anything else of a lab. It waits for its
input to end - which happens when the lab is taken down, and also when the process that made the lab
is killed - and cleans up then. It is run by path with the bare interpreter, so it imports nothing
but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PREFIX = "ramnet-lab-"
CLEAN_SECONDS = 15.0  # dying processes hold a cgroup until the kernel has reaped them
PATIENCE_SECONDS = 1.0  # the end of the sandboxes takes their programs along in milliseconds
RETRY_SECONDS = 0.01


def cgroups(name: str) -> list[Path]:
    """Return the lab's cgroup directory in every mounted hierarchy where it exists."""
    found = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, kind, *_ = line.split(" ")
        if kind in ("cgroup", "cgroup2") and Path(mount, name).is_dir():
            found.append(Path(mount, name))
    return found


def remove_cgroups(name: str) -> None:
    """Remove the lab's cgroups, innermost first; those still in use stay."""
    for top in cgroups(name):
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def processes(name: str) -> dict[int, str]:
    """Return pid and command of every process that was started for the lab."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if f"RAMNET_LAB={name}\0".encode() in environment + b"\0":
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def leftovers(directory: Path) -> list[str]:
    """Say what is left of a lab, by its directory; empty when it is all gone."""
    name = directory.name
    left = [f"process {pid} {command}" for pid, command in processes(name).items()]
    left += [f"cgroup {path}" for path in cgroups(name)]
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    left += [f"mount {line}" for line in mounts if name in line]
    if directory.exists():
        left.append(f"directory {directory}")
    return left


def clean(directory: Path) -> list[str]:
    """Remove all that is left of a lab; return what could not be removed in time."""
    begin = time.monotonic()
    while True:
        if time.monotonic() > begin + PATIENCE_SECONDS:
            # A stopped program stops its nsenter, which then never lets the namespace end.
            for pid in processes(directory.name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        remove_cgroups(directory.name)
        shutil.rmtree(directory, ignore_errors=True)
        left = leftovers(directory)
        if not left or time.monotonic() > begin + CLEAN_SECONDS:
            return left
        time.sleep(RETRY_SECONDS)


def main() -> int:
    """Wait for the end of the input, then clean up."""
    directory = Path(sys.argv[1])
    if not directory.name.startswith(PREFIX):
        sys.stderr.write(f"{directory} is not the directory of a lab\n")
        return 2
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the lab wants this to be done
    os.write(1, b"ready\n")
    os.read(0, 1)
    left = clean(directory)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write("\n".join(left))
        sys.stdout.flush()
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
