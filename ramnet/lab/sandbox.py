"""A machine made of namespaces: own network, mounts and processes, none of them named.

PID 1 of a sandbox is a tiny holder that reads a pipe. When the pipe closes - because the lab was
taken down or because its process was killed - the holder ends, and the kernel kills every other
process of that PID namespace (pid_namespaces(7)); interfaces, mounts and rules go with the
namespaces. Programs enter by ``nsenter``: ``ip netns exec`` remounts /sys, which hides the cgroup
mounts from dockerd.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ramnet.errors import LabError
from ramnet.lab.process import (
    ERROR_TAIL,
    START_SECONDS,
    STOP_SECONDS,
    Process,
    child_of,
    kill_inside,
    let_go,
    wait_until,
)
from ramnet.lab.programs import SEARCH_PATH, require

# Orphans of the PID namespace come to PID 1; with SIGCHLD ignored the kernel reaps them.
_HOLDER = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.write(1, b"ready")
os.read(0, 1)
"""

# /etc is an overlay and not a bind mount of single files: a bind-mounted file cannot be replaced
# by rename (EBUSY), which is what resolvconf, NetworkManager and editors do. /run is empty, so no
# program finds the machine's sockets, locks or pid files there.
_SETUP = """
set -e
mount -t tmpfs -o mode=755 ramnet-lab /run
mkdir -p /run/lock /run/.etc/upper /run/.etc/work
cp -r "$1/." /run/.etc/upper/
mount -t overlay -o lowerdir=/etc,upperdir=/run/.etc/upper,workdir=/run/.etc/work ramnet-lab /etc
ip link set lo up
shift
exec "$@"
"""

HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"


def joining(cgroup: Path) -> list[str]:
    """Return the argv prefix that joins a cgroup and then executes the program."""
    join = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'
    return ["/bin/sh", "-c", join, "join", str(cgroup)]


class Sandbox:
    """One machine of the lab. Use as a context manager, or call ``close``.

    ``directory`` is an existing directory of the lab for logs; ``environment`` is added to that of
    every program. Nothing of the caller's own environment reaches a program.
    """

    def __init__(
        self, name: str, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.directory = directory
        self.environment = {
            "PATH": SEARCH_PATH,
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            **(environment or {}),
        }
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._programs: list[Process] = []

    @property
    def pid(self) -> int:
        """The host pid of the holder, which is PID 1 inside."""
        if not self._pid:
            raise LabError(f"the sandbox {self.name} is not running")
        return self._pid

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the holder without waiting for it, so that several sandboxes start side by side."""
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: it needs root", hint="use sudo")
        etc = self.directory / "etc"
        etc.mkdir()
        (etc / "hosts").write_text(HOSTS, encoding="utf-8")
        (etc / "nsswitch.conf").write_text(NSSWITCH, encoding="utf-8")
        (etc / "resolv.conf").write_text("", encoding="utf-8")
        # --kill-child covers the death of unshare itself; the pipe covers that of this process.
        unshare = [require("unshare"), "--fork", "--kill-child=KILL", "--net", "--mount", "--pid"]
        unshare += ["--mount-proc", "--propagation", "private", "--"]
        shell = ["/bin/sh", "-c", _SETUP, "sandbox", str(etc)]
        holder = [sys.executable, "-I", "-S", "-c", _HOLDER]
        with (self.directory / "holder.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                unshare + shell + holder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until the namespaces are there and programs can be run."""
        unshare, log = self._unshare, self.directory / "holder.log"
        if unshare is None:
            raise LabError(f"the sandbox {self.name} was not started")

        def ready() -> bool:
            said = log.read_text(encoding="utf-8", errors="replace")
            if said.endswith("ready"):
                return True
            if unshare.poll() is not None:
                raise LabError(
                    f"the namespaces of sandbox {self.name} could not be made: {said.strip()}",
                    hint="the lab needs root, network, mount and PID namespaces and overlayfs",
                )
            return False

        wait_until(ready, START_SECONDS, f"sandbox {self.name}")
        child = child_of(unshare.pid)
        if child is None:
            raise LabError(f"the holder of sandbox {self.name} ended at once")
        self._pid = child

    def close(self) -> None:
        """End every process of the sandbox and wait until the kernel has taken it all down."""
        unshare, self._unshare, self._pid = self._unshare, None, 0
        if unshare is None:
            return
        # The namespace would take them along, but for one that is stopped: see kill_inside.
        for process in self._programs:
            process.kill()
        self._programs.clear()
        let_go(unshare)
        try:
            unshare.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            unshare.kill()
            unshare.wait()

    def path(self, inside: str) -> Path:
        """Return where an absolute path of the sandbox is found from outside.

        An absolute symbolic link in it would be followed outside; the files that the lab puts
        into /etc are plain.
        """
        return Path(f"/proc/{self.pid}/root{inside}")

    def write(self, inside: str, text: str, *, rename: bool = False) -> None:
        """Write a file of the sandbox: in place, or beside it and then renamed over it."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not rename:
            target.write_text(text, encoding="utf-8")
            return
        beside = target.with_name(target.name + ".new")
        beside.write_text(text, encoding="utf-8")
        beside.rename(target)

    def set_resolvers(self, *addresses: str, rename: bool = False) -> None:
        """Write /etc/resolv.conf. A lost query is asked again after 1 s, not after 5."""
        lines = [f"nameserver {address}\n" for address in addresses]
        text = "".join(lines) + "options timeout:1 attempts:3\n"
        self.write("/etc/resolv.conf", text, rename=rename)

    def enter(self, *, user: int | None = None, cwd: str = "/") -> list[str]:
        """Return the argv prefix that runs a program inside; ``user`` is a uid, gid the same."""
        argv = [require("nsenter"), f"--target={self.pid}", "--net", "--mount", "--pid"]
        argv.append(f"--wdns={cwd}")
        if user is not None:
            argv += [f"--setuid={user}", f"--setgid={user}"]
        return [*argv, "--"]

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - the name that subprocess.run uses
        user: int | None = None,
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and return its output.

        LabError when it is missing, takes longer than ``timeout`` seconds (it is then killed with
        its process group) or, with ``check``, ends with a status other than 0.
        """
        popen = subprocess.Popen(
            [*self.enter(user=user, cwd=cwd), *argv],
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={**self.environment, **(env or {})},
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        with popen:
            try:
                out, err = popen.communicate(input, timeout)
            except BaseException as error:
                kill_inside(popen)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LabError(
                        f"{' '.join(argv)}: still running after {timeout:g} s in {self.name}"
                    ) from error
                raise
        if check and popen.returncode:
            said = (err.strip() or out.strip())[-ERROR_TAIL:]
            raise LabError(f"{' '.join(argv)}: status {popen.returncode} in {self.name}: {said}")
        return subprocess.CompletedProcess(list(argv), popen.returncode, out, err)

    def popen(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        feed: bool = False,
        user: int | None = None,
        cwd: str = "/",
        cgroup: Path | None = None,
    ) -> Process:
        """Start a program inside; its output and errors are appended to ``log``.

        ``feed`` gives it a pipe as input. ``cgroup`` is a directory of a cgroup mount that the
        program joins before it is executed, so that all its sockets are made there.
        """
        name = Path(argv[0]).name
        if cgroup is not None:
            argv = [*joining(cgroup), *argv]
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [*self.enter(user=user, cwd=cwd), *argv],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                env={**self.environment, **(env or {})},
                start_new_session=True,
                text=True,
            )
        process = Process(popen, name, log)
        self._programs = [one for one in self._programs if one.returncode is None]
        self._programs.append(process)
        return process
