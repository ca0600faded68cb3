"""Where the cgroup v2 hierarchy is mounted, from the lines of mountinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramnet.host.cgroups import mounts_of

PURE = "26 20 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = "33 25 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw"
ELSEWHERE = "90 25 0:30 / /mnt/a\\040b rw - cgroup2 none rw"
OF_A_CONTAINER = "91 25 0:30 /docker/1f2e /run/c/sys/fs/cgroup ro - cgroup2 cgroup rw"
ABOVE_THE_NAMESPACE = "92 25 0:30 /.. /sys/fs/cgroup ro - cgroup2 cgroup rw"
VERSION_1 = "34 25 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"
NAMED_SO = "35 25 0:32 / /sys/fs/cgroup - tmpfs cgroup2 rw"


@pytest.mark.parametrize(
    ("lines", "mounts"),
    [
        ([], []),
        ([""], []),
        ([VERSION_1, NAMED_SO], []),
        ([PURE], ["/sys/fs/cgroup"]),
        ([VERSION_1, HYBRID], ["/sys/fs/cgroup/unified"]),
        ([ELSEWHERE, VERSION_1, HYBRID], ["/sys/fs/cgroup/unified", "/mnt/a b"]),
        ([OF_A_CONTAINER, PURE], ["/sys/fs/cgroup"]),
        ([OF_A_CONTAINER, ABOVE_THE_NAMESPACE], []),
    ],
)
def test_the_whole_hierarchy_where_nft_looks_first(lines: list[str], mounts: list[str]) -> None:
    assert mounts_of(lines) == [Path(mount) for mount in mounts]
