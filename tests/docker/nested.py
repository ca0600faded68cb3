"""A real engine inside a container of the engine (Docker-in-Docker), with what it needs.

It has all that ``--privileged`` gives, but not by that name: the machine itself may lack a
capability, and then a privileged container does not start. dockerd carries BuildKit, so a build in
here makes the connections that buildx's docker-container driver makes, from the same place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from tests.docker.containers import START_SECONDS, container
from tests.docker.support import Said, docker

# All of it is in memory: overlay2 does not go on top of another overlay, but on tmpfs it does.
_FOLDER = "/nested"
_SOCKET = f"unix://{_FOLDER}/docker.sock"
_CONTAINERD = f"{_FOLDER}/exec/containerd/containerd.sock"

_PRIVILEGED = (
    # No engine needs SYS_RESOURCE, and some machines do not have it to give.
    *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--device-cgroup-rule", "a *:* rwm"),
    *(f"--security-opt={name}=unconfined" for name in ("seccomp", "apparmor", "systempaths")),
    *("--tmpfs", "/run:exec", "--tmpfs", f"{_FOLDER}:exec"),
    *("--volume", "/etc/alternatives:/etc/alternatives:ro"),  # iptables is a link to there
    *("--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "--env", f"DOCKER_HOST={_SOCKET}"),
    *("--env", f"HOME={_FOLDER}", "--env", f"CONTAINERD_ADDRESS={_CONTAINERD}"),
)
_START = f"""
mount -o remount,rw,bind /sys
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,rw,bind $hierarchy; done
exec dockerd -H {_SOCKET} --data-root {_FOLDER}/data --exec-root {_FOLDER}/exec \\
    --pidfile {_FOLDER}/pid --exec-opt native.cgroupdriver=cgroupfs
"""
_BUILD = """
mkdir -p $HOME/context && cd $HOME/context && echo "$1" >Dockerfile &&
DOCKER_BUILDKIT=$2 exec docker build --no-cache --force-rm .
"""


@dataclass(frozen=True, slots=True)
class Nested:
    """An engine in the container ``name``."""

    lab: Lab
    name: str

    def run(self, *argv: str) -> Said:
        """Run a program in the engine's container."""
        return docker(self.lab, "exec", self.name, *argv)

    def docker(self, *args: str) -> Said:
        """Run the docker command line against the inner engine."""
        return self.run("docker", *args)

    def pull(self, reference: str) -> Said:
        """Pull afresh."""
        self.docker("image", "rm", "--force", reference)
        return self.docker("pull", reference)

    def build(self, base: str, *, buildkit: bool) -> Said:
        """Build from a base that has to be pulled first, with one step that runs."""
        self.docker("image", "rm", "--force", base)
        text = f"FROM {base}\nRUN echo built\n"
        return self.run("sh", "-c", _BUILD, "build", text, str(int(buildkit)))

    def ctr(self, reference: str) -> Said:
        """Pull by containerd's own command line, which dials for itself."""
        image = f"{reference}:latest"
        self.run("ctr", "images", "rm", "--sync", image)
        trust = ("--tlscacert", str(self.lab.pki.ca))
        return self.run("ctr", "images", "pull", *trust, image)


@contextmanager
def nested_engine(lab: Lab, *options: str) -> Iterator[Nested]:
    """Run an engine in a container; ``options`` are those of ``docker run``."""
    ca = str(lab.pki.ca)
    trust = ("--volume", f"{ca}:{ca}:ro", "--env", f"SSL_CERT_FILE={ca}")
    with container(lab, *_PRIVILEGED, *trust, *options, argv=("sh", "-c", _START)) as name:
        wait_until(
            lambda: "API listen on" in docker(lab, "logs", name).everything,
            START_SECONDS,
            "the engine in a container",
        )
        yield Nested(lab, name)
