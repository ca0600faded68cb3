"""Hosts behind a device of a scratch network namespace, and programs that run on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


@contextmanager
def beyond(network: str) -> Iterator[int]:
    """Make a network namespace behind a device of this one; yield a process that holds it."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; read _"], **PIPES) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        device = f"v{network.rpartition('.')[2]}"
        commands = (
            f"ip link add {device} type veth peer name out netns {holder.pid}",
            f"ip addr add {network}.1/24 dev {device}",
            f"ip link set {device} up",
            f"nsenter -t {holder.pid} -n ip addr add {network}.2/24 dev out",
            f"nsenter -t {holder.pid} -n ip link set out up",
            f"nsenter -t {holder.pid} -n ip route add default via {network}.1",
        )
        try:
            for command in commands:
                subprocess.run(command.split(), check=True)
            yield holder.pid
        finally:
            holder.kill()


def started_in(pid: int, code: str) -> subprocess.Popen[str]:
    """Start a Python program in the network namespace of a process."""
    argv = ["nsenter", "-t", str(pid), "-n", sys.executable, "-I", "-S", "-c", code]
    return subprocess.Popen(argv, **PIPES)
