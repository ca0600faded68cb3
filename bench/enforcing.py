"""How soon the daemon enforces, how fast it reloads, and what it takes at rest.

``run()`` returns the figures; ``python -m bench.enforcing`` prints them. Everything runs in a lab
of network namespaces and needs root. The machine may be shared: compare the ratios, whose two sides
are measured in turn in the same run.

* ``start``: from the start of the process to the line "ready", against the interpreter that only
  imports the same libraries.
* ``reload``: a policy edit, from the rename to the new digest in ``status``, with 10^5 learned
  elements in the sets, against ``nft -f`` of a file with the same table.
* ``memory``: resident set of the daemon at rest, with a policy of 3 registries, against the bare
  interpreter's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from ramnet.lab.lab import Lab
from ramnet.lab.ramnet import Daemon
from ramnet.lab.sandbox import Sandbox

RUNS = 7
ELEMENTS = 100_000
CONFIG = f"""
[scope]
mode = "netns"
weak = "strict"
[limits]
leases_total = {ELEMENTS * 2}
"""
POLICY = """
version = 1
organization = "bench"
[[registry]]
address = "docker.io"
[[registry]]
address = "quay.io"
[[registry]]
address = "*.example"
[enforcement]
on_deny = "reject"
"""
IMPORTS = "import asyncio, dnslib, nftables, pydantic, pyroute2, click, idna"


def run() -> dict[str, object]:
    """Measure all three; seconds and megabytes (10^6 bytes), medians of ``RUNS``."""
    with Lab(registries=False) as lab:
        daemon = lab.daemon(POLICY, config=CONFIG, start=False)
        return {
            "start": _start(lab.client, daemon),
            "memory": _memory(lab.client, daemon),
            "reload": _reload(lab.client, daemon),
        }


def _start(client: Sandbox, daemon: Daemon) -> dict[str, float]:
    ready, imports = [], []
    for _ in range(RUNS):
        began = time.monotonic()
        daemon.start()
        ready.append(time.monotonic() - began)
        daemon.stop()
        began = time.monotonic()
        client.run([sys.executable, "-c", IMPORTS], check=True)
        imports.append(time.monotonic() - began)
    took, peer = statistics.median(ready), statistics.median(imports)
    return {"seconds": round(took, 3), "imports_seconds": round(peer, 3), **_ratio(took, peer)}


def _memory(client: Sandbox, daemon: Daemon) -> dict[str, float]:
    daemon.start()
    time.sleep(3)  # at rest: the first look-ups are done
    took = _resident(daemon.pid)
    daemon.stop()
    bare = client.popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], log=client.directory / "bare.log"
    )
    time.sleep(0.5)
    peer = _resident(bare.pid)
    bare.kill()
    return {"rss_mb": round(took, 1), "bare_interpreter_mb": round(peer, 1), **_ratio(took, peer)}


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no VmRSS")


def _reload(client: Sandbox, daemon: Daemon) -> dict[str, float]:
    """Fill the sets as if 10^5 addresses had been learned, and let the daemon read them back."""
    daemon.start()
    daemon.stop()
    elements = ", ".join(
        f"10.{index >> 16}.{index >> 8 & 255}.{index & 255} . 443 timeout 1h"
        f' comment "host{index}.example"'
        for index in range(ELEMENTS)
    )
    fill = daemon.policy_file.with_name("fill.nft")
    fill.write_text(f"add element inet ramnet allow4 {{ {elements} }}\n")
    client.run(["nft", "-f", str(fill)], check=True)
    daemon.start()
    if daemon.status()["leases"] < ELEMENTS:
        raise AssertionError("the daemon did not read the elements back")
    table = client.run(["nft", "list", "table", "inet", "ramnet"], check=True).stdout
    peer_file = daemon.policy_file.with_name("peer.nft")
    peer_file.write_text(
        "table inet peer\ndelete table inet peer\n"
        + table.replace("table inet ramnet", "table inet peer")
        .replace("hook output", "hook forward")
        .replace("group 7261", "group 7262")
    )
    took, peer = [], []
    for turn in range(RUNS):
        policy = POLICY.replace('"bench"', f'"bench {turn}"')
        before = daemon.status()["policy"]["digest"]
        began = time.monotonic()
        daemon.write_policy(policy)
        while daemon.status()["policy"]["digest"] == before:
            pass
        took.append(time.monotonic() - began)
        began = time.monotonic()
        client.run(["nft", "-f", str(peer_file)], check=True)
        peer.append(time.monotonic() - began)
    daemon.stop()
    mine, theirs = statistics.median(took), statistics.median(peer)
    return {
        "elements": ELEMENTS,
        "edit_to_status_seconds": round(mine, 3),
        "nft_file_seconds": round(theirs, 3),
        **_ratio(mine, theirs),
    }


def _ratio(mine: float, peer: float) -> dict[str, float]:
    return {"ratio_to_peer": round(mine / peer, 2)}


def main() -> None:
    """Print the figures."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
