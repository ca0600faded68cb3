"""Distributions of WSL2: own mounts and processes, and one network namespace for all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ramnet.errors import ControlError, LabError
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox
from tests.netns.support import status

STATE_SECONDS = 15.0


class Distro(Sandbox):
    """Another distribution: everything is its own but the network, which is that of ``net``."""

    def __init__(self, name: str, directory: Path, net: Sandbox) -> None:
        super().__init__(name, directory)
        self._net = net

    def enter(self, *, user: int | None = None, cwd: str = "/") -> list[str]:
        shared = f"--net=/proc/{self._net.pid}/ns/net"
        argv = super().enter(user=user, cwd=cwd)
        return [shared if word == "--net" else word for word in argv]


class Standing(Daemon):
    """A daemon that stands by where another one enforces, as units and the boot hook start it."""

    def start(self, *, wait: bool = True) -> None:
        number = len(list(self._directory.glob("ramnet-*.log"))) + 1
        self._starts = number
        argv = [sys.executable, "-m", "ramnet", "run", "--standby"]
        argv += ["--policy", str(self.policy_file), "--config", str(self.config_file)]
        argv += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)]
        environment = {"PYTHONPATH": str(PYTHON_PATH)}
        self._process = self.sandbox.popen(argv, log=self._log_file(), env=environment)
        if wait:
            self.wait_state("enforcing")

    def wait_state(self, state: str, seconds: float = STATE_SECONDS) -> None:
        """Wait until it answers that it is in this state."""
        wait_until(lambda: self.state == state, seconds, f"state {state}")

    @property
    def state(self) -> str:
        """What it says of itself; empty while it does not answer."""
        try:
            return str(status(self)["state"])
        except (OSError, ControlError):
            if not self.running:
                raise LabError("the daemon has ended", hint=self.log) from None
            return ""


@contextmanager
def distro(lab: Lab, name: str, *resolvers: str) -> Iterator[Distro]:
    """Start another distribution beside the client of a lab."""
    directory = lab.directory / f"distro-{name}"
    directory.mkdir()
    made = Distro(name, directory, lab.client)
    with made:
        made.set_resolvers(*resolvers)
        yield made


@contextmanager
def standing(place: Sandbox, directory: Path, policy: str, config: str) -> Iterator[Standing]:
    """Make a daemon in a distribution; it is not started yet, and ends with the context."""
    directory.mkdir()
    daemon = Standing(place, directory, policy, config)
    try:
        yield daemon
    finally:
        daemon.abandon()
