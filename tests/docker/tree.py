"""The programs of another Debian: the newest Docker that it has, run by chroot in a lab's client.

The tree is made once, kept in a cache, and never written to: what a program writes goes to an
overlay in memory that ends with it. The folders of the lab are where they are outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ramnet.errors import LabError
from ramnet.lab.engine import Engine
from ramnet.lab.lab import Lab
from ramnet.lab.programs import require
from ramnet.lab.sandbox import Sandbox
from tests.debian import (
    Mirror,
    cache_folder,
    cached,
    locked,
    mmdebstrap,
    remove_apt,
    write_apt,
)

SUITE = "sid"
PACKAGES = (
    *("ca-certificates", "containerd", "docker-buildx", "docker-cli", "docker.io"),
    *("iptables", "podman", "skopeo"),
)

# The mounts end with the program. Names are looked up and users named as outside; /run is empty.
_SETUP = """
set -e
tree=$1 lab=$2 user=$3
mount -t tmpfs -o mode=755 ramnet-lab "$tree/mnt"
mkdir "$tree/mnt/upper" "$tree/mnt/work"
mount -t overlay -o "lowerdir=$tree,upperdir=$tree/mnt/upper,workdir=$tree/mnt/work" \
    ramnet-lab "$tree"
for name in proc sys dev; do mount --rbind "/$name" "$tree/$name"; done
for name in run tmp; do mount -t tmpfs -o mode=1777 ramnet-lab "$tree/$name"; done
for name in hosts nsswitch.conf resolv.conf; do
    : >"$tree/etc/$name"
    mount --bind "/etc/$name" "$tree/etc/$name"
done
mkdir -p "$tree$lab"
mount --bind "$lab" "$tree$lab"
shift 3
exec chroot --userspec="$user" "$tree" "$@"
"""


class Tree(Sandbox):
    """The client of a lab, seen by programs of another tree. It has no end of its own."""

    def __init__(self, lab: Lab, tree: Path) -> None:
        super().__init__(lab.client.name, lab.client.directory, lab.client.environment)
        self._lab = lab
        self._tree = tree

    @property
    def pid(self) -> int:
        """The host pid of the client's holder."""
        return self._lab.client.pid

    def start(self) -> None:
        """Refuse: the client is what runs."""
        raise LabError("a tree has no machine of its own")

    def enter(self, *, user: int | None = None, cwd: str = "/") -> list[str]:
        """Return the argv prefix that runs a program of the tree in the client."""
        unshare = [require("unshare"), "--mount", "--propagation", "private", "--"]
        setup = ["/bin/sh", "-c", _SETUP, "tree", str(self._tree), str(self._lab.directory)]
        who = f"{user or 0}:{user or 0}"
        return [*super().enter(cwd=cwd), *unshare, *setup, who]

    def engine(
        self, name: str = "newest", *, cgroup: Path | None = None, insecure: Sequence[str] = ()
    ) -> Engine:
        """Make the Docker engine of the tree beside the one that the lab may have.

        Without a bridge, as both would want the same one: it pulls, pushes and builds.
        """
        folder = self._lab.directory / name
        folder.mkdir()
        options: dict[str, object] = {"bridge": "none", "iptables": False, "ip6tables": False}
        options |= {"insecure-registries": list(insecure)}
        return Engine(self, folder, self._lab.name, options=options, cgroup=cgroup)


def newest(machine_netns: int) -> Path:
    """Return the tree; it takes most of a minute when it has to be made."""
    mirror, folder = Mirror(machine_netns), cache_folder("docker")
    with locked(folder, SUITE):
        sources, options = mirror.sources([SUITE]), mirror.options()
        what = (sources, options, mmdebstrap(Path("/work"), SUITE, PACKAGES, ()))
        key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]

        def make(work: Path) -> None:
            write_apt(work, sources, options)
            mirror.run(mmdebstrap(work, SUITE, PACKAGES, ()))
            remove_apt(work)

        return cached(folder, SUITE, key, make) / "root"
