"""The decision, with the releases and options of real kernels.

The columns are from public kernel configurations: "y" built in, "m" module, "n" off. What a module
can do counts as there: the probe loads it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ramnet.core.kernel import (
    FLOOR,
    NEEDS,
    Decision,
    Evidence,
    Feature,
    Release,
    decide,
    parse_release,
)

# Releases


@pytest.mark.parametrize(
    ("text", "numbers", "wsl", "linuxkit"),
    [
        ("4.19.128-microsoft-standard", (4, 19, 128), True, False),
        ("5.10.102.1-microsoft-standard-WSL2", (5, 10, 102), True, False),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15, 167), True, False),
        ("6.6.87.2-microsoft-standard-WSL2", (6, 6, 87), True, False),
        ("6.6.36.3-microsoft-standard-WSL2+", (6, 6, 36), True, False),
        ("5.10.104-linuxkit", (5, 10, 104), False, True),
        ("6.8.4-2-pve", (6, 8, 4), False, False),
        ("6.12.107+deb13-cloud-amd64", (6, 12, 107), False, False),
        ("7.0-rc1", (7, 0, 0), False, False),
        ("  6.1.0\n", (6, 1, 0), False, False),
        ("6.18.", (6, 18, 0), False, False),
    ],
)
def test_the_leading_numbers_of_a_release(
    text: str, numbers: tuple[int, int, int], wsl: bool, linuxkit: bool
) -> None:
    found = parse_release(text)
    assert found == Release(*numbers, text.strip())
    assert (found.wsl, found.linuxkit) == (wsl, linuxkit)


@pytest.mark.parametrize(
    "text", ["", "6", "6.", "linux", "-5.4", "1234567.1", "v6.1", "\u0666.\u0661", ".5.4"]
)
def test_what_is_no_release(text: str) -> None:
    assert parse_release(text) is None


# Options of real kernels, and what a probe would find there

Options = dict[str, str]

COLUMNS: dict[str, tuple[tuple[str, ...], Options]] = {
    "WSL2 5.4": (
        ("5.4.72-microsoft-standard-WSL2",),
        {"nft": "y", "sets": "n", "ct-log": "n", "reject": "n", "nat": "n", "socket": "n"}
        | {"queue": "n", "compat": "n", "nflog": "y", "bpf": "?"},
    ),
    "WSL2 5.10.74": (
        ("5.10.74.3-microsoft-standard-WSL2", "5.10.102.1-microsoft-standard-WSL2"),
        {"nft": "y", "sets": "y", "ct-log": "n", "reject": "n", "nat": "n", "socket": "n"}
        | {"queue": "n", "compat": "n", "nflog": "y", "bpf": "y"},
    ),
    "WSL2 5.15.57.1 to 6.1.21": (
        ("5.15.57.1-microsoft-standard-WSL2", "6.1.21.2-microsoft-standard-WSL2"),
        {"nft": "y", "sets": "y", "ct-log": "y", "reject": "y", "nat": "y", "socket": "y"}
        | {"queue": "n", "compat": "y", "nflog": "y", "bpf": "y"},
    ),
    "WSL2 6.6": (
        ("6.6.87.2-microsoft-standard-WSL2", "6.6.36.3-microsoft-standard-WSL2+"),
        {"nft": "y", "sets": "y", "ct-log": "m", "reject": "m", "nat": "y/m", "socket": "n"}
        | {"queue": "m", "compat": "m", "nflog": "y", "bpf": "y"},
    ),
    "linuxkit 5.4": (
        ("5.4.39-linuxkit",),
        {"nft": "y", "sets": "n", "ct-log": "y", "reject": "y", "nat": "y", "socket": "n"}
        | {"queue": "y", "compat": "y", "nflog": "y", "bpf": "y"},
    ),
    "linuxkit 5.10 to 6.12": (
        ("5.10.104-linuxkit", "6.12.5-linuxkit"),
        {"nft": "y", "sets": "y", "ct-log": "y", "reject": "y", "nat": "y", "socket": "n"}
        | {"queue": "y", "compat": "y", "nflog": "y", "bpf": "y"},
    ),
}
# Which row of the table each feature hangs on.
ROW: dict[Feature, str] = {
    Feature.NFTABLES: "nft",
    Feature.SETS: "sets",
    Feature.TIMEOUTS: "sets",
    Feature.INTERVALS: "sets",
    Feature.DYNAMIC: "sets",
    Feature.CONNTRACK: "ct-log",
    Feature.CT_MARK: "ct-log",
    Feature.CT_ORIGINAL: "ct-log",
    Feature.REJECT: "reject",
    Feature.LOG: "ct-log",
    Feature.LIMIT: "ct-log",
    Feature.NFLOG: "nflog",
    Feature.QUEUE: "queue",
    Feature.COMPAT_QUEUE: "compat",
    Feature.SOCKET_CGROUP: "socket",
    Feature.CGROUP_BPF: "bpf",
    Feature.SOCKET_UID: "nft",
    Feature.MPTCP_OPTION: "nft",
    Feature.NAT: "nat",
}
SINCE = {Feature.OWNER: (5, 12), Feature.IIF_KIND: (5, 6), Feature.EGRESS: (5, 16)}
SOCKET_CGROUP_SINCE = (5, 13)

SETS = {Feature.SETS, Feature.TIMEOUTS, Feature.INTERVALS, Feature.DYNAMIC}
CT_LOG = {
    Feature.CONNTRACK,
    Feature.CT_MARK,
    Feature.CT_ORIGINAL,
    Feature.LOG,
    Feature.LIMIT,
}
WHY_NOT: dict[str, set[Feature]] = {
    "WSL2 5.4": SETS | CT_LOG | {Feature.REJECT, Feature.IIF_KIND},
    "WSL2 5.10.74": CT_LOG | {Feature.REJECT},
    "WSL2 5.15.57.1 to 6.1.21": set(),
    "WSL2 6.6": set(),
    "linuxkit 5.4": SETS | {Feature.IIF_KIND},
    "linuxkit 5.10 to 6.12": set(),
}
MISSING_RUNGS: dict[str, set[Feature]] = {
    "WSL2 5.15.57.1 to 6.1.21": {Feature.QUEUE},
    "WSL2 6.6": {Feature.SOCKET_CGROUP},
    "linuxkit 5.10 to 6.12": {Feature.SOCKET_CGROUP},
}


def probed(release: Release, options: Options, unknown: bool) -> dict[Feature, Evidence]:
    """What a probe finds on a kernel with these options."""
    version = release.major, release.minor
    found = {}
    for feature in Feature:
        if feature in SINCE:
            present = version >= SINCE[feature]
        else:
            setting = options[ROW[feature]]
            present = unknown if setting == "?" else setting != "n"
        if feature is Feature.SOCKET_CGROUP:
            present = present and version >= SOCKET_CGROUP_SINCE
        found[feature] = Evidence(feature, present, "tried")
    return found


def told(decision: Decision) -> set[str]:
    """The features that the reasons are about."""
    return {reason.partition(":")[0] for reason in decision.reasons}


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize(
    ("column", "text"),
    [(column, text) for column, (texts, _) in COLUMNS.items() for text in texts],
)
def test_each_column(column: str, text: str, unknown: bool) -> None:
    release = parse_release(text)
    assert release is not None
    decision = decide(release, probed(release, COLUMNS[column][1], unknown))
    assert told(decision) == {str(feature) for feature in WHY_NOT[column]}
    assert decision.supported == (not WHY_NOT[column])
    if decision.supported and release >= Release(5, 13, 0, ""):
        late = {f for f, since in SINCE.items() if (release.major, release.minor) < since}
        assert set(decision.missing) == MISSING_RUNGS[column] | late
    for feature in WHY_NOT[column]:
        need = NEEDS[feature]
        (reason,) = (r for r in decision.reasons if r.startswith(f"{feature}:"))
        assert need.cost in reason
        assert need.option in reason
        assert need.remedy in reason


@pytest.mark.parametrize("column", ["WSL2 5.4", "WSL2 5.10.74"])
def test_an_old_wsl_kernel_is_told_to_update(column: str) -> None:
    release = parse_release(COLUMNS[column][0][0])
    assert release is not None
    decision = decide(release, probed(release, COLUMNS[column][1], unknown=False))
    assert all("wsl --update" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("4.19.128-microsoft-standard", "wsl --update"),
        ("4.19.0-linuxkit", "update the kernel"),
        ("5.3.18", "update the kernel"),
        ("3.10.0-1160.el7.x86_64", "update the kernel"),
    ],
)
def test_below_the_floor_no_feature_helps(text: str, remedy: str) -> None:
    release = parse_release(text)
    decision = decide(release, everything_but())
    assert not decision.supported
    (reason,) = decision.reasons
    assert reason.startswith(f"kernel {text} is older than 5.4")
    assert remedy in reason


@pytest.mark.parametrize("text", ["5.4.0", "5.15.167.4-microsoft-standard-WSL2", "6.8.4-2-pve"])
def test_from_the_floor_on_the_features_decide(text: str) -> None:
    assert decide(parse_release(text), everything_but()) == Decision(
        supported=True, reasons=(), missing=()
    )
    assert FLOOR == (5, 4)


def test_a_release_that_cannot_be_read_does_not_forbid() -> None:
    assert decide(None, everything_but()).supported
    assert not decide(None, everything_but([Feature.SETS])).supported


def everything_but(
    absent: Iterable[Feature] = (), unprobed: Iterable[Feature] = ()
) -> dict[Feature, Evidence]:
    absent, unprobed = set(absent), set(unprobed)
    return {
        feature: Evidence(feature, feature not in absent, "tried")
        for feature in Feature
        if feature not in unprobed
    }


@pytest.mark.parametrize("feature", list(Feature))
def test_one_missing_feature(feature: Feature) -> None:
    """A required one forbids, another only costs its rung; not probed is missing too."""
    for evidence in (everything_but([feature]), everything_but(unprobed=[feature])):
        decision = decide(parse_release("6.12.0"), evidence)
        assert decision.missing == (feature,)
        assert decision.supported is not NEEDS[feature].required
        assert len(decision.reasons) == NEEDS[feature].required


def test_without_nftables_nothing_else_is_told() -> None:
    """What follows from it is missing, and is no reason of its own."""
    decision = decide(parse_release("6.12.0"), everything_but(Feature))
    assert decision.missing == tuple(Feature)
    [reason] = decision.reasons
    assert reason.startswith("nftables: ")


def test_every_feature_says_what_it_is_for() -> None:
    assert set(NEEDS) == set(Feature)
    for need in NEEDS.values():
        assert need.option
        assert need.cost
        assert need.remedy


def test_which_features_are_required() -> None:
    """Without the others there is less comfort or a lower rung, and the rest still holds."""
    better = {feature for feature in Feature if not NEEDS[feature].required}
    assert better == {
        Feature.QUEUE,
        Feature.COMPAT_QUEUE,
        Feature.SOCKET_CGROUP,
        Feature.CGROUP_BPF,
        Feature.SOCKET_UID,
        Feature.MPTCP_OPTION,
        Feature.EGRESS,
        Feature.NAT,
        Feature.OWNER,
    }
