"""A daemon on one rung of the scope ladder, and what the kernel holds to refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ramnet.lab.capture import Capture
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from ramnet.lab.world import GHCR, HUB, QUAY
from tests.netns.support import status

# Rungs that tell engines from everyone else, and those that do not.
PRECISE = ("cgroup", "mark")
WEAK = ("uid", "netns")
DENY_SECONDS = 10.0  # the daemon's own look-ups take milliseconds

# Where the catalogued registries are that the policies of these tests do not list.
UNLISTED = (*QUAY, *GHCR, *HUB)


@dataclass(frozen=True, slots=True)
class Enforced:
    """A daemon on one rung, and the capture that runs for as long as it does."""

    rung: str
    daemon: Daemon
    capture: Capture

    def leaked(self) -> int:
        """Count the connections to the registries that are not listed."""
        return len(self.capture.to(UNLISTED, ports=[443]))


def config(lab: Lab, rung: str, more: str = "") -> str:
    """Return a ramnet.toml; ``more`` is appended, at first to the table ``scope``."""
    return f'[scope]\nmode = "{rung}"\ncgroups = ["{lab.engine_group}"]\n{more}'


@contextmanager
def enforcing(lab: Lab, rung: str, text: str, more: str = "") -> Iterator[Enforced]:
    """Run a daemon; its rules end with it."""
    daemon = lab.daemon(text, config=config(lab, rung, more))
    try:
        assert status(daemon)["scope"]["mode"] == rung
        with lab.capture() as capture:
            yield Enforced(rung, daemon, capture)
    finally:
        daemon.abandon()
        for family in ("inet", "netdev"):
            lab.client.run(["nft", "delete", "table", family, "ramnet"], check=False)


def denied(sandbox: Sandbox, address: str, port: int = 443) -> bool:
    """Tell whether the kernel holds an address and port as those of a registry to refuse."""
    kind = f"deny{6 if ':' in address else 4}"
    argv = ["nft", "get", "element", "inet", "ramnet", kind, f"{{ {address} . {port} }}"]
    return sandbox.run(argv, check=False).returncode == 0


def wait_denied(sandbox: Sandbox, *addresses: str) -> None:
    """Wait until the daemon has looked up the registries with these addresses."""
    wait_until(
        lambda: all(denied(sandbox, address) for address in addresses),
        DENY_SECONDS,
        "addresses to refuse",
    )


def wait_not_denied(sandbox: Sandbox, *addresses: str, seconds: float = DENY_SECONDS) -> None:
    """Wait until these addresses are no longer refused."""
    wait_until(
        lambda: not any(denied(sandbox, address) for address in addresses),
        seconds,
        "addresses that are free again",
    )
