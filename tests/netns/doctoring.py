"""What the tests of ``ramnet doctor`` share: a lab of split registries, and a doctor to ask."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ramnet.lab import split
from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.split import ECR, HUB, QUAY, Layout, SplitRegistries
from tests.netns.bad_server import MODES

# Its token server and its bucket are hosts that nobody catalogued.
CORP = Layout(
    api="registry.corp.example",
    realm="sso.corp.example/token",
    service="registry.corp.example",
    blobs="bucket.corp.example",
)
V6 = Layout(api="v6only.example")
PLAIN = Layout(api="plain.example", tls=False, port=5000)

BAD = {mode: f"{mode}.bad.example" for mode in MODES}
DEAD = "dead.example"
LOOP = "loop.example"
ALIEN = "alien.example"  # its certificate is from an authority that nobody knows
RECORDS = records(
    {
        "sso.corp.example": ["198.51.100.91", "2001:db8::91"],
        "bucket.corp.example": ["198.51.100.92", "2001:db8::92"],
        "plain.example": ["198.51.100.93"],
        DEAD: ["198.51.100.94"],
        LOOP: ["198.51.100.95"],
        ALIEN: ["198.51.100.96"],
        **{host: [f"203.0.113.{100 + n}"] for n, host in enumerate(BAD.values())},
    }
)

# Longer than any walk may take, however bad the server.
DOCTOR_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class Told:
    """What one run said."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        assert self.out, self.err
        value = json.loads(self.out)
        assert isinstance(value, dict)
        assert value["schema"] == 1
        return value

    @property
    def hops(self) -> list[tuple[str, str, int | None]]:
        """The hops: role, host and what came back."""
        return [(hop["role"], hop["host"], hop["status"]) for hop in self.report["hops"]]

    @property
    def last(self) -> dict[str, Any]:
        last = self.report["hops"][-1]
        assert isinstance(last, dict)
        return last

    @property
    def missing(self) -> dict[str, dict[str, Any]]:
        """The advice for each host that the policy lacks."""
        return {item["host"]: item["advice"] for item in self.report["missing"]}


def ask_doctor(daemon: Daemon, *args: str, as_json: bool = True) -> Told:
    """Run ``ramnet doctor`` with the files of a daemon, which need not run."""
    argv = ["doctor", *args, "--policy", str(daemon.policy_file)]
    argv += ["--config", str(daemon.config_file), "--runtime-dir", str(daemon.runtime_dir)]
    if as_json:
        argv.append("--json")
    begin = time.monotonic()
    done = daemon.cli(*argv, timeout=DOCTOR_SECONDS)
    return Told(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


@contextmanager
def doctored_lab() -> Iterator[tuple[Lab, SplitRegistries]]:
    """A lab with every registry of these tests, and a cgroup for an engine that it has not."""
    known = {**split.RECORDS, **RECORDS}
    with Lab(registries=False, engine_cgroup=True, records=known) as lab:
        servers = lab.split(HUB, ECR, QUAY, CORP, V6, PLAIN)
        servers.registries.add_image("private/app")
        yield lab, servers


@contextmanager
def docker_config(lab: Lab, config: dict[str, object]) -> Iterator[None]:
    """Give root in the client a Docker configuration."""
    folder = lab.client.directory / ".docker"
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    try:
        yield
    finally:
        file.unlink()


@contextmanager
def program(lab: Lab, name: str, script: str) -> Iterator[Path]:
    """Put a shell script where the client's programs are looked for first."""
    folder = lab.client.directory / "bin"
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}", encoding="utf-8")
    file.chmod(0o755)
    former = lab.client.environment["PATH"]
    lab.client.environment["PATH"] = f"{folder}:{former}"
    try:
        yield file
    finally:
        lab.client.environment["PATH"] = former
        file.unlink()


@contextmanager
def blobs_at(servers: SplitRegistries, layout: Layout, host: str) -> Iterator[Layout]:
    """Have a registry redirect to another host for a while."""
    servers.blobs_at(layout, host)
    try:
        yield replace(layout, blobs=host)
    finally:
        servers.blobs_at(layout, layout.blobs)
