"""Connection attempts at a steady rate, to be counted at the far end.

``python -m ramnet.lab.generator`` is the program that runs in the client; ``Generator`` starts and
stops it. Every attempt is a fresh non-blocking TCP connect that is given up after a time shorter
than the kernel's first retransmission (1 s, RFC 6298), so an attempt is one SYN.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ramnet.errors import LabError
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox

GIVE_UP_SECONDS = 0.4  # below the first retransmission; bounds the open sockets to rate * 0.4
REPORT_SECONDS = 0.2  # between two running counts
BURST_SECONDS = 0.1  # what is made up for after a pause; more would not be a steady rate
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, so that no port stays in TIME_WAIT

OUTCOMES = ("attempted", "connected", "refused", "timeout", "error")


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the attempts, in total or for one target."""

    attempted: int = 0
    connected: int = 0
    refused: int = 0
    timeout: int = 0
    error: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The counts so far; ``seconds`` is the time since the first attempt."""

    seconds: float
    total: Counts
    targets: dict[tuple[str, int], Counts]
    errors: dict[str, int]  # by the name of the errno

    @property
    def rate(self) -> float:
        """Attempts per second."""
        return self.total.attempted / self.seconds if self.seconds else 0.0


class Generator:
    """Attempts ``rate`` connects a second to the targets in turn, from inside a sandbox.

    ``targets`` are (address, port) pairs; ``cgroup`` is where it makes its sockets. As a context
    manager it starts on entry, unless it runs already, and stops on exit; ``report`` holds the
    final counts after ``stop``.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        log: Path,
        targets: Iterable[tuple[str, int]],
        *,
        rate: float = 250.0,
        cgroup: Path | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.cgroup = cgroup
        self.log = log
        self.targets = tuple(targets)
        self.rate = rate
        self._process: Process | None = None

    def __enter__(self) -> Self:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the program and return after its first attempts."""
        if not self.targets:
            raise LabError("a generator needs a target")
        argv = [sys.executable, "-m", __name__, "--rate", str(self.rate)]
        argv += [f"{port}@{address}" for address, port in self.targets]
        self._process = self.sandbox.popen(
            argv,
            log=self.log,
            feed=True,
            env={"PYTHONPATH": str(PYTHON_PATH)},
            cgroup=self.cgroup,
        )
        self._process.wait_for_line('"attempted"')

    def stop(self) -> Report:
        """End the program when its last attempts are decided, and return the final counts."""
        process, self._process = self._process, None
        if process is not None:
            process.close_stdin()
            try:
                status = process.wait()
            except LabError:
                process.kill()
                raise
            if status:
                raise LabError(f"the generator ended with {status}", hint=process.tail())
        return self.report

    def abandon(self) -> None:
        """End the program at once, whatever its counts."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    @property
    def report(self) -> Report:
        """The latest counts: at most 0.2 s old while it runs, exact after ``stop``."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.startswith('{"seconds"') and line.endswith("\n")]
        if not whole:
            raise LabError("the generator has not reported", hint="".join(lines))
        return parse_report(whole[-1])

    def wait_attempts(self, more: int, seconds: float = 10.0) -> None:
        """Return after ``more`` further attempts."""
        goal = self.report.total.attempted + more
        wait_until(lambda: self.report.total.attempted >= goal, seconds, f"{more} further attempts")


def parse_report(line: str) -> Report:
    """Read one line of the program's output."""
    data = json.loads(line)
    return Report(
        data["seconds"],
        Counts(**data["total"]),
        {(ip, port): Counts(**counts) for ip, port, counts in data["targets"]},
        data["errors"],
    )


class _Attempts:
    """The sockets in flight and what became of all others. ``now`` is monotonic seconds."""

    def __init__(self, targets: Sequence[tuple[str, int]]) -> None:
        self._targets = targets
        self._counts = {target: Counter[str]() for target in targets}
        self._errors: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._open: deque[tuple[float, socket.socket, tuple[str, int]]] = deque()
        self._made = 0

    @property
    def made(self) -> int:
        return self._made

    @property
    def in_flight(self) -> bool:
        return bool(self._selector.get_map())

    def attempt(self, now: float) -> None:
        target = self._targets[self._made % len(self._targets)]
        self._made += 1
        self._counts[target]["attempted"] += 1
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        code = sock.connect_ex(target)
        if code == errno.EINPROGRESS:
            self._selector.register(sock, selectors.EVENT_WRITE, target)
            self._open.append((now + GIVE_UP_SECONDS, sock, target))
        else:
            self._decided(sock, target, code)

    def settle(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for attempts to be decided, and count those."""
        for key, _ in self._selector.select(timeout):
            sock = key.fileobj
            if not isinstance(sock, socket.socket):
                continue
            self._selector.unregister(sock)
            self._decided(sock, key.data, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def give_up(self, now: float) -> None:
        """Close what has taken too long."""
        while self._open and self._open[0][0] <= now:
            _, sock, target = self._open.popleft()
            if sock.fileno() >= 0:
                self._selector.unregister(sock)
                self._counts[target]["timeout"] += 1
                sock.close()

    def _decided(self, sock: socket.socket, target: tuple[str, int], code: int) -> None:
        sock.close()
        if code == 0:
            self._counts[target]["connected"] += 1
        elif code == errno.ECONNREFUSED:
            self._counts[target]["refused"] += 1
        else:
            self._counts[target]["error"] += 1
            self._errors[errno.errorcode.get(code, str(code))] += 1

    def line(self, seconds: float) -> str:
        """Return the counts as one line of JSON."""
        total: Counter[str] = sum(self._counts.values(), Counter[str]())
        return json.dumps(
            {
                "seconds": round(seconds, 3),
                "total": {key: total[key] for key in OUTCOMES},
                "targets": [
                    [ip, port, {key: counts[key] for key in OUTCOMES}]
                    for (ip, port), counts in self._counts.items()
                ],
                "errors": dict(self._errors),
            }
        )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _input_ended() -> bool:
    try:
        return not os.read(0, 1)
    except BlockingIOError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Attempt connects until the input ends or SIGTERM arrives; the last line printed is final."""
    parser = argparse.ArgumentParser(prog="ramnet.lab.generator")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("targets", nargs="+", metavar="PORT@ADDRESS")
    given = parser.parse_args(argv)
    pairs = [target.partition("@") for target in given.targets]
    attempts = _Attempts([(address, int(port)) for port, _, address in pairs])
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: over.append(number))
    os.set_blocking(0, False)

    gap = 1.0 / given.rate
    begin = due = time.monotonic()
    report_at = begin
    while not over and not _input_ended():
        now = time.monotonic()
        due = max(due, now - BURST_SECONDS)
        while due <= now:
            attempts.attempt(now)
            due += gap
        attempts.settle(max(0.0, min(due - time.monotonic(), gap)))
        attempts.give_up(time.monotonic())
        if now >= report_at:
            _say(attempts.line(now - begin))
            report_at = now + REPORT_SECONDS
    end = time.monotonic()
    while attempts.in_flight:
        attempts.settle(0.01)
        attempts.give_up(time.monotonic())
    _say(attempts.line(end - begin))
    return 0


if __name__ == "__main__":
    sys.exit(main())
