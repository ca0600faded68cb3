"""The programs that the lab runs, and the environment it gives them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ramnet.errors import LabError

# The distribution's own programs come first: an engine and a client of the same version belong
# together, whatever else an administrator put under /usr/local. RAMNET_LAB_PATH comes before all:
# there, bootstrap puts what a distribution cannot install beside its own.
SEARCH_PATH = ":".join(
    (
        *filter(None, [os.environ.get("RAMNET_LAB_PATH")]),
        "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin",
    )
)

# The directory that this package was imported from: a program of ours runs the same code.
PYTHON_PATH = Path(__file__).resolve().parents[2]

# Where Debian and Ubuntu keep each program.
PACKAGES = {
    "busybox": "busybox-static",
    "dnsmasq": "dnsmasq-base",
    "docker": "docker.io (docker-cli from Debian 13 on)",
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "nft": "nftables",
    "nginx": "nginx",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "skopeo": "skopeo",
    "tcpdump": "tcpdump",
    "unshare": "util-linux",
}


def require(program: str) -> str:
    """Return the absolute path of a program; LabError names the package that has it."""
    found = shutil.which(program, path=SEARCH_PATH)
    if found is None:
        package = PACKAGES.get(program, program)
        raise LabError(f"the program {program} is missing", hint=f"apt-get install {package}")
    return found


def require_all(programs: Iterable[str]) -> None:
    """Check several programs at once, so that one message names every missing package."""
    missing = [name for name in programs if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name).split(" ")[0] for name in missing})
        raise LabError(
            f"programs are missing: {', '.join(missing)}",
            hint=f"apt-get install {' '.join(packages)}",
        )
