"""What tests of the notice share: when it is given, and who gives it."""

from __future__ import annotations

import time
from pathlib import Path

from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox

NOTICE_SECONDS = 10.0  # the responder is another interpreter that has to start
# On a busy machine a sign of life may be late, and count again after it had run out: the last one
# is over when none was there for longer than one counts.
GONE_SECONDS = 1.5


def notice_alive(sandbox: Sandbox) -> bool:
    """Tell whether the kernel has a fresh sign of life of the responder."""
    argv = ["nft", "get", "element", "inet", "ramnet", "notice", "{ tcp }"]
    return sandbox.run(argv, check=False).returncode == 0


def wait_notice(sandbox: Sandbox, *, alive: bool = True, seconds: float = NOTICE_SECONDS) -> None:
    """Wait until refused connections are led to the responder, or are not any more."""
    if alive:
        wait_until(lambda: notice_alive(sandbox), seconds, "the notice")
        return
    last = time.monotonic()

    def is_gone() -> bool:
        nonlocal last
        if notice_alive(sandbox):
            last = time.monotonic()
        return time.monotonic() - last > GONE_SECONDS

    wait_until(is_gone, seconds, "the end of the notice")


def responder_of(daemon: Daemon) -> int | None:
    """Return the host pid of the responder that this daemon started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if int(stat.rpartition(")")[2].split()[1]) == daemon.pid and b"notice" in words:
                return int(entry.name)
    return None


def notice_port(sandbox: Sandbox) -> int:
    """Return the port to which the rules lead refused connections."""
    chain = sandbox.run(["nft", "list", "chain", "inet", "ramnet", "lead"]).stdout
    return int(chain.partition("redirect to :")[2].split()[0])
