"""What the running kernel can do, and what follows."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ramnet.core.kernel import Decision, Evidence, Feature, Release, decide, parse_release
from ramnet.host import helper
from ramnet.host.probe import probe


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the probe found, and what follows."""

    release: Release | None
    evidence: dict[Feature, Evidence]
    decision: Decision


def look_at_kernel() -> Kernel:
    """Probe the running kernel. Raises ``HostError`` where nothing can be tried."""
    release = parse_release(os.uname().release)
    evidence = helper.kernel() if helper.configured() else probe()
    return Kernel(release, evidence, decide(release, evidence))
