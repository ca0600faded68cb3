"""Programs of the lab as seen from outside: their pid, their end, their log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ramnet.errors import LabError

START_SECONDS = 10.0  # a program starts in 50 ms; a machine under load gets its time
STOP_SECONDS = 10.0  # the kernel kills a whole PID namespace in milliseconds
POLL_SECONDS = 0.005
ERROR_TAIL = 2000  # characters of a failed program's output that an error quotes


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, hint: str = "") -> None:
    """Poll a condition; LabError when it does not hold within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds:g} s", hint=hint)
        time.sleep(POLL_SECONDS)


def child_of(parent: int) -> int | None:
    """Return the pid of the first child of a process, or None."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _stat(int(entry.name))[1:] == (parent,):
            return int(entry.name)
    return None


def _stat(pid: int) -> tuple[str, int] | tuple[()]:
    """Return the state letter and the parent of a process, see proc(5); empty when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    # The command may hold spaces and parentheses: what follows the last one is sure.
    state, parent, *_ = stat.rpartition(")")[2].split()
    return state, int(parent)


def _command(pid: int) -> bytes:
    """Return the argv of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _wake(nsenter: int) -> None:
    """Let nsenter go on when its program does: it stops itself when the program is stopped."""
    if _stat(nsenter)[:1] != ("T",):
        return
    child = child_of(nsenter)
    if child is None or _stat(child)[:1] != ("T",):
        with contextlib.suppress(ProcessLookupError):
            os.kill(nsenter, signal.SIGCONT)


def let_go(waiting: subprocess.Popen[bytes]) -> None:
    """Make a process that reads its input come to an end.

    A byte as well as the end of the input: a forked child of ours may still hold the pipe open.
    """
    if waiting.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            waiting.stdin.write(b".")
            waiting.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            waiting.stdin.close()


def kill_inside(nsenter: subprocess.Popen[str]) -> None:
    """SIGKILL the program that ``nsenter`` runs, then the rest of its process group.

    nsenter itself has to live until it has reaped the program: an orphan whose parent was outside
    goes to the machine's PID 1 instead of the sandbox's, and the PID namespace cannot end before
    that one has taken notice, which takes seconds with some.
    """
    child = child_of(nsenter.pid) if nsenter.poll() is None else None
    if child is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.kill(nsenter.pid, signal.SIGCONT)  # stopped, if the program was
        with contextlib.suppress(subprocess.TimeoutExpired):
            nsenter.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(nsenter.pid, signal.SIGKILL)


class Process:
    """A program that runs inside a sandbox.

    ``nsenter`` forks to enter a PID namespace and stays outside as the parent; it ends with the
    program's own status. ``pid`` is the program's, as the machine counts.
    """

    def __init__(self, popen: subprocess.Popen[str], name: str, log: Path | None) -> None:
        self._popen = popen
        self._pid: int | None = None
        self.name = name
        self.log = log

    @property
    def pid(self) -> int:
        """The host pid of the program itself; LabError once it has ended unseen."""
        if self._pid is None:
            found: list[int] = []

            def look() -> bool:
                child = child_of(self._popen.pid)
                # Between fork and exec the child is still a copy of nsenter.
                if child is not None and _command(child) not in (b"", _command(self._popen.pid)):
                    found.append(child)
                return bool(found) or self._popen.poll() is not None

            wait_until(look, START_SECONDS, f"{self.name}: process id")
            if not found:
                raise LabError(f"{self.name} ended with {self.returncode}", hint=self.tail())
            self._pid = found[0]
        return self._pid

    @property
    def returncode(self) -> int | None:
        """The exit status (negative: the signal), or None while it runs."""
        status = self._popen.poll()
        if status is None:
            _wake(self._popen.pid)
        return status

    @property
    def stdin(self) -> int:
        """The file descriptor that feeds the program; only with ``popen(..., feed=True)``."""
        if self._popen.stdin is None:
            raise LabError(f"{self.name} was started without an input")
        return self._popen.stdin.fileno()

    def close_stdin(self) -> None:
        """Tell the program that its input has ended."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program, and only to it; nothing when it has ended."""
        if self.returncode is not None:
            return
        try:
            os.kill(self.pid, number)
        except (LabError, ProcessLookupError):
            self.wait()  # it has ended between the question and the signal

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait for the end and return the status; LabError when it takes longer."""
        wait_until(lambda: self.returncode is not None, timeout, f"the end of {self.name}")
        return self._popen.wait()

    def stop(self, timeout: float = STOP_SECONDS) -> int:
        """Ask the program to end (SIGTERM), insist after ``timeout`` seconds; return its status."""
        self.close_stdin()
        self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except LabError:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL the program and whatever it left in its process group; return its status."""
        self.close_stdin()
        kill_inside(self._popen)
        return self.wait()

    def tail(self) -> str:
        """Return the end of the program's log."""
        if self.log is None or not self.log.exists():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-ERROR_TAIL:]

    def wait_for_line(self, text: str, seconds: float = START_SECONDS) -> None:
        """Wait until the log holds ``text``; LabError with the log when the program ends first."""
        log = self.log
        if log is None:
            raise LabError(f"{self.name} was started without a log")

        def seen() -> bool:
            ended = self.returncode is not None  # asked first: a last line is not missed
            if text in log.read_text(encoding="utf-8", errors="replace"):
                return True
            if ended:
                raise LabError(f"{self.name} ended with {self.returncode}", hint=self.tail())
            return False

        try:
            wait_until(seen, seconds, f"{self.name} did not say {text!r}")
        except LabError as err:
            raise LabError(err.message, hint=self.tail()) from err
