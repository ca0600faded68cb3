"""A real Docker engine in a sandbox, with everything it writes inside the lab's directory."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ramnet.errors import LabError
from ramnet.lab.process import Process, wait_until
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox

START_SECONDS = 30.0  # 1.5 s on an idle machine
STOP_SECONDS = 10.0
_PING = b"GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"


class Engine:
    """dockerd and its command line.

    ``cgroup_parent`` is the name under which the containers' cgroups are made in every hierarchy;
    whoever owns the lab removes it. ``options`` are keys of daemon.json. ``cgroup`` is a directory
    of a cgroup mount that dockerd joins at every start before it runs: what it starts follows, its
    containerd too; what runs in containers does not.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        directory: Path,
        cgroup_parent: str,
        *,
        options: Mapping[str, object] | None = None,
        cgroup: Path | None = None,
    ) -> None:
        self.sandbox = sandbox
        self.socket = directory / "docker.sock"
        self.log = directory / "dockerd.log"
        self.cgroup = cgroup
        self._directory = directory
        self._cgroup_parent = cgroup_parent
        self._options = dict(options or {})
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The host pid of dockerd."""
        if self._process is None:
            raise LabError("the engine is not running")
        return self._process.pid

    def start(
        self,
        *,
        wait: bool = True,
        cgroup: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start dockerd; with ``wait`` return when its API answers.

        ``cgroup`` stands in for the engine's own this once, and ``env`` is for this start only.
        """
        config = self._directory / "daemon.json"
        config.write_text(json.dumps(self._options), encoding="utf-8")
        (self._directory / "cli").mkdir(exist_ok=True)
        require("iptables")
        argv = [require("dockerd"), "--config-file", str(config), "-H", f"unix://{self.socket}"]
        argv += ["--data-root", str(self._directory / "data")]
        argv += ["--exec-root", str(self._directory / "exec")]
        argv += ["--pidfile", str(self._directory / "dockerd.pid")]
        argv += ["--exec-opt", "native.cgroupdriver=cgroupfs"]
        argv += ["--cgroup-parent", f"/{self._cgroup_parent}", "--shutdown-timeout", "1"]
        self._process = self.sandbox.popen(
            argv, log=self.log, env=env, cgroup=cgroup or self.cgroup
        )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API answers."""
        process = self._process
        if process is None:
            raise LabError("the engine was not started")

        def answers() -> bool:
            if process.returncode is not None:
                raise LabError(f"dockerd ended with {process.returncode}", hint=process.tail())
            return self._ping()

        wait_until(answers, START_SECONDS, "dockerd does not answer", hint=process.tail())

    def stop(self) -> None:
        """End the containers and dockerd. Containers first: dockerd gives each of them 10 s."""
        process, self._process = self._process, None
        if process is None:
            return
        running = self.docker("ps", "--quiet").stdout.split()
        if running:
            self.docker("kill", *running)
        process.stop(STOP_SECONDS)

    def abandon(self) -> None:
        """SIGKILL dockerd; its containers live on until their sandbox ends."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def docker(
        self,
        *args: str,
        timeout: float = 60.0,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker command line against this engine.

        The classic builder is the default, as its RUN steps need nothing but the engine; BuildKit
        by ``env={"DOCKER_BUILDKIT": "1"}`` where the client has it.
        """
        return self.sandbox.run(
            [require("docker"), *args],
            timeout=timeout,
            check=check,
            env={
                "DOCKER_HOST": f"unix://{self.socket}",
                "DOCKER_CONFIG": str(self._directory / "cli"),
                "DOCKER_BUILDKIT": "0",
                **(env or {}),
            },
            user=user,
        )

    def pull(self, reference: str, *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Pull afresh: remove the image first, so that its layers have to come over the network."""
        self.forget(reference)
        return self.docker("pull", reference, timeout=timeout)

    def forget(self, reference: str) -> None:
        """Remove an image by every name it has here."""
        found = self.docker("image", "inspect", "--format", "{{.Id}}", reference)
        if found.returncode == 0:
            self.docker("image", "rm", "--force", found.stdout.strip(), check=True)

    def container_pid(self, container: str) -> int:
        """Return the pid of a container's first process *inside the sandbox* (see forge)."""
        found = self.docker("inspect", "--format", "{{.State.Pid}}", container, check=True)
        return int(found.stdout)

    def _ping(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(START_SECONDS)
                sock.connect(str(self.socket))
                sock.sendall(_PING)
                return sock.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False
