"""What the tests with a real engine share: pulls that are told apart, and files to build from."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ramnet.lab.lab import Lab

# Mode `hold` refuses at once; in mode `observe` each address of a name costs one retransmission,
# 1 s. What is silently dropped takes Docker 15 s and reads differently.
REFUSED_SECONDS = 10.0
BUILT = (
    "built"  # whoever builds has to remove it: nobody can pull its base afresh while it is there
)
REFUSED = "connect: connection refused"
# Without a policy there is nobody to choose another answer than the notice, see test_notice.py.
NOTICED = ("registry-access-denied-by-", "registry access denied by ")


@dataclass(frozen=True, slots=True)
class Said:
    """How a run of the docker command line ended."""

    status: int
    words: str  # its last line, as it stands
    everything: str
    seconds: float

    @property
    def worked(self) -> bool:
        return self.status == 0

    @property
    def refused(self) -> bool:
        """Whether ramnet's refusal is what the engine tells, soon enough."""
        told = any(one in self.words for one in (REFUSED, *NOTICED))
        return self.status != 0 and told and self.seconds < REFUSED_SECONDS


def docker(lab: Lab, *args: str, buildkit: bool = False) -> Said:
    """Run the docker command line."""
    begin = time.monotonic()
    done = lab.engine.docker(*args, env={"DOCKER_BUILDKIT": "1"} if buildkit else None)
    return said_of(done, begin)


def pull(lab: Lab, reference: str) -> Said:
    """Pull afresh."""
    lab.engine.forget(reference)
    return docker(lab, "pull", reference)


def build(lab: Lab, folder: Path, base: str, *steps: str, buildkit: bool = False) -> Said:
    """Build the image ``built`` from a base that has to be pulled first."""
    lab.engine.forget(base)
    lines = [f"FROM {base}", *steps, ""]
    (folder / "Dockerfile").write_text("\n".join(lines), encoding="utf-8")
    options = ("--no-cache", "--force-rm", "--tag", BUILT)
    return docker(lab, "build", *options, str(folder), buildkit=buildkit)


def has_buildkit(lab: Lab) -> bool:
    """Whether this client can build with BuildKit: from version 23 on that needs a plugin."""
    version = lab.engine.docker("version", "--format", "{{.Client.Version}}", check=True).stdout
    plugin = lab.engine.docker("buildx", "version")
    return int(version.partition(".")[0]) < 23 or plugin.returncode == 0


def said_of(done: subprocess.CompletedProcess[str], begin: float) -> Said:
    """Say how a program ended that was started at ``begin``."""
    everything = (done.stdout + done.stderr).strip()
    words = everything.splitlines()[-1] if everything else ""
    return Said(done.returncode, words, everything, time.monotonic() - begin)
