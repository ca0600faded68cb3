"""The near end of two sockets of qemu: the agent in the guest, and the monitor."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 10.0
GRACE_SECONDS = 30.0  # in which an emulated agent tells that a script took too long
MONITOR_SECONDS = 10.0


class VmError(Exception):
    """A machine or a script in it did not do what was asked; says what they said."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a script: its exit status (124 when it took too long), and its outputs."""

    status: int
    out: str
    err: str


class Lines:
    """JSON lines over a Unix socket."""

    def __init__(self, path: Path, seconds: float = CONNECT_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._sock.connect(str(path))
            except OSError as err:  # qemu makes it when it starts
                self._sock.close()
                if time.monotonic() > deadline:
                    raise VmError(f"no socket of qemu at {path}: {err}") from err
                time.sleep(0.02)
            else:
                break
        self._rest = b""

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message."""
        self._sock.settimeout(MONITOR_SECONDS)
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message; None when there is none in time. VmError at the end."""
        deadline = time.monotonic() + seconds
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # half a line of a boot that was cut short
                if isinstance(message, dict):
                    return message
            left = max(0.0, deadline - time.monotonic())
            self._sock.settimeout(left)  # with 0 it takes what is there
            try:
                chunk = self._sock.recv(65536)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as err:
                raise VmError(f"qemu has closed its socket: {err}") from err
            if not chunk:
                raise VmError("qemu has ended")
            self._rest += chunk


class Agent:
    """The agent of one boot after the other."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self._boot = ""
        self._requests = 0

    def close(self) -> None:
        """Hear no more of it."""
        self._lines.close()

    def wait(self, seconds: float, *, other: bool = False) -> bool:
        """Wait for its first word; with ``other`` for that of another boot than the last one."""
        deadline = time.monotonic() + seconds
        while other or not self._boot:
            message = self._lines.receive(deadline - time.monotonic())
            if message is None:
                return False
            if message.get("hello", self._boot) != self._boot:
                self._boot = message["hello"]
                break
        return True

    def run(self, script: str, given: str, seconds: float) -> Done:
        """Run a script in the guest."""
        while (message := self._lines.receive(0.0)) is not None:
            self._boot = message.get("hello", self._boot)  # booted anew since the last script
        self._requests += 1
        number = self._requests
        self._lines.send({"id": number, "script": script, "input": given, "seconds": seconds})
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        while True:
            message = self._lines.receive(deadline - time.monotonic())
            if message is None:
                raise VmError(f"the agent does not answer to: {script}")
            if "hello" in message:
                self._boot = message["hello"]
                raise VmError(f"the machine or its agent started anew during: {script}")
            if message.get("id") == number:
                return Done(message["status"], message["out"], message["err"])


class Monitor:
    """The machine protocol of qemu (QMP)."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        try:
            self._lines.receive(MONITOR_SECONDS)  # the greeting
            self.do("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()

    def do(self, command: str) -> None:
        """Execute a command without arguments."""
        self._lines.send({"execute": command})
        while True:
            message = self._lines.receive(MONITOR_SECONDS)
            if message is None:
                raise VmError(f"qemu does not answer to {command}")
            if "error" in message:
                raise VmError(f"qemu: {command}: {message['error']}")
            if "return" in message:
                return
