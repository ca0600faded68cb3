"""How soon a refused client knows: the notice, and a reset, against a port where nobody listens.

``run()`` returns the figures; ``python -m bench.refusing`` prints them. Everything runs in a lab of
network namespaces and needs root and Docker. The contenders take turns in one run, and ratios are
taken within a turn: compare those.

* ``pull``: ``docker pull``, from its start to its end.
* ``connect``: a TLS client, from ``connect`` to the error.

``closed`` is the peer: an allowed address whose port is closed, so that the far side resets.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

from ramnet.lab.dns import records
from ramnet.lab.lab import Lab
from ramnet.lab.process import wait_until
from ramnet.lab.world import EVIL

ROUNDS = 15
CONNECTS = 40  # in each round
CLOSED = ("198.51.100.99", 7999)
NOTICED = (EVIL[0], 443)
CONFIG = '[scope]\nmode = "cgroup"\ncgroups = ["{group}"]\n'
POLICY = """
version = 1
organization = "bench"
[[registry]]
address = "closed.example:{port}"
[enforcement]
on_deny = "{answer}"
"""

_CONNECT = """
import json, socket, ssl, sys, time
host, port, number = json.load(sys.stdin)
context, took = ssl.create_default_context(), []
for _ in range(number):
    begin = time.perf_counter()
    try:
        with socket.create_connection((host, port), 10) as sock:
            context.wrap_socket(sock, server_hostname="evil.example")
        raise SystemExit("it got through")
    except (ConnectionRefusedError, ssl.SSLError):
        took.append(time.perf_counter() - begin)
print(json.dumps(sorted(took)[len(took) // 2]))
"""


def run() -> dict[str, object]:
    """Measure both; milliseconds, medians of ``ROUNDS``, and the ratio to a closed port."""
    table = records({"closed.example": [CLOSED[0]]})
    with Lab(engine=True, engine_cgroup=True, records=table) as lab:
        found = {answer: _with(lab, answer) for answer in ("notice", "reject")}
    return {kind: {one: found[one][kind] for one in found} for kind in ("pull", "connect")}


def _with(lab: Lab, answer: str) -> dict[str, dict[str, float]]:
    """Measure while refused connections are answered so."""
    text = POLICY.format(port=CLOSED[1], answer=answer)
    daemon = lab.daemon(text, config=CONFIG.format(group=lab.engine_group))
    wait_until(lambda: daemon.status()["leases"] >= 1, 10, "the lease of closed.example")
    if answer == "notice":
        element = ["nft", "get", "element", "inet", "ramnet", "notice", "{ tcp }"]
        wait_until(lambda: not lab.client.run(element, check=False).returncode, 10, "the notice")
    turns = [_turn(lab) for _ in range(ROUNDS)]
    daemon.cli("off", check=True)
    daemon.wait()
    return {
        kind: {
            "ms": round(1000 * statistics.median(mine for mine, _ in pairs), 2),
            "closed_ms": round(1000 * statistics.median(peer for _, peer in pairs), 2),
            "ratio_to_closed": round(statistics.median(mine / peer for mine, peer in pairs), 2),
        }
        for kind in ("pull", "connect")
        for pairs in [[turn[kind] for turn in turns]]
    }


def _turn(lab: Lab) -> dict[str, tuple[float, float]]:
    return {
        "pull": (_pull(lab, "evil.example"), _pull(lab, f"closed.example:{CLOSED[1]}")),
        "connect": (_connect(lab, NOTICED), _connect(lab, CLOSED)),
    }


def _pull(lab: Lab, registry: str) -> float:
    began = time.monotonic()
    done = lab.engine.docker("pull", f"{registry}/acme/app")
    took = time.monotonic() - began
    if done.returncode == 0:
        raise AssertionError("it got through")
    return took


def _connect(lab: Lab, target: tuple[str, int]) -> float:
    argv = [sys.executable, "-I", "-c", _CONNECT]
    said = lab.run_as_engine(argv, input=json.dumps([*target, CONNECTS]), timeout=120)
    median: float = json.loads(said.stdout)
    return median


def main() -> None:
    """Print the figures."""
    print(json.dumps(run(), indent=2))


if __name__ == "__main__":
    main()
