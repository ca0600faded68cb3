"""The daemon under test: ``python -m ramnet run`` in the client, and its command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ramnet.errors import LabError
from ramnet.lab.process import Process
from ramnet.lab.programs import PYTHON_PATH
from ramnet.lab.sandbox import Sandbox

READY = "ramnet: ready: state="
READY_SECONDS = 15.0
STOP_SECONDS = 10.0


class Daemon:
    """One ramnet daemon with files of its own.

    ``policy`` and ``config`` are the texts of policy.toml and ramnet.toml; None writes no file.
    Runtime and state directory stay across ``stop``, ``kill`` and another ``start``.
    """

    def __init__(
        self, sandbox: Sandbox, directory: Path, policy: str | None, config: str | None
    ) -> None:
        self.sandbox = sandbox
        self.policy_file = directory / "policy.toml"
        self.config_file = directory / "ramnet.toml"
        self.runtime_dir = directory / "run"
        self.state_dir = directory / "state"
        self._directory = directory
        self._process: Process | None = None
        self._starts = 0
        self.runtime_dir.mkdir()
        self.state_dir.mkdir()
        if policy is not None:
            self.write_policy(policy)
        if config is not None:
            self.config_file.write_text(config, encoding="utf-8")

    @property
    def pid(self) -> int:
        """The host pid of the daemon."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """What the latest start wrote to stderr (and stdout)."""
        file = self._log_file()
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def write_policy(self, text: str, *, rename: bool = True) -> None:
        """Write the policy file: by rename, as careful editors do, or in place."""
        if not rename:
            self.policy_file.write_text(text, encoding="utf-8")
            return
        beside = self.policy_file.with_suffix(".toml.new")
        beside.write_text(text, encoding="utf-8")
        beside.rename(self.policy_file)

    def start(self, *, wait: bool = True) -> None:
        """Start it; with ``wait`` return when it says that it is ready."""
        if self.running:
            raise LabError("the daemon is running")
        self._starts += 1
        argv = [sys.executable, "-m", "ramnet", "run", "--policy", str(self.policy_file)]
        argv += ["--config", str(self.config_file), "--runtime-dir", str(self.runtime_dir)]
        argv += ["--state-dir", str(self.state_dir)]
        self._process = self.sandbox.popen(argv, log=self._log_file(), env=self._environment())
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait for the line that tells readiness; LabError with the log when it ends instead."""
        self._running().wait_for_line(READY, READY_SECONDS)

    def wait(self, timeout: float = STOP_SECONDS) -> int:
        """Wait for its end and return the exit status."""
        return self._running().wait(timeout)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal (SIGTERM by default), wait for the end, return the status."""
        process = self._running()
        process.signal(number)
        status = process.wait(STOP_SECONDS)
        self._process = None
        return status

    def kill(self) -> int:
        """SIGKILL it: no cleaning up, no farewell."""
        return self.stop(signal.SIGKILL)

    def abandon(self) -> None:
        """End it, if it runs, with all its children."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def cli(
        self,
        *args: str,
        timeout: float = 30.0,
        check: bool = False,
        user: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m ramnet ARGS`` in the client, pointed at this daemon."""
        return self.sandbox.run(
            [sys.executable, "-m", "ramnet", *args],
            timeout=timeout,
            check=check,
            env=self._environment(),
            user=user,
        )

    def status(self) -> dict[str, Any]:
        """Return ``ramnet status --json``, whatever exit status goes with it."""
        done = self.cli("status", "--json", "--runtime-dir", str(self.runtime_dir))
        try:
            status = json.loads(done.stdout)
        except json.JSONDecodeError as err:
            raise LabError(
                f"status answers no JSON (exit status {done.returncode})",
                hint=done.stderr.strip() or done.stdout,
            ) from err
        if not isinstance(status, dict):
            raise LabError("status answers no JSON object", hint=done.stdout)
        return status

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(PYTHON_PATH), "RAMNET_RUNTIME_DIR": str(self.runtime_dir)}

    def _log_file(self) -> Path:
        return self._directory / f"ramnet-{self._starts}.log"

    def _running(self) -> Process:
        if self._process is None:
            raise LabError("the daemon was not started")
        return self._process
