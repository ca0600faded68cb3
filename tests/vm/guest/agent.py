"""Runs scripts for the tests, in the guest: JSON lines over a port of virtio-serial.

One request at a time: ``{"id", "script", "seconds", "input"}``, answered by ``{"id", "status",
"out", "err"}``. The first line after a start is ``{"hello": BOOT-ID}``. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PORTS = Path("/sys/class/virtio-ports")
NAME = "ramnet.agent"
RETRY_SECONDS = 0.05
OVERTIME = 124  # the status of a script that took too long, as timeout(1) has it
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a script by the shell and return what it said.

    Its output goes to files: a pipe would be held open by whatever it leaves running.
    """
    with (
        tempfile.TemporaryFile(dir="/run") as said,
        tempfile.TemporaryFile(dir="/run") as told,
        tempfile.TemporaryFile(dir="/run") as given,
    ):
        given.write(request["input"].encode())
        given.seek(0)
        process = subprocess.Popen(
            ["/bin/sh", "-c", request["script"]],
            stdin=given,
            stdout=said,
            stderr=told,
            cwd="/",
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        try:
            status = process.wait(request["seconds"])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = OVERTIME
        out, err = (
            file.read().decode(errors="replace") for file in (_rewound(said), _rewound(told))
        )
    return {"id": request["id"], "status": status, "out": out, "err": err}


def _rewound(file: Any) -> Any:
    file.seek(0)
    return file


def lines(port: int) -> Iterator[bytes]:
    """Yield what the tests send, line by line."""
    rest = b""
    while True:
        chunk = os.read(port, 65536)
        if not chunk:  # nobody is connected
            time.sleep(RETRY_SECONDS)
            continue
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def find_port() -> Path:
    """Return the port, once it is there. Its link in /dev is made by udev, which starts later."""
    while True:
        for port in PORTS.glob("*"):
            if (port / "name").read_text(encoding="ascii").strip() == NAME:
                return Path("/dev", port.name)
        time.sleep(RETRY_SECONDS)


def send(port: int, message: dict[str, Any]) -> None:
    """Send a line. It begins with the end of one that an earlier boot may have left half sent."""
    data = b"\n" + json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(port, data) :]


def main() -> None:
    """Serve until the machine ends."""
    port = os.open(find_port(), os.O_RDWR)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    send(port, {"hello": boot})
    for line in lines(port):
        with contextlib.suppress(ValueError):  # half a line, from before a reset
            send(port, run(json.loads(line)))


if __name__ == "__main__":
    main()
